"""DP-FedAvg: what one site can move, what noise lies on it, and that the account says the same."""

import tracemalloc

import numpy as np
import pytest
from fedhealth_strategies.dp_fedavg import DpFedAvg
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from fedhealth.config.study import PluginChoice, RunPlan
from fedhealth.errors import AggregationError, ConfigError, EvidenceError
from fedhealth.flower.cohort_grid import CohortGrid
from fedhealth.flower.strategy_adapter import StrategyAggregator
from fedhealth.flower.strategy_options import make_strategy

from .dp_rounds import NO_NOISE, Vector, aggregator, noise_of_rounds, one_round, reply, spec_of

SPEC = spec_of(300, 700)
WIDE = spec_of(60_000, 140_000)


def random_models(count: int, seed: int = 1, scale: float = 1.0) -> list[Vector]:
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=1000)).astype(np.float32) for _ in range(count)]


def clipped(update: np.ndarray, norm: float) -> np.ndarray:
    """The formula of the paper, in one line."""
    return update * min(1.0, norm / max(float(np.linalg.norm(update)), 1e-300))


def test_model_is_the_sum_of_clipped_updates_over_the_public_number_of_sites() -> None:
    start, *models = random_models(4)
    short = start + np.float32(0.001) * models[2]
    result = one_round(aggregator(SPEC), 1, start, [models[0], models[1], short])
    wanted = start.astype(np.float64)
    for model in (models[0], models[1], short):
        wanted = wanted + clipped(model.astype(np.float64) - start, 1.0) / 4
    np.testing.assert_allclose(result.vector, wanted, atol=2e-7)


def test_one_norm_is_over_all_tensors_together() -> None:
    start = np.zeros(1000, dtype=np.float32)
    huge = np.full(1000, 50.0, dtype=np.float32)
    moved = one_round(aggregator(SPEC), 1, start, [huge, start]).vector.astype(np.float64)
    assert 4 * np.linalg.norm(moved) == pytest.approx(1.0, rel=1e-5)
    assert np.linalg.norm(moved[:300]) ** 2 / np.linalg.norm(moved) ** 2 == pytest.approx(0.3)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e6, 1e38])
def test_a_site_that_joins_moves_the_model_by_at_most_the_sensitivity(size: float) -> None:
    start, *models = random_models(4)
    rogue = (size * np.sign(models[0])).astype(np.float32)
    options = {"noise_multiplier": 1.5, "clipping_norm": 0.7}
    without = one_round(aggregator(SPEC, **options), 1, start, models)
    with_it = one_round(aggregator(SPEC, **options), 1, start, [*models, rogue])
    assert without.site_level is not None
    shift = np.linalg.norm(with_it.vector.astype(np.float64) - without.vector)
    assert shift <= without.site_level.clipping_norm / 4 * (1 + 1e-5)
    assert shift > 0.7 / 4 * 0.99


def test_a_replaced_update_is_one_site_less_and_one_more() -> None:
    start, *models = random_models(5)
    options = {"noise_multiplier": 1.0, "clipping_norm": 0.5}
    honest = one_round(aggregator(SPEC, **options), 1, start, models)
    opposite = (start - 1e9 * (models[0] - start)).astype(np.float32)
    replaced = one_round(aggregator(SPEC, **options), 1, start, [opposite, *models[1:]])
    shift = np.linalg.norm(replaced.vector.astype(np.float64) - honest.vector)
    assert shift == pytest.approx(2 * 0.5 / 4, rel=1e-5)


@pytest.mark.parametrize("num_replies", [4, 3, 2])
def test_noise_over_sensitivity_is_the_accounts_multiplier_whoever_drops_out(
    num_replies: int,
) -> None:
    one = aggregator(WIDE, noise_multiplier=1.3, clipping_norm=0.2)
    noise, results = noise_of_rounds(one, WIDE, 2, num_replies=num_replies)
    for row, result in zip(noise, results, strict=True):
        release = result.site_level
        assert release is not None
        sensitivity = release.clipping_norm / release.denominator
        # 200 000 values give a standard deviation to 0.16 %; 1 % is six of that.
        assert row.std() / sensitivity == pytest.approx(release.noise_multiplier, rel=0.01)
        assert row.std() == pytest.approx(release.noise_std, rel=0.01)
        assert abs(row.mean()) < 5 * release.noise_std / np.sqrt(row.size)
        assert release.num_replies == num_replies
    assert abs(np.corrcoef(noise)[0, 1]) < 0.015


def test_declared_sizes_have_no_effect_on_the_model() -> None:
    start, *models = random_models(5)
    even = one_round(aggregator(SPEC), 1, start, models, weights=[1, 1, 1, 1])
    uneven = one_round(aggregator(SPEC), 1, start, models, weights=[970, 10, 10, 10])
    assert even.vector.tobytes() == uneven.vector.tobytes()


def test_updates_of_zero_change_nothing_but_noise() -> None:
    start = random_models(1)[0]
    result = one_round(aggregator(SPEC), 1, start, [start, start, start])
    np.testing.assert_allclose(result.vector, start, atol=1e-8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused_and_costs_nothing(value: float) -> None:
    start, *models = random_models(4)
    broken = models[0].copy()
    broken[777] = value
    one = aggregator(SPEC, noise_multiplier=1.0)
    with pytest.raises(AggregationError):
        one_round(one, 1, start, [models[1], broken])
    assert one.state_dict() == {}


def test_a_round_that_failed_costs_nothing_and_can_be_done_again() -> None:
    def unreadable() -> Vector:
        raise EvidenceError("FH-CONTRACT-001", "the spooled reply does not read.")

    start, *models = random_models(4)
    one = aggregator(SPEC, noise_multiplier=1.0, seed=None)
    one.configure(1, start, ["site-0", "site-1"])
    broken = reply(1, models[1])
    object.__setattr__(broken, "load_vector", unreadable)
    with pytest.raises(EvidenceError):
        one.aggregate(1, iter([reply(0, models[0]), broken]))
    assert one.state_dict() == {}
    result = one_round(one, 1, start, models)
    assert result.site_level_so_far == (result.site_level,)


def test_noise_is_the_operating_systems_unless_a_test_says_so() -> None:
    start, *models = random_models(4)
    results = [
        one_round(aggregator(SPEC, noise_multiplier=1.0, seed=None), 1, start, models)
        for _ in range(2)
    ]
    assert {r.site_level.generator for r in results if r.site_level} == {"chacha20"}
    assert not np.array_equal(results[0].vector, results[1].vector)


def test_a_round_comes_once_and_in_order() -> None:
    start, *models = random_models(4)
    one = aggregator(SPEC)
    one_round(one, 1, start, models)
    for number in (1, 3):
        with pytest.raises(AggregationError) as caught:
            one_round(one, number, start, models)
        assert caught.value.code == "FH-STRATEGY-058"


def test_a_run_does_not_go_on_without_its_account() -> None:
    start, *models = random_models(4)
    one = aggregator(SPEC)
    one.load_state_dict({})
    with pytest.raises(AggregationError) as caught:
        one_round(one, 6, start, models)
    assert caught.value.code == "FH-STRATEGY-058"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"num_sites": 1}, "FH-STRATEGY-042"),
        ({"noise_multiplier": 0.0}, "FH-STRATEGY-042"),
        ({"noise_multiplier": -1.0}, "FH-STRATEGY-042"),
        ({"clipping_norm": 0.0}, "FH-STRATEGY-042"),
        ({"clipping_norm": 1e7}, "FH-STRATEGY-042"),
        ({"tau": 0.0}, "FH-STRATEGY-042"),
        ({"beta_1": 1.0}, "FH-STRATEGY-042"),
        ({"server_learning_rate": -1.0}, "FH-STRATEGY-042"),
        ({"server_optimizer": "adagrad"}, "FH-STRATEGY-014"),
        ({"weighting": "size"}, "FH-STRATEGY-013"),
        ({"sampling_rate": 0.1}, "FH-STRATEGY-013"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        aggregator(SPEC, **options)
    assert caught.value.code == code


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_noise_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        DpFedAvg(num_sites=3, noise_multiplier=value, clipping_norm=1.0)
    assert caught.value.code == "FH-STRATEGY-042"


def test_fewer_sites_than_the_minimum_cohort_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        DpFedAvg(num_sites=3, noise_multiplier=1.0, clipping_norm=1.0).check_run(
            num_rounds=5, min_cohort=4
        )
    assert caught.value.code == "FH-STRATEGY-044"


def test_more_sites_than_the_denominator_are_refused_before_they_train() -> None:
    with pytest.raises(ConfigError) as caught:
        aggregator(SPEC).configure(1, np.zeros(1000, np.float32), [f"site-{i}" for i in range(5)])
    assert caught.value.code == "FH-STRATEGY-044"


def test_more_replies_than_the_denominator_are_refused() -> None:
    start, *models = random_models(6)
    one = aggregator(SPEC)
    one.configure(1, start, ["site-0", "site-1"])
    with pytest.raises(AggregationError) as caught:
        one.aggregate(1, iter([reply(i, m) for i, m in enumerate(models)]))
    assert caught.value.code == "FH-STRATEGY-048"


def test_sites_are_told_the_clipping_norm_and_nothing_else() -> None:
    one = aggregator(SPEC, clipping_norm=0.25)
    assert one.configure(1, np.zeros(1000, np.float32), ["a", "b"]) == {"clipping_norm": 0.25}


def test_planned_releases_are_those_of_a_run() -> None:
    one = aggregator(SPEC, noise_multiplier=2.0, seed=None)
    _, results = noise_of_rounds(one, SPEC, 3)
    planned = one.strategy.planned_releases(3)  # type: ignore[attr-defined]
    assert results[-1].site_level_so_far == planned


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_server_optimiser_steps_from_the_noised_mean(kind: str) -> None:
    start, *models = random_models(7)
    one = aggregator(
        SPEC, server_optimizer=kind, server_learning_rate=0.1, tau=0.01, clipping_norm=5.0
    )
    x, m, v = start.astype(np.float64), np.zeros(1000), np.full(1000, 0.01**2)
    vector = start
    for number in (1, 2):
        returned = models[3 * number - 3 : 3 * number]
        vector = one_round(one, number, vector, returned).vector
        delta = sum(clipped(r.astype(np.float64) - x, 5.0) for r in returned) / 4
        m = 0.9 * m + 0.1 * delta
        sign = np.sign(v - delta**2)
        v = 0.99 * v + 0.01 * delta**2 if kind == "adam" else v - 0.01 * delta**2 * sign
        x = x + 0.1 * m / (np.sqrt(v) + 0.01)
    np.testing.assert_allclose(vector, x, rtol=1e-4, atol=1e-5)
    assert len(one.state_dict()) == 1 + 2 * 2


@pytest.mark.parametrize("num_tensors", [1, 8])
def test_memory_is_three_models_whatever_the_number_of_sites(num_tensors: int) -> None:
    spec = spec_of(*[2_000_000 // num_tensors] * num_tensors)
    model_bytes = 4 * spec.num_elements
    start = np.zeros(spec.num_elements, dtype=np.float32)
    one = aggregator(spec, num_sites=6, noise_multiplier=1.0)
    one.configure(1, start, [f"site-{i}" for i in range(6)])
    replies = [reply(i, start) for i in range(6)]
    for one_reply in replies:
        object.__setattr__(one_reply, "load_vector", lambda: np.ones_like(start))
    tracemalloc.start()
    one.aggregate(1, iter(replies))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    blocks = 6 * 8 * 2**16  # float64 temporaries of one block each, whatever the model
    assert peak < 3 * model_bytes + blocks


def test_account_reaches_the_checkpoint_with_the_least_noise_too() -> None:
    one = aggregator(SPEC)
    _, results = noise_of_rounds(one, SPEC, 2)
    again = aggregator(SPEC)
    again.load_state_dict({n: a.copy() for n, a in one.state_dict().items()})
    assert again.strategy.releases == results[-1].site_level_so_far  # type: ignore[attr-defined]
    assert results[-1].site_level_so_far[0].noise_multiplier == NO_NOISE


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda rows: rows[:, :6], "FH-STRATEGY-049"),
        (lambda rows: -rows, "FH-STRATEGY-049"),
        (lambda rows: rows * np.nan, "FH-STRATEGY-049"),
        (lambda rows: rows.astype(np.float32), "FH-STRATEGY-049"),
        (lambda rows: rows + [0, 0, 0, 1, 0, 0, 0], "FH-STRATEGY-045"),  # noqa: RUF005 - adds
        (lambda rows: rows + [0, 0, 0, 0, 0, 0, 9], "FH-STRATEGY-049"),  # noqa: RUF005
    ],
)
def test_a_damaged_account_is_refused(change: object, code: str) -> None:
    one = aggregator(SPEC)
    noise_of_rounds(one, SPEC, 2)
    state = one.state_dict()
    state["releases"] = change(state["releases"])  # type: ignore[operator]
    with pytest.raises(AggregationError) as caught:
        aggregator(SPEC).load_state_dict(state)
    assert caught.value.code == code


def test_state_of_another_strategy_is_refused() -> None:
    one = aggregator(SPEC, server_optimizer="adam")
    noise_of_rounds(one, SPEC, 1)
    with pytest.raises(AggregationError) as caught:
        aggregator(SPEC).load_state_dict(one.state_dict())
    assert caught.value.code == "FH-STRATEGY-045"


def test_a_study_for_more_sites_than_the_denominator_is_refused_when_it_is_checked() -> None:
    run = RunPlan(
        name="dp",
        num_rounds=3,
        strategy=PluginChoice(
            name="dp-fedavg",
            options={"num_sites": 5, "noise_multiplier": 1.0, "clipping_norm": 1.0},
        ),
    )
    make_strategy(run, min_cohort=5)
    with pytest.raises(ConfigError) as caught:
        make_strategy(run, min_cohort=6)
    assert caught.value.code == "FH-STRATEGY-044"


def plain(value: float, dtype: type = np.float32) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.full((2, 2), value, dtype=dtype))}),
            "metrics": MetricRecord({"num-examples": 7, "loss": value}),
        }
    )
    return Message(content, 1, MessageType.TRAIN)


def test_it_works_with_flowers_plain_messages_too() -> None:
    strategy = DpFedAvg(num_sites=2, noise_multiplier=NO_NOISE, clipping_norm=1.0)
    origin = ArrayRecord({"w": Array(np.zeros((2, 2), dtype=np.float32))})
    config = ConfigRecord()
    strategy.configure_train(1, origin, config, CohortGrid(["a", "b"]))
    assert config["clipping_norm"] == 1.0
    failed = Message(Error(code=1), reply_to=Message(RecordDict(), 1, MessageType.TRAIN))
    arrays, metrics = strategy.aggregate_train(1, [failed, plain(3.0), plain(0.25, np.float64)])
    assert arrays is not None
    assert metrics is not None
    np.testing.assert_allclose(arrays["w"].numpy(), (0.5 + 0.25) / 2, rtol=1e-6)
    assert dict(metrics) == {"loss": 1.625}


def test_a_round_without_replies_gives_no_model_and_costs_nothing() -> None:
    strategy = DpFedAvg(num_sites=2, noise_multiplier=1.0, clipping_norm=1.0)
    origin = ArrayRecord({"w": Array(np.zeros((2, 2), dtype=np.float32))})
    for number in (1, 2):
        strategy.configure_train(number, origin, ConfigRecord(), CohortGrid(["a", "b"]))
        assert strategy.aggregate_train(number, []) == (None, None)
    assert strategy.take_release() is None
    strategy.configure_train(3, origin, ConfigRecord(), CohortGrid(["a", "b"]))
    strategy.aggregate_train(3, [plain(1.0), plain(2.0)])
    assert len(strategy.releases) == 1


def test_replies_without_a_round_are_refused() -> None:
    strategy = DpFedAvg(num_sites=2, noise_multiplier=1.0, clipping_norm=1.0)
    with pytest.raises(AggregationError) as caught:
        strategy.aggregate_train(1, [plain(1.0)])
    assert caught.value.code == "FH-STRATEGY-047"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_the_strategy_itself_refuses_what_has_no_norm(value: float) -> None:
    strategy = DpFedAvg(num_sites=2, noise_multiplier=1.0, clipping_norm=1.0)
    origin = ArrayRecord({"w": Array(np.zeros((2, 2), dtype=np.float32))})
    strategy.configure_train(1, origin, ConfigRecord(), CohortGrid(["a", "b"]))
    with pytest.raises(AggregationError) as caught:
        strategy.aggregate_train(1, [plain(1.0), plain(value, np.float64)])
    assert caught.value.code == "FH-STRATEGY-046"


class _Forgetful(DpFedAvg):
    """Adds noise, and does not say so."""

    def take_release(self) -> None:
        return None


def test_a_round_that_cannot_say_what_it_released_is_void() -> None:
    strategy = _Forgetful(num_sites=4, noise_multiplier=1.0, clipping_norm=1.0)
    start, *models = random_models(3)
    with pytest.raises(AggregationError) as caught:
        one_round(StrategyAggregator(strategy, SPEC, min_cohort=2), 1, start, models)
    assert caught.value.code == "FH-STRATEGY-056"
