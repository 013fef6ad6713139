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


class TestFlowerFedAvg(StrategyContract):
    strategy = "flower-fedavg"


class TestFlowerFedAdam(StrategyContract):
    strategy = "flower-fedadam"
    keeps_agreement = False


class TestFlowerFedMedian(StrategyContract):
    strategy = "flower-fedmedian"
