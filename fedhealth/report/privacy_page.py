"""The privacy section of a page, from records: what is shown, in words and figures. Called by `render`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from math import exp, isfinite

from markupsafe import Markup

from fedhealth.privacy.accounting.events import (
    DistributedSkellam,
    Event,
    GaussianRelease,
    UnboundedRelease,
    merge_events,
)
from fedhealth.privacy.accounting.site_level import (
    MAX_EPSILON_FOR_BADGE,
    MIN_SITES_FOR_BADGE,
    has_seeded_noise,
)
from fedhealth.report import wording
from fedhealth.report.charts import NUM_COLOURS, Series, curves
from fedhealth.report.figures import NONE, grouped, heading
from fedhealth.report.privacy import Headline, largest
from fedhealth.report.privacy_facts import SiteLevelFact, SitePrivacyFact
from fedhealth.report.record import RoundRecord, SiteStatus, round_order

MAX_NAMES = 6  # as many fit into a sentence
MAX_SHOWN_EXPONENT = 13.8  # ln of a million: a larger factor has no meaning to a reader
_SHOWN_UP = Context(prec=4, rounding=ROUND_CEILING)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRow:
    """One account with all that an epsilon needs to mean something."""

    name: str
    as_of: str
    epsilon: str
    epsilon_rdp: str
    delta: str
    unit: str
    samplers: str
    scope: str
    accountant: str
    clipping_norm: str
    ledger: str
    ledger_head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One kind of release of an account."""

    name: str
    what: str
    sampler: str
    noise_multiplier: str
    sampling_rate: str
    population: str
    steps_now: str
    steps_all: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySection:
    """Everything that the template of the section shows; empty strings and None are left out."""

    tile: str
    tile_text: str
    summary: str
    asked: str
    notes: tuple[str, ...]
    accounts: tuple[AccountRow, ...]
    events: tuple[EventRow, ...]
    chart: Markup | None
    chart_hint: str
    legend: tuple[tuple[str, str], ...]
    site_level: AccountRow | None
    site_level_what: str
    site_level_events: tuple[EventRow, ...]
    badge: str
    site_level_notes: tuple[str, ...]
    both: str


def round_section(record: RoundRecord, history: Sequence[RoundRecord]) -> PrivacySection:
    """The section of one round's page.

    Args:
        record: the round.
        history: rounds of the same run before it, in any order: for the chart, and for the last account of a
            hospital that did not answer in this round.
    """
    return _section(record, [*history, record])


def run_section(records: Sequence[RoundRecord]) -> PrivacySection:
    """The section of a run's page: the last account that each hospital gave."""
    return _section(max(records, key=round_order), records)


def up(value: float | None) -> str:
    """An epsilon or a delta to four digits, never rounded down; says so when there is no bound."""
    if value is None or not isfinite(value):
        return "no bound"
    return f"{float(_SHOWN_UP.create_decimal(Decimal(repr(value)))):.4g}"


def _section(record: RoundRecord, shown: Sequence[RoundRecord]) -> PrivacySection:
    ordered = sorted(shown, key=round_order)
    latest = _latest(ordered)
    top = largest([Headline(site_id=name, fact=fact) for name, (_, fact) in latest.items()])
    unbounded = [name for name, (_, fact) in latest.items() if not fact.is_bounded]
    chart, legend = _chart(ordered)
    level, level_record = _last_site_level(ordered)
    return PrivacySection(
        tile=_tile(top),
        tile_text=_tile_text(top),
        summary=_unbounded(unbounded) if unbounded else _summary(top),
        asked=_asked(record),
        notes=tuple(_notes(record, ordered, [fact for _, fact in latest.values()])),
        accounts=tuple(_account(name, said, fact) for name, (said, fact) in latest.items()),
        events=tuple(
            row
            for name, (_, fact) in latest.items()
            for row in _event_rows(name, fact.round_events, fact.study_events)
        ),
        chart=chart,
        chart_hint=_chart_hint(record),
        legend=legend,
        site_level=_site_level(level, heading(level_record)) if level and level_record else None,
        site_level_what=_mechanism(level) if level else "",
        site_level_events=tuple(_event_rows("Server", level.round_events, level.run_events))
        if level
        else (),
        badge=f"Hospital-level epsilon {up(level.epsilon)} at delta {up(level.delta)}"
        if level and level.shows_badge
        else "",
        site_level_notes=tuple(_site_level_notes(level, len(level_record.sites)))
        if level and level_record
        else (),
        both=wording.BOTH_UNITS if level and top else "",
    )


def _latest(ordered: Sequence[RoundRecord]) -> dict[str, tuple[str, SitePrivacyFact]]:
    """The last account of each site with the name of its round, by site name."""
    found = {
        site.site_id: (heading(record), site.privacy)
        for record in ordered
        for site in record.sites
        if site.privacy is not None
    }
    return dict(sorted(found.items()))


def _last_site_level(
    ordered: Sequence[RoundRecord],
) -> tuple[SiteLevelFact, RoundRecord] | tuple[None, None]:
    found = [(r.site_level, r) for r in ordered if r.site_level is not None]
    return found[-1] if found else (None, None)


def _tile(top: Headline | None) -> str:
    if top is None:
        return NONE
    return f"ε {up(top.fact.epsilon)}" if top.fact.is_bounded else "No bound"


def _tile_text(top: Headline | None) -> str:
    if top is None:
        return "no patient-level privacy on record"
    if not top.fact.is_bounded:
        return "on what can be learnt about a patient"
    return f"a patient's largest bound so far, at δ {up(top.fact.delta)}"


def _summary(top: Headline | None) -> str:
    if top is None:
        return wording.NO_ACCOUNT
    return (
        f"Largest over hospitals: epsilon {up(top.fact.epsilon)} at delta {up(top.fact.delta)}, for a patient of "
        f"{top.site_id}, over everything that this study has released so far. {_odds(top.fact)}{wording.OWN_HOSPITAL}"
    )


def _odds(fact: SitePrivacyFact) -> str:
    if fact.epsilon is None:
        return ""
    factor = up(exp(fact.epsilon)) if fact.epsilon <= MAX_SHOWN_EXPONENT else "more than a million"
    return f"{wording.odds(fact.epsilon, factor)} "


def _unbounded(names: Sequence[str]) -> str:
    of = f"{len(names)} hospitals" if len(names) > MAX_NAMES else ", ".join(names)
    return f"{wording.UNBOUNDED} of {of}."


def _asked(record: RoundRecord) -> str:
    asked = record.patient_privacy
    if asked is None:
        return "The study asks for no patient-level privacy."
    aim = (
        f"an epsilon of at most {up(asked.target_epsilon)} for each patient over all its rounds"
        if asked.target_epsilon is not None
        else f"a noise multiplier of {asked.noise_multiplier:.4g} at every hospital"
    )
    return (
        f"The study asks for {aim}, with gradients clipped to a norm of {asked.clipping_norm:.4g}. "
        f"{wording.TUNING[asked.tuning]}"
    )


def _notes(
    record: RoundRecord, ordered: Sequence[RoundRecord], facts: Sequence[SitePrivacyFact]
) -> Iterator[str]:
    is_bounded = any(fact.is_bounded for fact in facts)
    unknown = _without_last_account(ordered)
    if facts:
        yield wording.EPSILON_SOURCE
    if record.status == "void" and any(site.privacy is not None for site in record.sites):
        yield wording.VOID_COST
    if facts and unknown:
        yield f"{wording.SPEND_UNKNOWN} {', '.join(unknown)}."
    if is_bounded and record.personalisation in wording.KEPT_NOISED:
        yield wording.KEPT_NOISED[record.personalisation]
    num_honest = _most_honest(event for fact in facts for event in fact.study_events)
    if num_honest:
        yield wording.honest_sites(num_honest)
    if has_seeded_noise(event for fact in facts for event in fact.study_events):
        yield wording.SEEDED
    if is_bounded:
        yield wording.NOT_COVERED


def _without_last_account(ordered: Sequence[RoundRecord]) -> list[str]:
    """Sites that were asked after their last account, and gave none: their ledgers may hold more."""
    is_open: dict[str, bool] = {}
    for record in ordered:
        for site in record.sites:
            if site.status is not SiteStatus.NOT_INVITED:
                is_open[site.site_id] = site.privacy is None
    return sorted(name for name, value in is_open.items() if value)


def _account(name: str, as_of: str, fact: SitePrivacyFact) -> AccountRow:
    return AccountRow(
        name=name,
        as_of=as_of,
        epsilon=up(fact.epsilon),
        epsilon_rdp=up(fact.epsilon_rdp),
        delta=up(fact.delta) if fact.is_bounded else NONE,
        unit=f"{fact.unit}, {wording.ADJACENCY[fact.adjacency]}",
        samplers=_samplers(fact.samplers),
        scope=wording.SCOPE[fact.composition_scope],
        accountant=f"{fact.accountant} {fact.accountant_version}",
        clipping_norm=NONE if fact.clipping_norm is None else f"{fact.clipping_norm:.4g}",
        ledger=grouped(fact.ledger_sequence),
        ledger_head=fact.ledger_head,
    )


def _site_level(fact: SiteLevelFact, as_of: str) -> AccountRow:
    return AccountRow(
        name=f"each of {fact.num_sites}",
        as_of=as_of,
        epsilon=up(fact.epsilon),
        epsilon_rdp=up(fact.epsilon_rdp),
        delta=up(fact.delta),
        unit=f"{fact.unit}, {wording.ADJACENCY[fact.adjacency]}",
        samplers=_samplers(fact.samplers),
        scope=wording.SCOPE[fact.composition_scope],
        accountant=f"{fact.accountant} {fact.accountant_version}",
        clipping_norm=f"{fact.clipping_norm:.4g}",
        ledger="",
        ledger_head="",
    )


def _site_level_notes(fact: SiteLevelFact, num_admitted: int) -> Iterator[str]:
    """What the bound counts on, and all reasons against a badge, for a page that shows none."""
    num_honest = _most_honest(fact.run_events)
    if num_honest:
        yield wording.honest_sites(num_honest)
    num_sites = min(fact.num_sites, num_admitted)
    if num_sites < MIN_SITES_FOR_BADGE:
        yield wording.few_sites(num_sites, MIN_SITES_FOR_BADGE)
    if fact.epsilon is not None and fact.epsilon > MAX_EPSILON_FOR_BADGE:
        yield wording.large_epsilon(up(MAX_EPSILON_FOR_BADGE))
    if fact.delta * num_sites >= 1:
        yield wording.LARGE_DELTA
    if has_seeded_noise(fact.run_events):
        yield wording.SEEDED_SITES


def _most_honest(events: Iterable[Event]) -> int:
    """The largest number of honest sites that one of these events counts on; 0 where none does."""
    return max((e.num_honest for e in events if isinstance(e, DistributedSkellam)), default=0)


def _mechanism(fact: SiteLevelFact) -> str:
    if fact.mechanism == "distributed-skellam":
        return (
            f"Strategy {fact.mechanism}: in the last round each hospital clipped its update to a norm of "
            f"{fact.clipping_norm:.4g} and added its share of the noise; only the sum was opened, and was divided by "
            f"{fact.num_sites} whoever answered. The noise of at least {_most_honest(fact.round_events)} honest sites "
            f"has a standard deviation of {fact.noise_std:.4g} on every coordinate of the mean."
        )
    return (
        f"Strategy {fact.mechanism}: the last round clipped each hospital's update to a norm of "
        f"{fact.clipping_norm:.4g}, divided the sum by {fact.num_sites} whoever answered, and added noise of standard "
        f"deviation {fact.noise_std:.4g} to every coordinate."
    )


def _samplers(samplers: Sequence[str]) -> str:
    return ", ".join(wording.SAMPLER[name] for name in reversed(samplers)) or NONE


def _event_rows(name: str, now: Sequence[Event], so_far: Sequence[Event]) -> Iterator[EventRow]:
    """One row for each kind of event of the account, with its steps in this round and in all."""
    this_round = {_single(event): event.steps for event in merge_events(now)}
    for event in merge_events(so_far):
        yield EventRow(
            name=name,
            what=_what(event),
            sampler=wording.SAMPLER[event.sampler],
            noise_multiplier=_noise(event),
            sampling_rate=_rate(event),
            population=_population(event),
            steps_now=grouped(this_round.get(_single(event), 0)),
            steps_all=grouped(event.steps),
        )


def _what(event: Event) -> str:
    if isinstance(event, DistributedSkellam):
        return f"{wording.EVENT[event.kind]}, noise of at least {event.num_honest} honest sites"
    return wording.EVENT[event.kind]


def _noise(event: Event) -> str:
    return "no noise" if isinstance(event, UnboundedRelease) else f"{event.noise_multiplier:.4g}"


def _rate(event: Event) -> str:
    if isinstance(event, GaussianRelease | UnboundedRelease) or event.sampler == "none":
        return NONE
    return f"{event.sampling_rate:.4g}"


def _population(event: Event) -> str:
    if isinstance(event, UnboundedRelease) or event.unit == "site":
        return NONE
    return event.population


def _single(event: Event) -> Event:
    return event.model_copy(update={"steps": 1})


def _chart(
    records: Sequence[RoundRecord],
) -> tuple[Markup | None, tuple[tuple[str, str], ...]]:
    """Cumulative epsilon over rounds, a line a hospital; colours as in the other charts of the page."""
    names = list(dict.fromkeys(site.site_id for record in records for site in record.sites))
    points = _points_by_site(records)
    series = [
        Series(name, index, points[name]) for index, name in enumerate(names) if name in points
    ]
    if not series:
        return None, ()
    asked = records[-1].patient_privacy
    target = asked.target_epsilon if asked else None
    svg = curves("Epsilon over rounds", series, top=None, level=target, include=(0.0,))
    legend = [(one.name, f"s{(one.colour or 0) % NUM_COLOURS}") for one in series]
    return svg, (*legend, *([("Target", "target")] if target is not None else []))


def _points_by_site(records: Sequence[RoundRecord]) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for site in record.sites:
            if site.privacy is not None and site.privacy.epsilon is not None:
                point = (record.round_number, site.privacy.epsilon)
                points.setdefault(site.site_id, []).append(point)
    return points


def _chart_hint(record: RoundRecord) -> str:
    asked = record.patient_privacy
    target = (
        f"; the dashed line is the study's target of {up(asked.target_epsilon)}"
        if asked and asked.target_epsilon is not None
        else ""
    )
    return f"cumulative, each at its own delta{target}"
