"""The weighted mean: right to 1e-6, exact for one site, blind to how tensors are cut."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedhealth.config.study import PluginChoice, RunPlan
from fedhealth.contracts.aggregation import SiteReply
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.flower.strategy_adapter import StrategyAggregator, build_aggregator
from fedhealth.testing.flower_task import flower_task

FINITE = st.floats(-1e4, 1e4, width=32)
SIZE = st.integers(1, 100_000)
SHAPE = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@pytest.fixture(autouse=True)
def _in_a_task() -> Iterator[None]:
    with flower_task():
        yield


def aggregator(spec: TensorSpec, name: str = "fedavg", **options: object) -> StrategyAggregator:
    run = RunPlan(
        name="property",
        num_rounds=1,
        strategy=PluginChoice.model_validate({"name": name, "options": options}),
    )
    return build_aggregator(run, spec, min_cohort=2)


def spec_of(shapes: list[tuple[int, ...]]) -> TensorSpec:
    return TensorSpec.of({f"t{i}": np.zeros(s, dtype=np.float32) for i, s in enumerate(shapes)})


def fold(
    one: StrategyAggregator, vectors: list[NDArray[np.float32]], sizes: list[int]
) -> NDArray[np.float32]:
    replies = [
        SiteReply(
            site_id=f"site-{i}",
            weight=float(size),
            load_vector=lambda vector=vector: vector,  # type: ignore[misc]
            train_metrics={},
            evaluate_metrics={},
        )
        for i, (vector, size) in enumerate(zip(vectors, sizes, strict=True))
    ]
    return one.aggregate(1, iter(replies)).vector


@st.composite
def rounds(
    draw: st.DrawFn,
) -> tuple[list[tuple[int, ...]], list[NDArray[np.float32]], list[int]]:
    shapes = draw(st.lists(SHAPE, min_size=1, max_size=4))
    count = sum(int(np.prod(shape)) for shape in shapes)
    vector = hnp.arrays(np.float32, count, elements=FINITE)
    vectors = draw(st.lists(vector, min_size=2, max_size=6))
    sizes = [draw(SIZE) for _ in vectors]
    return shapes, vectors, sizes


@given(rounds())
@settings(deadline=None, max_examples=40)
def test_fedavg_is_the_weighted_mean(
    case: tuple[list[tuple[int, ...]], list[NDArray[np.float32]], list[int]],
) -> None:
    shapes, vectors, sizes = case
    result = fold(aggregator(spec_of(shapes)), vectors, sizes)
    exact = np.average(np.stack(vectors).astype(np.longdouble), axis=0, weights=sizes)
    # The only rounding that counts is the last one, to float32; cancellation is left to float64.
    scale = np.abs(np.stack(vectors)).max(axis=0)
    np.testing.assert_array_less(
        np.abs(result - exact), 6e-8 * np.abs(exact) + 1e-13 * scale + 1e-44
    )


@given(rounds())
@settings(deadline=None, max_examples=40)
def test_uniform_weighting_forgets_sizes(
    case: tuple[list[tuple[int, ...]], list[NDArray[np.float32]], list[int]],
) -> None:
    shapes, vectors, sizes = case
    spec = spec_of(shapes)
    uniform = fold(aggregator(spec, weighting="uniform"), vectors, sizes)
    alike = fold(aggregator(spec), vectors, [1] * len(sizes))
    assert uniform.tobytes() == alike.tobytes()


@given(hnp.arrays(np.float32, 7, elements=FINITE), st.lists(SIZE, min_size=2, max_size=6))
@settings(deadline=None, max_examples=40)
def test_sites_that_agree_get_their_own_bits_back(
    vector: NDArray[np.float32], sizes: list[int]
) -> None:
    result = fold(aggregator(spec_of([(7,)])), [vector] * len(sizes), sizes)
    np.testing.assert_array_equal(result, vector)


@given(st.integers(1, 200_000), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_cut_into_tensors_changes_no_bit(cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = [rng.normal(size=200_001).astype(np.float32) for _ in range(3)]
    whole = fold(aggregator(spec_of([(200_001,)])), vectors, [3, 5, 7])
    parts = fold(aggregator(spec_of([(cut,), (200_001 - cut,)])), vectors, [3, 5, 7])
    assert whole.tobytes() == parts.tobytes()


@given(rounds())
@settings(deadline=None, max_examples=40)
def test_stock_fedavg_agrees_with_ours(
    case: tuple[list[tuple[int, ...]], list[NDArray[np.float32]], list[int]],
) -> None:
    shapes, vectors, sizes = case
    spec = spec_of(shapes)
    ours = fold(aggregator(spec), vectors, sizes)
    stock = fold(aggregator(spec, "flower-fedavg"), vectors, sizes)
    scale = float(np.abs(np.stack(vectors)).max()) + 1e-30
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-6 * scale)
