"""Clipping a whole update: what goes out is never longer than the norm, rounding included."""

import math
import tracemalloc

import numpy as np
import pytest

from fedhealth.errors import PrivacyError
from fedhealth.privacy.update_clipping import clip_update, counts_as_unclipped, squared_distance

ZERO = np.zeros(1000, dtype=np.float32)


def norm_of(left: np.ndarray, right: np.ndarray) -> float:
    """Exactly rounded sum of squares: an oracle of its own."""
    return math.sqrt(
        math.fsum(float(b - a) ** 2 for a, b in zip(left.tolist(), right.tolist(), strict=True))
    )


def model(seed: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=1000)).astype(np.float32)


def test_a_short_update_passes_as_it_is() -> None:
    new = model(1, 1e-3)
    result, was_clipped = clip_update(ZERO, new, 1.0)
    assert result is new
    assert not was_clipped


@pytest.mark.parametrize("model_scale", [0.0, 1.0, 1e3])
def test_a_long_update_keeps_its_direction_and_gets_the_norm(model_scale: float) -> None:
    start = model(1, model_scale)
    new = (start + model(2, 30.0)).astype(np.float32)
    result, was_clipped = clip_update(start, new, 2.0)
    assert was_clipped
    assert result.dtype == np.float32
    # float32 resolves a model of norm 3e4 to about 2e-3 in all.
    assert 2.0 - 4e-7 * model_scale * 1000**0.5 - 1e-6 <= norm_of(start, result) <= 2.0
    step, wanted = result.astype(float) - start, new.astype(float) - start
    cosine = step @ wanted / np.linalg.norm(step) / np.linalg.norm(wanted)
    assert cosine == pytest.approx(1.0, abs=1e-4)


def test_no_update_at_all_is_fine() -> None:
    start = model(1)
    result, was_clipped = clip_update(start, start.copy(), 1e-3)
    np.testing.assert_array_equal(result, start)
    assert not was_clipped


@pytest.mark.parametrize("value", [1e38, -3e38])
def test_the_largest_values_are_clipped_without_overflow(value: float) -> None:
    new = np.full(1000, value, dtype=np.float32)
    result, was_clipped = clip_update(ZERO, new, 1.0)
    assert was_clipped
    assert norm_of(ZERO, result) == pytest.approx(1.0, rel=1e-6)
    assert norm_of(ZERO, result) <= 1.0


def test_the_smallest_values_are_clipped_without_underflow() -> None:
    new = np.full(1000, 1e-37, dtype=np.float32)
    result, was_clipped = clip_update(ZERO, new, 1e-36)
    assert was_clipped
    assert 0.99e-36 < norm_of(ZERO, result) <= 1e-36


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_refused(value: float, side: int) -> None:
    vectors = [ZERO.copy(), model(1)]
    vectors[side][999] = value
    with pytest.raises(PrivacyError) as caught:
        clip_update(vectors[0], vectors[1], 1.0)
    assert caught.value.code == "FH-PRIVACY-080"


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_that_is_no_positive_number_is_refused(norm: float) -> None:
    with pytest.raises(PrivacyError) as caught:
        clip_update(ZERO, model(1), norm)
    assert caught.value.code == "FH-PRIVACY-082"


def test_a_norm_below_float32s_resolution_is_refused() -> None:
    start = model(1, 1e6)
    with pytest.raises(PrivacyError) as caught:
        clip_update(start, (start + 1e5).astype(np.float32), 1e-3)
    assert caught.value.code == "FH-PRIVACY-081"


def test_vectors_that_cannot_be_compared_are_refused() -> None:
    for other in (model(1)[:-1], model(1).astype(np.float64), model(1).reshape(10, 100)):
        with pytest.raises(PrivacyError) as caught:
            clip_update(ZERO, other, 1.0)
        assert caught.value.code == "FH-PRIVACY-083"


@pytest.mark.parametrize("model_scale", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("norm", [0.01, 1.0])
def test_the_server_sees_that_an_update_was_clipped_and_that_one_was_not(
    model_scale: float, norm: float
) -> None:
    for seed in range(50):
        start = model(seed, model_scale)
        for factor in (0.9, 1.5, 1e3):
            direction = model(1000 + seed).astype(float)
            step = factor * norm * direction / np.linalg.norm(direction)
            sent, was_clipped = clip_update(start, (start + step).astype(np.float32), norm)
            seen = counts_as_unclipped(
                math.sqrt(squared_distance(start, sent)),
                global_norm=float(np.linalg.norm(start.astype(float))),
                clipping_norm=norm,
                size=start.size,
            )
            assert seen == (not was_clipped)
            assert was_clipped == (factor > 1)


def test_memory_is_one_model() -> None:
    start = np.zeros(2_000_000, dtype=np.float32)
    new = np.ones_like(start)
    tracemalloc.start()
    clip_update(start, new, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < start.nbytes + 4 * 8 * 2**16
