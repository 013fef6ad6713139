"""The least noise that keeps planned events inside an epsilon. Called by `plan`."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.accountants import compose, rdp_bound
from fedhealth.privacy.accounting.events import Event

DIGITS: Final = 4
"""Significant digits of a noise multiplier, rounded up: a number that people can write into a file."""
LEAST_NOISE: Final = 0.01
MOST_NOISE: Final = 1e6
"""Beyond it nothing is left of an update; a target that needs more is not reachable."""
_ROOT_STEPS: Final = 12
_ROOT_PRECISION: Final = 1e-4
"""Relative, of epsilon: about one unit in the fourth digit of the noise; the walk on that grid does the rest."""


def least_noise(
    events: Callable[[float], Sequence[Event]], *, target_epsilon: float, delta: float
) -> float:
    """The smallest noise multiplier of four significant digits whose PLD epsilon is at most the target.

    `events` makes the planned events for a noise multiplier; more noise must never cost more.

    Raises:
        PrivacyError: FH-PRIVACY-015 the target is 0, 016 negative, 017 infinite, 018 not a number, 019 out of
            reach; 011 delta.
    """
    check_target(target_epsilon)

    def headline(noise: float) -> float:
        return compose(events(noise), delta=delta).epsilon

    def bound(noise: float) -> float:
        return rdp_bound(events(noise), delta=delta)

    high = _enough_noise(bound, headline, target_epsilon)
    if high <= LEAST_NOISE:
        return LEAST_NOISE
    noise = _round_up(_root(headline, high, target_epsilon))
    while headline(noise) > target_epsilon:
        noise = _next(noise, 1)
    while noise > LEAST_NOISE and headline(_next(noise, -1)) <= target_epsilon:
        noise = _next(noise, -1)
    return noise


def check_target(epsilon: float) -> None:
    """Refuse a target that no noise, or that any noise, would meet.

    Raises:
        PrivacyError: FH-PRIVACY-015 it is 0, 016 negative, 017 infinite, 018 not a number.
    """
    wrong = (
        (math.isnan(epsilon), "018", "is not a number", "No comparison with it means anything."),
        (epsilon == 0, "015", "is 0", "Only a model that learns nothing has epsilon 0."),
        (epsilon < 0, "016", f"is {epsilon}, below 0", "A loss of privacy is never negative."),
        (math.isinf(epsilon), "017", "is infinite", "It asks for no protection at all."),
    )
    for is_wrong, number, what, why in wrong:
        if is_wrong:
            raise PrivacyError(
                f"FH-PRIVACY-{number}",
                f"the target epsilon {what}.",
                why=why,
                fix="Give a number above 0, such as 8; lower is stricter. To train without it, leave out `privacy`.",
            )


def _enough_noise(
    bound: Callable[[float], float], headline: Callable[[float], float], target: float
) -> float:
    """A noise multiplier that meets the target by RDP, at most 3 % above the least such."""
    if bound(LEAST_NOISE) <= target:
        return LEAST_NOISE
    low, high = LEAST_NOISE, 1.0
    while bound(high) > target:
        low, high = high, high * 4
        if high > MOST_NOISE:
            return _enough_by_headline(headline, target)
    while high / low > 1.03:  # noqa: PLR2004 - the root is found by PLD, this only brackets it
        middle = math.sqrt(low * high)
        low, high = (low, middle) if bound(middle) <= target else (middle, high)
    return high


def _enough_by_headline(headline: Callable[[float], float], target: float) -> float:
    """RDP of orders up to 1024 has a floor of about log(1/delta)/1000; PLD goes on below it."""
    noise = 1.0
    while headline(noise) > target:
        noise *= 4
        if noise > MOST_NOISE:
            raise PrivacyError(
                "FH-PRIVACY-019",
                f"no noise multiplier up to {MOST_NOISE:g} brings epsilon down to {target:g}.",
                why="With so much noise nothing would be left of what sites learn.",
                fix="Raise target_epsilon, or plan fewer rounds, fewer steps or smaller batches.",
            )
    return noise


def _root(headline: Callable[[float], float], high: float, target: float) -> float:
    """A noise close to where the headline meets the target: Illinois' method on logarithms."""
    low = high
    value_high = _log_ratio(headline(high), target)
    value_low = value_high
    while value_low <= 0:
        low /= 1.25
        value_low = _log_ratio(headline(low), target)
    a, b, side = math.log(low), math.log(high), 0
    for _ in range(_ROOT_STEPS):
        middle = (a * value_high - b * value_low) / (value_high - value_low)
        value = _log_ratio(headline(math.exp(middle)), target)
        if abs(value) < _ROOT_PRECISION:
            return math.exp(middle)
        if value > 0:
            a, value_low, value_high = middle, value, value_high / (2 if side > 0 else 1)
            side = 1
        else:
            b, value_high, value_low = middle, value, value_low / (2 if side < 0 else 1)
            side = -1
    return math.exp(b)


def _log_ratio(epsilon: float, target: float) -> float:
    return math.log(max(epsilon, 1e-300) / target)


def _unit(noise: float) -> float:
    return float(10.0 ** (math.floor(math.log10(noise)) - DIGITS + 1))


def _round_up(noise: float) -> float:
    unit = _unit(noise)
    return _tidy(math.ceil(noise / unit - 1e-9) * unit)


def _next(noise: float, direction: int) -> float:
    """The next noise multiplier of four significant digits, up (1) or down (-1)."""
    below = noise * (1 - 1e-9)
    unit = _unit(noise) if direction > 0 else _unit(below)
    return _tidy((round(noise / unit) + direction) * unit)


def _tidy(noise: float) -> float:
    return float(f"{noise:.{DIGITS}g}")
