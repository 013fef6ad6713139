"""The bound of the one-run audit against figures printed in the paper, scipy, and a mechanism of known epsilon."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedhealth.errors import UsageError
from fedhealth.privacy.audit.one_run import (
    Guesses,
    epsilon_ceiling,
    epsilon_lower_bound,
    guess_extremes,
    p_value,
)


def made(m: int, r: int, v: int) -> Guesses:
    return Guesses(num_canaries=m, num_guesses=r, num_correct=v)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "printed"),
    [
        (100, 100, 75, 0.0, 0.702),
        (100, 100, 75, 1e-4, 0.699),
        (1000, 100, 75, 1e-4, 0.673),  # appendix D
        (100_000, 1510, 1439, 1e-5, 2.675),  # section 7, figure 11
    ],
)
def test_bound_reproduces_the_paper(m: int, r: int, v: int, delta: float, printed: float) -> None:
    # One unit in the last printed digit: the paper rounds some values and truncates others.
    assert epsilon_lower_bound(made(m, r, v), delta=delta) == pytest.approx(printed, abs=1e-3)


@pytest.mark.parametrize(
    ("r", "ceiling"), [(30, 2.25), (60, 2.97), (100, 3.49), (200, 4.19), (1000, 5.81)]
)
def test_ceiling_without_delta(r: int, ceiling: float) -> None:
    assert epsilon_ceiling(r, delta=0.0) == pytest.approx(ceiling, abs=0.005)
    # All right with chance q^r = 0.05, in closed form.
    right = 0.05 ** (1 / r)
    assert epsilon_ceiling(r, delta=0.0) == pytest.approx(math.log(right / (1 - right)), abs=1e-6)


def test_ceiling_falls_with_delta_and_with_abstentions() -> None:
    assert epsilon_ceiling(100, delta=1e-3) < epsilon_ceiling(100, delta=0.0)
    assert epsilon_ceiling(100, num_canaries=1000, delta=1e-4) < epsilon_ceiling(100, delta=1e-4)


@settings(deadline=None, max_examples=25)
@given(
    m=st.integers(1, 150),
    share=st.floats(0, 1),
    right=st.floats(0, 1),
    epsilon=st.floats(0, 8),
    delta=st.floats(0, 0.01),
)
def test_p_value_is_the_theorem_worked_out_with_scipy(
    m: int, share: float, right: float, epsilon: float, delta: float
) -> None:
    r = round(m * share)
    v = round(r * right)

    def tail(count: int) -> float:
        return float(stats.binom.sf(count - 1, r, 1 / (1 + math.exp(-epsilon))))

    worst = max((tail(v - i) - tail(v)) / i for i in range(1, m + 1))
    expected = min(1.0, tail(v) + 2 * m * delta * worst)
    assert p_value(made(m, r, v), epsilon=epsilon, delta=delta) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(v=st.integers(0, 100), delta=st.sampled_from([0.0, 1e-5, 1e-3]))
def test_more_right_guesses_never_lower_the_bound(v: int, delta: float) -> None:
    bounds = [epsilon_lower_bound(made(120, 100, n), delta=delta) for n in (v, min(v + 1, 100))]
    assert 0.0 <= bounds[0] <= bounds[1] + 1e-9


def test_bound_of_randomised_response_is_below_its_epsilon_in_95_of_100_runs() -> None:
    """Randomised response is the mechanism for which the theorem is tight: each guess is right with q."""
    epsilon, runs = 1.5, 2000
    right = 1 / (1 + math.exp(-epsilon))
    counts = np.random.default_rng(1).binomial(300, right, size=runs)
    bounds = {n: epsilon_lower_bound(made(300, 300, int(n)), delta=0.0) for n in set(counts)}
    too_high = sum(bounds[n] > epsilon for n in counts) / runs
    assert too_high <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert np.median([bounds[n] for n in counts]) > 1.2  # and it is not idle


def test_extremes_are_guessed_and_the_middle_is_not() -> None:
    scores = np.array([5.0, 4.0, 0.1, 0.0, -0.1, -4.0, -5.0])
    included = np.array([True, True, False, True, True, False, True])
    found = guess_extremes(scores, included, 4)
    assert (found.num_canaries, found.num_guesses, found.num_correct) == (7, 4, 3)
    assert guess_extremes(scores, included, 0).num_correct == 0


def test_random_scores_bound_nothing() -> None:
    rng = np.random.default_rng(3)
    bounds = []
    for _ in range(200):
        included = rng.random(300) < 0.5
        guesses = guess_extremes(rng.normal(size=300), included, 100)
        bounds.append(epsilon_lower_bound(guesses, delta=1e-4))
    assert np.mean(np.array(bounds) > 0) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="FH-AUDIT-001"):
        made(10, 11, 3)
    with pytest.raises(UsageError, match="FH-AUDIT-001"):
        made(10, 5, 6)


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UsageError, match="FH-AUDIT-002"):
        guess_extremes(np.array([1.0, np.nan]), np.array([True, False]), 2)
