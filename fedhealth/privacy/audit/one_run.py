"""From guesses about canaries to a lower bound on epsilon, with one training run. Called by the site's audit.

Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", arXiv 2305.08846: m canaries are each
put in by a fair coin; an attacker guesses r of the coins and abstains from the rest. Under (epsilon, delta)-DP the
number of right guesses is hardly larger than Binomial(r, e^epsilon / (1 + e^epsilon)).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import UsageError

SIGNIFICANCE = 0.05
"""The bound holds with probability 0.95 over coins and noise (the paper's choice)."""
_BISECTION_STEPS = 40
"""Brings an interval of length 1 to 1e-12: far below what a count can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """An attacker's guesses about `num_canaries` fair coins: how many were made, and how many were right."""

    num_canaries: int
    num_guesses: int
    num_correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.num_correct <= self.num_guesses <= self.num_canaries:
            raise UsageError(
                "FH-AUDIT-001",
                f"{self.num_correct} right of {self.num_guesses} guesses about {self.num_canaries} canaries "
                "do not fit together.",
                fix="Guess about each canary at most once.",
            )


def guess_extremes(
    scores: NDArray[np.float64], is_included: NDArray[np.bool_], num_guesses: int
) -> Guesses:
    """Guess "in" for the highest scores and "out" for the lowest, half each; abstain from the middle.

    Algorithm 1 of the paper with k+ = k- = r / 2. `num_guesses` must be chosen without looking at the scores.

    Args:
        scores: (m,) float64, higher where a canary looks more as if it was in. Equal scores keep their order.
        is_included: (m,) bool, the coins.
        num_guesses: r, at most m; an odd one gives one more guess to "in".

    Raises:
        UsageError: FH-AUDIT-001 r is negative or more than m; FH-AUDIT-002 a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise UsageError(
            "FH-AUDIT-002",
            "a canary's score is not finite.",
            why="The audited training diverged; guesses from such scores say nothing.",
            fix="Lower training.optimizer.learning_rate in study.yaml.",
        )
    order = np.argsort(-scores, kind="stable")
    num_in = -(-num_guesses // 2)
    num_out = num_guesses - num_in
    correct = int(is_included[order[:num_in]].sum())
    correct += int((~is_included[order[len(order) - num_out :]]).sum())
    return Guesses(num_canaries=len(scores), num_guesses=num_guesses, num_correct=correct)


def p_value(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """Chance of at least as many right guesses if the training is (epsilon, delta)-DP; at most 1.

    Theorem 5.2 and corollary 5.4 (arXiv version 1): f(v) + 2 m delta max_i (f(v - i) - f(v)) / i, with
    f(v) = P[Binomial(r, e^epsilon / (1 + e^epsilon)) >= v] and i from 1 to m.
    """
    log_right, log_wrong = -math.log1p(math.exp(-epsilon)), -math.log1p(math.exp(epsilon))
    mass = _binomial_masses(guesses.num_guesses, log_right, log_wrong)
    v = guesses.num_correct
    tail = math.fsum(mass[v:])
    # f(v - i) - f(v) is the mass of v - i .. v - 1; for i > v it grows no more.
    below = np.cumsum(mass[:v][::-1])
    worst = float((below / np.arange(1, v + 1)).max()) if v else 0.0
    return min(1.0, tail + 2.0 * guesses.num_canaries * delta * worst)


def epsilon_lower_bound(
    guesses: Guesses, *, delta: float, significance: float = SIGNIFICANCE
) -> float:
    """The largest epsilon that these guesses rule out at this significance; 0 if none.

    Training that is (epsilon, delta)-DP for an epsilon below the bound would give so many right guesses with a
    chance below `significance`.
    """
    if p_value(guesses, epsilon=0.0, delta=delta) >= significance:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(guesses, epsilon=high, delta=delta) < significance:
        low, high = high, high + 1.0
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        if p_value(guesses, epsilon=middle, delta=delta) < significance:
            low = middle
        else:
            high = middle
    return low


def epsilon_ceiling(
    num_guesses: int,
    *,
    delta: float,
    num_canaries: int | None = None,
    significance: float = SIGNIFICANCE,
) -> float:
    """The most that an audit of this size can ever show: its bound when every guess is right."""
    perfect = Guesses(
        num_canaries=num_canaries or num_guesses, num_guesses=num_guesses, num_correct=num_guesses
    )
    return epsilon_lower_bound(perfect, delta=delta, significance=significance)


def _binomial_masses(count: int, log_right: float, log_wrong: float) -> NDArray[np.float64]:
    """(count + 1,) P[Binomial = k] for k = 0..count, from logarithms of the two chances."""
    factorials = np.array([math.lgamma(k + 1.0) for k in range(count + 1)])
    k = np.arange(count + 1)
    logs = factorials[-1] - factorials - factorials[::-1] + k * log_right + (count - k) * log_wrong
    masses: NDArray[np.float64] = np.exp(logs)
    return masses
