"""Adaptive clipping: the right sign, the right noise, the right account."""

import numpy as np
import pytest
from fedhealth_strategies.adaptive_clipping import AdaptiveClipping
from fedhealth_strategies.dp_fedavg import DpFedAvg

from fedhealth.errors import AggregationError, ConfigError
from fedhealth.flower.strategy_adapter import StrategyAggregator
from fedhealth.privacy.randomness import Randomness
from fedhealth.privacy.update_clipping import clip_update

from .dp_rounds import Vector, aggregator, noise_of_rounds, one_round, spec_of

SPEC = spec_of(200, 300)
NUM_SITES = 11
NORMS = np.sort(np.random.default_rng(3).lognormal(mean=0.0, sigma=0.5, size=NUM_SITES))
QUIET = {
    "num_sites": NUM_SITES,
    "noise_multiplier": 1e-6,
    "count_noise": 1e-3,
    "adaptive_clipping": True,
}


def updates(seed: int = 0) -> list[np.ndarray]:
    """One direction for each site, of the norms `NORMS`."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(NUM_SITES, SPEC.num_elements))
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return list(unit * NORMS[:, None])


def train(one: StrategyAggregator, num_rounds: int, *, start: Vector) -> list[float]:
    """Clipping norms of the rounds; sites clip as the manifest says, the server clips what comes."""
    vector, norms = start, []
    cohort = [f"site-{i}" for i in range(NUM_SITES)]
    for number in range(1, num_rounds + 1):
        norm = float(one.configure(number, vector, cohort)["clipping_norm"])
        trained = [(vector + update).astype(np.float32) for update in updates(number)]
        sent = [clip_update(vector, model, norm)[0] for model in trained]
        vector = one_round(one, number, vector, sent, cohort=NUM_SITES).vector
        norms.append(norm)
    return norms


@pytest.mark.parametrize("first", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [0.0, 3.0])  # of the model: float32 rounding depends on it
def test_norm_converges_to_the_median_from_either_side(first: float, size: float) -> None:
    start = np.full(SPEC.num_elements, size, dtype=np.float32)
    norms = train(aggregator(SPEC, clipping_norm=first, **QUIET), 80, start=start)
    assert np.mean(norms[-10:]) == pytest.approx(np.median(NORMS), rel=0.05)


@pytest.mark.parametrize("quantile", [0.2, 0.8])
def test_norm_converges_to_the_quantile_that_was_asked_for(quantile: float) -> None:
    one = aggregator(SPEC, clipping_norm=1.0, target_quantile=quantile, **QUIET)
    norm = np.mean(train(one, 120, start=np.zeros(SPEC.num_elements, np.float32))[-10:])
    below = np.mean(norm >= NORMS)
    assert abs(below - quantile) <= 1 / NUM_SITES


def test_norm_grows_when_all_are_clipped_and_shrinks_when_none_is() -> None:
    zero = np.zeros(SPEC.num_elements, np.float32)
    small = train(aggregator(SPEC, clipping_norm=1e-3, **QUIET), 2, start=zero)
    large = train(aggregator(SPEC, clipping_norm=1e3, **QUIET), 2, start=zero)
    assert small[1] / small[0] == pytest.approx(np.exp(0.2 * 0.5), rel=1e-3)
    assert large[1] / large[0] == pytest.approx(np.exp(-0.2 * 0.5), rel=1e-3)


def test_noise_of_a_round_is_made_with_the_norm_that_clipped_it() -> None:
    wide = spec_of(200_000)
    options = {"num_sites": 20, "noise_multiplier": 1.0, "adaptive_clipping": True}
    one = aggregator(wide, clipping_norm=1.0, clipping_learning_rate=3.0, **options)
    noise, results = noise_of_rounds(one, wide, 3, num_replies=20)
    norms = []
    for row, result in zip(noise, results, strict=True):
        release = result.site_level
        assert release is not None
        multiplier = (1.0**-2 - (2 * 1.0) ** -2) ** -0.5  # sigma_b = 20 / 20
        assert row.std() == pytest.approx(multiplier * release.clipping_norm / 20, rel=0.01)
        assert release.noise_std == pytest.approx(row.std(), rel=0.01)
        norms.append(release.clipping_norm)
    assert norms[0] == 1.0
    assert norms[1] < 0.5  # updates of zero are never clipped, so the norm has shrunk a lot
    next_norm = one.configure(4, results[-1].vector, [f"site-{i}" for i in range(20)])
    assert next_norm["clipping_norm"] < norms[2]


def test_both_releases_of_a_round_compose_to_the_studys_multiplier() -> None:
    strategy = DpFedAvg(
        num_sites=40, noise_multiplier=1.7, clipping_norm=1.0, adaptive_clipping=True
    )
    release = strategy.planned_releases(1)[0]
    assert release.quantile_multiplier == 2 * 40 / 20
    inverse = release.noise_multiplier**-2 + release.quantile_multiplier**-2
    assert inverse**-0.5 == pytest.approx(1.7, rel=1e-12)


@pytest.mark.parametrize("num_sites", [3, 5, 10])
def test_few_sites_cannot_adapt(num_sites: int) -> None:
    with pytest.raises(ConfigError, match="few sites the clipping norm cannot adapt") as caught:
        aggregator(SPEC, num_sites=num_sites, noise_multiplier=1.0, adaptive_clipping=True)
    assert caught.value.code == "FH-STRATEGY-043"


def test_one_vote_moves_the_count_by_its_sensitivity() -> None:
    """Joining changes the count by one half either way; 2 sigma_b is the noise over that."""
    rule = AdaptiveClipping(
        noise_multiplier=1.0,
        num_sites=10,
        target_quantile=0.5,
        learning_rate=1.0,
        count_noise=5.0,
    )

    def share(num_unclipped: int, num_replies: int) -> float:
        randomness = Randomness.seeded_for_tests(bytes(32))
        norm = rule.next_norm(
            1.0, num_unclipped=num_unclipped, num_replies=num_replies, randomness=randomness
        )
        return float(-np.log(norm) * 10)

    assert share(5, 9) - share(4, 8) == pytest.approx(0.5)
    assert share(4, 9) - share(4, 8) == pytest.approx(-0.5)
    assert rule.count_multiplier == 5.0 / 0.5


def test_norm_survives_a_restart() -> None:
    one = aggregator(SPEC, clipping_norm=1.0, **QUIET)
    zero = np.zeros(SPEC.num_elements, np.float32)
    train(one, 3, start=zero)
    wanted = one.configure(4, zero, ["site-0", "site-1"])
    resumed = aggregator(SPEC, clipping_norm=1.0, **QUIET)
    resumed.load_state_dict({name: array.copy() for name, array in one.state_dict().items()})
    assert resumed.configure(4, zero, ["site-0", "site-1"]) == wanted
    resumed.load_state_dict({})
    assert resumed.configure(1, zero, ["site-0", "site-1"]) == {"clipping_norm": 1.0}


def test_state_without_its_norm_is_refused() -> None:
    one = aggregator(SPEC, clipping_norm=1.0, **QUIET)
    train(one, 1, start=np.zeros(SPEC.num_elements, np.float32))
    state = one.state_dict()
    del state["clipping_norm"]
    with pytest.raises(AggregationError) as caught:
        aggregator(SPEC, clipping_norm=1.0, **QUIET).load_state_dict(state)
    assert caught.value.code == "FH-STRATEGY-045"


def test_norm_stays_inside_its_bounds() -> None:
    rule = AdaptiveClipping(
        noise_multiplier=1.0,
        num_sites=2,
        target_quantile=0.5,
        learning_rate=10.0,
        count_noise=1e6,
    )
    randomness = Randomness.seeded_for_tests(bytes(32))
    norm = 1.0
    for _ in range(50):
        norm = rule.next_norm(norm, num_unclipped=1, num_replies=2, randomness=randomness)
        assert 1e-12 <= norm <= 1e6
