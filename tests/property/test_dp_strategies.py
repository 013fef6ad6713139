"""Clipping, and what one site can do to a model, for any numbers."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedhealth.config.study import PluginChoice, RunPlan
from fedhealth.contracts.aggregation import SiteReply
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import PrivacyError
from fedhealth.flower.strategy_adapter import build_aggregator
from fedhealth.privacy.accounting.matrix_mechanism import prefix_error, row_sums, sensitivity
from fedhealth.privacy.randomness import Randomness
from fedhealth.privacy.update_clipping import clip_update
from fedhealth.testing.flower_task import flower_task

Vector = NDArray[np.float32]

SIZE = 6
ANY = hnp.arrays(
    np.float32, SIZE, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
MILD = hnp.arrays(np.float32, SIZE, elements=st.floats(-1e3, 1e3, width=32))
NORM = st.floats(1e-6, 1e6)
SPEC = TensorSpec.of({"a": np.zeros((2, 2), np.float32), "b": np.zeros((2,), np.float32)})


@pytest.fixture(autouse=True)
def _in_a_task() -> Iterator[None]:
    with flower_task():
        yield


def distance(left: Vector, right: Vector) -> float:
    return math.sqrt(
        math.fsum(float(b - a) ** 2 for a, b in zip(left.tolist(), right.tolist(), strict=True))
    )


@given(start=ANY, new=ANY, norm=NORM)
@settings(max_examples=400, deadline=None)
def test_nothing_longer_than_the_norm_leaves(start: Vector, new: Vector, norm: float) -> None:
    try:
        sent, was_clipped = clip_update(start, new, norm)
    except PrivacyError as error:
        if error.code != "FH-PRIVACY-081":
            raise
        return
    assert distance(start, sent) <= norm
    assert was_clipped == (sent is not new)
    assert was_clipped or distance(start, new) <= norm


@given(start=MILD, new=MILD, norm=st.floats(0.1, 1e6))
@settings(max_examples=200, deadline=None)
def test_clipping_twice_is_clipping_once(start: Vector, new: Vector, norm: float) -> None:
    once, _ = clip_update(start, new, norm)
    twice, was_clipped = clip_update(start, once, norm)
    assert not was_clipped
    assert twice is once


@given(
    start=MILD,
    models=st.lists(ANY, min_size=2, max_size=4),
    rogue=ANY,
    norm=st.floats(0.1, 100),
    multiplier=st.floats(1e-3, 10),
    name=st.sampled_from(["dp-fedavg", "dp-ftrl"]),
)
@settings(max_examples=100, deadline=None)
def test_a_site_more_moves_the_model_by_at_most_norm_over_sites(
    *,
    start: Vector,
    models: list[Vector],
    rogue: Vector,
    norm: float,
    multiplier: float,
    name: str,
) -> None:
    shifted = [
        aggregated(start, each, norm, multiplier, name) for each in (models, [*models, rogue])
    ]
    # The model is float32: its rounding is not the mechanism's, which adds noise to a float64 sum.
    rounding = 2.0**-23 * sum(float(np.linalg.norm(v.astype(float))) for v in shifted)
    assert distance(shifted[0], shifted[1]) <= norm / 5 * (1 + 1e-9) + rounding


def aggregated(
    start: Vector, models: list[Vector], norm: float, multiplier: float, name: str
) -> Vector:
    options = {"num_sites": 5, "noise_multiplier": multiplier, "clipping_norm": norm}
    run = RunPlan(
        name="dp",
        num_rounds=4,
        strategy=PluginChoice.model_validate({"name": name, "options": options}),
    )
    one = build_aggregator(run, SPEC, min_cohort=2)
    one.strategy.randomness_of_round = lambda _: Randomness.seeded_for_tests(bytes(32))  # type: ignore[attr-defined]
    one.configure(1, start, [f"site-{i}" for i in range(5)])
    replies = [
        SiteReply(
            site_id=f"site-{i}",
            weight=1.0,
            load_vector=lambda model=model: model,  # type: ignore[misc]
            train_metrics={},
            evaluate_metrics={},
        )
        for i, model in enumerate(models)
    ]
    return one.aggregate(1, iter(replies)).vector


@given(bands=st.integers(1, 40), num_rounds=st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_rounds_compose_to_the_whole_and_no_mechanism_beats_the_bound(
    bands: int, num_rounds: int
) -> None:
    rows = row_sums(bands, num_rounds)
    assert math.fsum(rows**2) == pytest.approx(sensitivity(bands, num_rounds) ** 2, rel=1e-12)
    assert (np.diff(rows) >= 0).all()
    assert prefix_error(bands, num_rounds).last >= num_rounds * (1 - 1e-12)


@given(start=MILD, norm=st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_an_update_of_zero_is_never_clipped(start: Vector, norm: float) -> None:
    assume(np.isfinite(start).all())
    sent, was_clipped = clip_update(start, start.copy(), norm)
    assert not was_clipped
    np.testing.assert_array_equal(sent, start)
