"""Every strategy that ships, and the stock ones that are offered by name, keep the strategy contract."""

from fedhealth.testing.strategy_contract import StrategyContract


class TestFedAvg(StrategyContract):
    strategy = "fedavg"
    streams_replies = True


class TestUniformFedAvg(StrategyContract):
    strategy = "fedavg"
    options = {"weighting": "uniform"}  # noqa: RUF012 - a ClassVar of the suite
    streams_replies = True


class TestFedProx(StrategyContract):
    strategy = "fedprox"
    options = {"proximal_mu": 0.1}  # noqa: RUF012 - a ClassVar of the suite
    streams_replies = True


class TestFedPer(StrategyContract):
    strategy = "fedper"
    personalisation = "private_head"
    streams_replies = True


class TestFedNova(StrategyContract):
    strategy = "fednova"
    options = {"effective_steps": 4.0, "proximal_mu": 0.1}  # noqa: RUF012 - a ClassVar of the suite
    streams_replies = True


class TestScaffold(StrategyContract):
    strategy = "scaffold"
    options = {"num_sites": 4}  # noqa: RUF012 - a ClassVar of the suite
    control_variates = True
    streams_replies = True
    keeps_agreement = False  # three sites of four move c by three quarters


class TestFedAdam(StrategyContract):
    strategy = "fedadam"
    streams_replies = True
    keeps_agreement = False  # a step from the mean


class TestFedYogi(StrategyContract):
    strategy = "fedyogi"
    options = {"learning_rate": 0.05, "tau": 0.01}  # noqa: RUF012 - a ClassVar of the suite
    streams_replies = True
    keeps_agreement = False


class TestFedAdagrad(StrategyContract):
    strategy = "fedadagrad"
    options = {"beta_1": 0.5}  # noqa: RUF012 - a ClassVar of the suite
    streams_replies = True
    keeps_agreement = False


class TestFlowerFedAvg(StrategyContract):
    strategy = "flower-fedavg"


class TestFlowerFedAdam(StrategyContract):
    strategy = "flower-fedadam"
    keeps_agreement = False


class TestFlowerFedMedian(StrategyContract):
    strategy = "flower-fedmedian"


class TestDpFedAvg(StrategyContract):
    strategy = "dp-fedavg"
    options = {"num_sites": 4, "noise_multiplier": 1e-9, "clipping_norm": 100.0}  # noqa: RUF012
    streams_replies = True
    keeps_agreement = False  # a site that drops out leaves the denominator as it is
    adds_noise = True


class TestAdaptiveDpFedAvg(StrategyContract):
    strategy = "dp-fedavg"
    options = {  # noqa: RUF012 - a ClassVar of the suite
        "num_sites": 4,
        "noise_multiplier": 1e-7,
        "clipping_norm": 5.0,
        "adaptive_clipping": True,
        "count_noise": 0.01,
        "server_optimizer": "yogi",
    }
    streams_replies = True
    keeps_agreement = False
    adds_noise = True


class TestDpFtrl(StrategyContract):
    strategy = "dp-ftrl"
    options = {  # noqa: RUF012 - a ClassVar of the suite
        "num_sites": 4,
        "noise_multiplier": 1e-7,
        "clipping_norm": 5.0,
        "bands": 3,
        "server_optimizer": "adam",
    }
    streams_replies = True
    keeps_agreement = False
    adds_noise = True
