"""From events to the privacy facts of a record: the server fills records with it, `check_privacy` recomputes them.

The accountant is imported when a number is asked for, so that a record can be read and shown without it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from math import isfinite
from typing import TYPE_CHECKING, Final, cast

from fedhealth.contracts.aggregation import SiteLevelRelease
from fedhealth.errors import EvidenceError, PrivacyError
from fedhealth.evidence.statements import PrivacySpend, RoundPrivacy
from fedhealth.privacy.accounting.events import (
    DistributedSkellam,
    Event,
    GaussianRelease,
    PoissonSubsampledGaussian,
    UnboundedRelease,
)
from fedhealth.report.privacy_facts import (
    Accountant,
    PatientPrivacyFact,
    SiteLevelFact,
    SitePrivacyFact,
    are_part_of,
    samplers_of,
)
from fedhealth.report.record import RoundRecord

if TYPE_CHECKING:
    from fedhealth.privacy.accounting.accountants import Spend

_UP: Final = Context(prec=6, rounding=ROUND_CEILING)
TOLERANCE: Final = 2e-5
"""Relative: epsilons are rounded up to six digits, and transforms differ in the last bits between processors."""
MAX_DELTA_SHARE: Final = 0.1
"""Of one over the declared size: a delta near one over the number of patients would allow to publish one of them."""
MAX_KINDS: Final = 16
"""Different events in one account: a study has a few, and each costs the accountant up to seconds."""
MIN_SAMPLING_RATE, MIN_NOISE, MAX_NOISE = 1e-6, 0.01, 1e4
"""No study trains outside of these, and inside of them the accountant always came to an end: outside, its tables can
outgrow memory, and one site's nonsense would stop the server."""
_FAILURES: Final = (PrivacyError, MemoryError, ArithmeticError, IndexError, ValueError)
"""How dp-accounting fails on events out of its reach; the last ones were seen at tiny sampling rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The largest patient epsilon over sites, never a mean, a minimum or a sum.

    Attributes:
        site_id: whose epsilon it is; a site without a bound comes before every number.
        fact: that site's account.
    """

    site_id: str
    fact: SitePrivacyFact


def spend_is_consistent(spend: PrivacySpend, *, declared_train_size: int = 1) -> bool:
    """Whether a site's account can be believed as far as it goes: no contradiction, and an accountant reads it.

    False when the round's events are not within the study's, an event is not about patients, delta is above
    0.1 / `declared_train_size`, a clipped release comes without its clipping norm, an event is far from any study's,
    or nothing can compose it.
    """
    events = spend.study_events
    is_clipped = any(
        isinstance(event, PoissonSubsampledGaussian | DistributedSkellam)
        for event in spend.round_events
    )
    return (
        len(events) <= MAX_KINDS
        and all(_is_plausible(event) for event in events)
        and are_part_of(spend.round_events, events)
        and spend.delta <= MAX_DELTA_SHARE / declared_train_size * (1 + 1e-9)
        and not (is_clipped and spend.clipping_norm is None)
        and _can_be_composed(events, spend.delta)
    )


def patient_fact(proposal: RoundPrivacy | None) -> PatientPrivacyFact | None:
    """The record's words for what the manifest proposed."""
    if proposal is None:
        return None
    return PatientPrivacyFact(
        target_epsilon=proposal.target_epsilon,
        noise_multiplier=proposal.noise_multiplier,
        clipping_norm=proposal.clipping_norm,
        tuning=proposal.tuning,
    )


def site_fact(spend: PrivacySpend | None) -> SitePrivacyFact | None:
    """A site's account for the record, with its epsilons.

    Raises:
        PrivacyError: the accountant refuses the events; `spend_is_consistent` is to be asked first.
    """
    if spend is None:
        return None
    composed = _compose(spend.study_events, spend.delta)
    return SitePrivacyFact(
        samplers=samplers_of(spend.study_events),
        round_events=spend.round_events,
        study_events=spend.study_events,
        delta=spend.delta,
        clipping_norm=spend.clipping_norm,
        is_bounded=isfinite(composed.epsilon),
        epsilon=_rounded_up(composed.epsilon),
        epsilon_rdp=_rounded_up(composed.epsilon_rdp),
        accountant=cast("Accountant", composed.accountant),
        accountant_version=composed.accountant_version,
        ledger_sequence=spend.ledger.sequence,
        ledger_head=spend.ledger.head,
    )


def site_level_fact(
    release: SiteLevelRelease | None, so_far: Sequence[SiteLevelRelease], *, num_admitted: int
) -> SiteLevelFact | None:
    """The account of a site-level mechanism for the record, with its epsilons.

    Args:
        release: this round's; None when the strategy has no such mechanism.
        so_far: all of the run, this round's included.
        num_admitted: sites that the record lists, whether they were invited or not: for the badge.

    Raises:
        PrivacyError: the accountant refuses the events.
    """
    if release is None:
        return None
    from fedhealth.privacy.accounting.site_level import (
        default_delta,
        earns_badge,
        site_level_events,
    )

    events = site_level_events(so_far)
    delta = default_delta(release.denominator)
    composed = _compose_site_level(events, delta, release.denominator)
    epsilon = _rounded_up(composed.epsilon)
    num_sites = min(release.denominator, num_admitted)
    return SiteLevelFact(
        samplers=samplers_of(events),
        round_events=site_level_events([release]),
        run_events=events,
        delta=delta,
        mechanism=release.mechanism,
        clipping_norm=release.clipping_norm,
        noise_std=release.noise_std,
        num_sites=release.denominator,
        shows_badge=earns_badge(events, num_sites=num_sites, epsilon=epsilon, delta=delta),
        is_bounded=epsilon is not None,
        epsilon=epsilon,
        epsilon_rdp=_rounded_up(composed.epsilon_rdp),
        accountant=cast("Accountant", composed.accountant),
        accountant_version=composed.accountant_version,
    )


def headline(record: RoundRecord) -> Headline | None:
    """The largest epsilon among the accounts of a record; None without any account."""
    known = [
        Headline(site_id=site.site_id, fact=site.privacy)
        for site in record.sites
        if site.privacy is not None
    ]
    return largest(known)


def largest(accounts: Sequence[Headline]) -> Headline | None:
    """The account with the largest epsilon; one without a bound is larger than any number."""
    return max(accounts, key=lambda one: _size(one.fact), default=None)


def check_privacy(record: RoundRecord) -> None:
    """Recompute every epsilon of a record from its events.

    Raises:
        EvidenceError: FH-REPORT-010 an epsilon is not what its events compose to, FH-REPORT-011 no accountant
            here reads the events.
    """
    for where, fact in _accounts(record):
        try:
            composed = _recompute(fact)
        except _FAILURES as error:
            raise EvidenceError(
                "FH-REPORT-011",
                f"the events of {where} in round {record.round_number} cannot be composed.",
                why="An epsilon that nobody can recompute is a claim without evidence.",
                fix="Use the version of fedhealth that wrote the record, or a newer one.",
            ) from error
        is_right = (
            _agrees(fact.epsilon, composed.epsilon)
            and _agrees(fact.epsilon_rdp, composed.epsilon_rdp)
            and fact.accountant == composed.accountant
        )
        if not is_right:
            raise _wrong_epsilon(record, where, fact, composed)


def _accounts(record: RoundRecord) -> Iterator[tuple[str, SitePrivacyFact | SiteLevelFact]]:
    for site in record.sites:
        if site.privacy is not None:
            yield site.site_id, site.privacy
    if record.site_level is not None:
        yield "the site-level account", record.site_level


def _recompute(fact: SitePrivacyFact | SiteLevelFact) -> "Spend":
    if isinstance(fact, SiteLevelFact):
        return _compose_site_level(fact.run_events, fact.delta, fact.num_sites)
    return _compose(fact.study_events, fact.delta)


def _agrees(said: float | None, computed: float) -> bool:
    if said is None or not isfinite(computed):
        return said is None and not isfinite(computed)
    return abs(said - computed) <= TOLERANCE * max(computed, TOLERANCE)


def _wrong_epsilon(
    record: RoundRecord, where: str, fact: SitePrivacyFact | SiteLevelFact, composed: "Spend"
) -> EvidenceError:
    other = fact.accountant_version != composed.accountant_version
    return EvidenceError(
        "FH-REPORT-010",
        f"round {record.round_number}: the epsilon of {where} is given as {fact.epsilon} (RDP {fact.epsilon_rdp}); its "
        f"events compose to {composed.epsilon:.6g} (RDP {composed.epsilon_rdp:.6g}).",
        why="An epsilon has to follow from the events beside it. "
        + (
            f"The record was made with dp-accounting {fact.accountant_version}, here is "
            f"{composed.accountant_version}."
            if other
            else "The record was changed, or made by faulty software."
        ),
        fix="Take the record from the server again, and compare its digest with the sites' copies.",
    )


def _size(fact: SitePrivacyFact) -> float:
    return float("inf") if fact.epsilon is None else fact.epsilon


def _rounded_up(epsilon: float) -> float | None:
    """To six digits, upwards: an epsilon is never shown smaller than it is. None when it is not finite."""
    if not isfinite(epsilon):
        return None
    return float(_UP.create_decimal(Decimal(repr(float(epsilon)))))


def _is_plausible(event: Event) -> bool:
    if isinstance(event, UnboundedRelease):
        return event.unit == "patient"
    rate = 1.0 if isinstance(event, GaussianRelease) else event.sampling_rate
    return (
        event.unit == "patient"
        and rate >= MIN_SAMPLING_RATE
        and MIN_NOISE <= event.noise_multiplier <= MAX_NOISE
    )


def _can_be_composed(events: Sequence[Event], delta: float) -> bool:
    try:
        _compose(events, delta)
    except _FAILURES:
        return False
    return True


def _compose(events: Sequence[Event], delta: float) -> "Spend":
    from fedhealth.privacy.accounting.accountants import compose

    return compose(events, delta=delta)


def _compose_site_level(events: Sequence[Event], delta: float, num_sites: int) -> "Spend":
    from fedhealth.privacy.accounting.site_level import statement_of_site_level

    return statement_of_site_level(events, num_sites, delta).spend
