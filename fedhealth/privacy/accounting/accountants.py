"""From mechanism events to one epsilon: PLD (the headline) beside RDP, both from dp-accounting.

Called by plans, policies, reports and strategies. Epsilons are never added up: events are composed, once. Sums with
Skellam noise have no PLD here: a group of events with one among them is composed by RDP, which is the headline then.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Literal

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.events import (
    DistributedSkellam,
    Event,
    GaussianRelease,
    PoissonSubsampledGaussian,
    UnboundedRelease,
    Unit,
)
from fedhealth.privacy.accounting.skellam_rdp import SkellamSum, skellam_curve

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Adjacency = Literal["add_or_remove_one"]
Mechanism = tuple[float, float, int]
"""Sampling rate (1: no sampling), noise multiplier, steps: all that an accountant needs of an event."""
Group = tuple[tuple[Mechanism, ...], tuple[SkellamSum, ...]]
"""Events that are composed: those that dp-accounting knows, and sums with Skellam noise."""

PLD: Final = "dp-accounting PLD"
RDP: Final = "dp-accounting RDP"
RDP_ORDERS: Final = (
    *range(2, 33),
    *(40, 48, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024),
)
"""Whole orders only: dp-accounting's series for fractional ones does not converge at rates such as 0.2, and it
then leaves the order out without an error."""
PLD_MAX_EPSILON: Final = 5000.0
"""By RDP. Beyond, a grid fine enough for a privacy loss distribution does not fit in memory; beyond about 700, e to
the epsilon does not fit in a float. No such epsilon protects anybody; the RDP bound is the headline then, and
`Spend.accountant` says so."""
PLD_MAX_STEPS: Final = 2_000_000
"""Likewise: dp-accounting needs minutes for more sampled steps than this."""
GRID: Final = 1e-3
"""Largest step of the loss grid. dp-accounting rounds losses so that epsilon can only come out too high."""
GRID_PER_STD: Final = 8.0
"""A step that leaks little needs a finer grid: at least this many points in one standard deviation of its loss.
With 2, epsilon of 10,000 small steps is 2 % too high; with 8, 0.1 %."""
TOLERANCE: Final = 0.01
"""RDP is never below PLD, but for PLD's own rounding: relative, see GRID_PER_STD."""
ABSOLUTE_TOLERANCE: Final = 1e-3
_KNOWN: Final = (PoissonSubsampledGaussian, GaussianRelease, DistributedSkellam, UnboundedRelease)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What one unit (a patient, or a site) has lost at most, with all that is needed to read the number.

    Attributes:
        epsilon: the headline, by `accountant`; infinite when something left without a bound.
        epsilon_rdp: the same events by RDP; never lower.
        delta: chance-like slack that belongs to both epsilons.
        accountant: which accountant made `epsilon`.
        accountant_version: of dp-accounting.
    """

    epsilon: float
    epsilon_rdp: float
    delta: float
    unit: Unit
    adjacency: Adjacency
    accountant: str
    accountant_version: str


def compose(events: Iterable[Event], *, delta: float) -> Spend:
    """What all events together cost.

    Unit patient: within one split the sides are disjoint, so a patient pays for one side only, and epsilon is the
    largest over the sides. With several splits among the events, and for unit site, everything adds up.

    Raises:
        PrivacyError: FH-PRIVACY-010 patient and site events are mixed, 011 delta is not between 0 and 1, 012 an
            unknown event, 013 the accountants contradict each other, 014 an accountant failed.
    """
    known = tuple(events)
    unit = _one_unit(known)
    _check_delta(delta)
    groups = [_composed(group) for group in _groups(known, unit)]
    if any(isinstance(event, UnboundedRelease) for event in known):
        pairs = [(math.inf, math.inf, PLD)]
    else:
        pairs = [_headline(group, delta) for group in groups] or [(0.0, 0.0, PLD)]
    epsilon, _, accountant = max(pairs)
    return Spend(
        epsilon=epsilon,
        epsilon_rdp=max(rdp for _, rdp, _ in pairs),
        delta=delta,
        unit=unit,
        adjacency="add_or_remove_one",
        accountant=accountant,
        accountant_version=version("dp-accounting"),
    )


def rdp_bound(events: Iterable[Event], *, delta: float) -> float:
    """Epsilon by RDP alone, milliseconds: enough to accept what is far inside a limit.

    Raises:
        PrivacyError: as `compose`.
    """
    known = tuple(events)
    unit = _one_unit(known)
    _check_delta(delta)
    if any(isinstance(event, UnboundedRelease) for event in known):
        return math.inf
    groups = [_composed(group) for group in _groups(known, unit)]
    return max((_bound(group, delta) for group in groups), default=0.0)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(
            "FH-PRIVACY-011",
            f"delta is {delta}; it must lie between 0 and 1.",
            why="Delta bounds the chance that the promise of epsilon does not hold.",
            fix="Give a delta of at most 0.1 over the number of training patients.",
        )


def _one_unit(events: tuple[Event, ...]) -> Unit:
    for event in events:
        if not isinstance(event, _KNOWN):
            raise PrivacyError(
                "FH-PRIVACY-012",
                f"no accountant knows the event {type(event).__name__}.",
                why="What cannot be accounted for cannot be added up; leaving it out would be too low.",
                fix="Use a version of fedhealth that knows it.",
            )
    units = {event.unit for event in events}
    if len(units) > 1:
        raise PrivacyError(
            "FH-PRIVACY-010",
            "events that protect patients and events that protect sites were put into one sum.",
            why="They bound different losses; one number for both would mean neither.",
            fix="Compose the events of each unit on their own, and print both results.",
        )
    return units.pop() if units else "patient"


def _groups(events: tuple[Event, ...], unit: Unit) -> list[tuple[Event, ...]]:
    """Events that one patient (or site) can be in together; the most expensive group counts."""
    bounded = [event for event in events if not isinstance(event, UnboundedRelease)]
    if unit == "site" or len({event.split_id for event in bounded}) > 1:
        return [tuple(bounded)]
    sides = {event.population for event in bounded} - {"all"} or {"all"}
    return [
        tuple(event for event in bounded if event.population in {side, "all"})
        for side in sorted(sides)
        if bounded
    ]


def _composed(events: tuple[Event, ...]) -> Group:
    """What accountants need, in one order: splitting or reordering events changes nothing, and the cache holds."""
    return _mechanisms(events), _skellams(events)


def _skellams(events: tuple[Event, ...]) -> tuple[SkellamSum, ...]:
    steps: dict[tuple[float, float, float, float], int] = {}
    for event in events:
        if isinstance(event, DistributedSkellam):
            key = (
                event.sampling_rate,
                event.l1_sensitivity,
                event.l2_sensitivity,
                event.variance,
            )
            steps[key] = steps.get(key, 0) + event.steps
    return tuple(SkellamSum(*key, count) for key, count in sorted(steps.items()))


def _mechanisms(events: tuple[Event, ...]) -> tuple[Mechanism, ...]:
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        if isinstance(event, UnboundedRelease | DistributedSkellam):
            continue
        rate = event.sampling_rate if isinstance(event, PoissonSubsampledGaussian) else 1.0
        key = (rate, event.noise_multiplier)
        steps[key] = steps.get(key, 0) + event.steps
    return tuple((rate, noise, count) for (rate, noise), count in sorted(steps.items()))


def _headline(group: Group, delta: float) -> tuple[float, float, str]:
    """Headline, RDP, and who made the headline: never a PLD of a part of the group."""
    mechanisms, skellams = group
    if skellams:
        bound = _rdp_with_skellam(mechanisms, skellams, delta)
        return bound, bound, RDP
    return _epsilons(mechanisms, delta)


def _bound(group: Group, delta: float) -> float:
    mechanisms, skellams = group
    return _rdp_with_skellam(mechanisms, skellams, delta) if skellams else _rdp(mechanisms, delta)


@lru_cache(maxsize=4096)
def _epsilons(mechanisms: tuple[Mechanism, ...], delta: float) -> tuple[float, float, str]:
    """Headline, RDP, and who made the headline."""
    rdp = _rdp(mechanisms, delta)
    sampled = sum(steps for rate, _, steps in mechanisms if rate < 1)
    if rdp > PLD_MAX_EPSILON or sampled > PLD_MAX_STEPS:
        return rdp, rdp, RDP
    pld = _pld(mechanisms, delta, rdp)
    if not 0 <= pld < math.inf:
        return rdp, rdp, RDP
    if pld > rdp * (1 + TOLERANCE) + ABSOLUTE_TOLERANCE:
        raise PrivacyError(
            "FH-PRIVACY-013",
            f"the accountants contradict each other: PLD says {pld:.4g}, RDP {rdp:.4g}.",
            why="RDP is a looser bound on the same loss; a lower one means that one of them is wrong.",
            fix="Report this with the events; train nothing on them until it is understood.",
        )
    return pld, max(pld, rdp), PLD


@lru_cache(maxsize=4096)
def _rdp(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    """Epsilon by Renyi DP (Mironov 2017, arXiv 1702.07476; sampled: Mironov et al. 2019, 1908.10530)."""
    from dp_accounting import NeighboringRelation, rdp

    accountant = rdp.RdpAccountant(RDP_ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    return _checked(_spent(accountant, mechanisms, delta), len(mechanisms), delta)


@lru_cache(maxsize=4096)
def _rdp_with_skellam(
    mechanisms: tuple[Mechanism, ...], skellams: tuple[SkellamSum, ...], delta: float
) -> float:
    """The same with the divergences of sums with Skellam noise added at each order."""
    from dp_accounting import NeighboringRelation, rdp

    accountant = rdp.RdpAccountant(RDP_ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    _spent(accountant, mechanisms, delta)
    curve = accountant.rdp + skellam_curve(RDP_ORDERS, skellams)
    epsilon, _ = rdp.compute_epsilon(RDP_ORDERS, curve, delta)
    return _checked(float(epsilon), len(mechanisms) + len(skellams), delta)


def _checked(epsilon: float, num_mechanisms: int, delta: float) -> float:
    if not 0 <= epsilon < math.inf:
        raise PrivacyError(
            "FH-PRIVACY-014",
            f"{RDP} gave {epsilon} for {num_mechanisms} mechanisms at delta {delta}.",
            why="That is no bound on what a patient lost.",
            fix="Use more noise or fewer steps; report it if the settings look ordinary.",
        )
    return epsilon


@lru_cache(maxsize=4096)
def _pld(mechanisms: tuple[Mechanism, ...], delta: float, rdp_epsilon: float) -> float:
    """Epsilon by privacy loss distributions (Doroshenko et al. 2022, arXiv 2207.04380); infinite where they end."""
    from dp_accounting import NeighboringRelation, pld

    accountant = pld.PLDAccountant(
        NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=_grid(mechanisms, rdp_epsilon),
    )
    return _spent(accountant, mechanisms, delta)


def _grid(mechanisms: tuple[Mechanism, ...], rdp_epsilon: float) -> float:
    """Step of the loss grid: fine for steps that leak little, never so fine that it outgrows memory."""
    finest = min((_loss_std(*mechanism) for mechanism in mechanisms), default=math.inf)
    return max(min(GRID, finest / GRID_PER_STD), rdp_epsilon * 1e-5)


def _loss_std(rate: float, noise: float, steps: int) -> float:
    """About the standard deviation of one step's privacy loss; unsampled steps are one Gaussian already."""
    if rate == 1:
        return math.sqrt(steps) / noise
    return math.sqrt(math.log1p(rate**2 * math.expm1(min(noise**-2, 600.0))))


def _spent(accountant: Any, mechanisms: tuple[Mechanism, ...], delta: float) -> float:  # noqa: ANN401 - dp-accounting is untyped
    for mechanism in mechanisms:
        accountant.compose(_dp_event(*mechanism))
    return float(accountant.get_epsilon(delta))


def _dp_event(rate: float, noise: float, steps: int) -> "DpEvent":
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    step = GaussianDpEvent(noise)
    return SelfComposedDpEvent(step if rate == 1 else PoissonSampledDpEvent(rate, step), steps)
