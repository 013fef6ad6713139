"""What a record holds about differential privacy, for patients and for sites. Models only: no accountant is needed."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from math import isclose
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fedhealth.config.privacy import Tuning
from fedhealth.contracts.aggregation import MAX_ROUNDING_LOSS, SiteLevelMechanism
from fedhealth.privacy.accounting.events import (
    DistributedSkellam,
    Event,
    GaussianRelease,
    UnboundedRelease,
    merge_events,
)
from fedhealth.privacy.accounting.site_level import earns_badge
from fedhealth.report.schema import A, Closed, Count, D, Hex64, P, S, Version

Accountant = Literal["dp-accounting PLD", "dp-accounting RDP"]
"""RDP makes the headline where a privacy loss distribution would be too large to compute."""
Adjacency = Literal["add_or_remove_one"]
Sampler = Literal["none", "poisson"]
Epsilon = Annotated[float, Field(ge=0)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
MAX_RELEASES: Final[dict[SiteLevelMechanism, int]] = {
    "dp-fedavg": 2,
    "dp-ftrl": 1,
    "distributed-skellam": 1,
}
"""Of one round: a model, and the count of unclipped updates when the clipping norm adapts."""
NOISE_TOLERANCE: Final = 1e-6
"""Relative: the same product of three numbers, in another order."""


class CompositionScope(StrEnum):
    """What an epsilon adds up."""

    THIS_STUDY_AT_THIS_SITE = "this_study_at_this_site"
    THIS_RUN_AT_THE_SERVER = "this_run_at_the_server"


class PatientPrivacyFact(Closed):
    """What the study asks of every site for each of its patients."""

    unit: Annotated[Literal["patient"], D] = "patient"
    target_epsilon: Annotated[Positive | None, D] = None
    noise_multiplier: Annotated[Positive | None, D] = None
    clipping_norm: Annotated[Positive, D]
    tuning: Annotated[Tuning, D] = "not_stated"


class SitePrivacyFact(Closed):
    """What a site's patients have spent: mechanism events as the site's ledger has them, and their composition.

    Attributes:
        round_events: what this round's answer released.
        study_events: all that this study reserved on the site's data so far, this round included, equal ones
            merged. Epsilons are compositions of these.
        epsilon: the headline, by `accountant`, rounded up; None when nothing bounds it.
        epsilon_rdp: the same events by Renyi divergences, rounded up; never the smaller one.
        ledger_sequence: lines of the site's ledger after this round, and the hash of the last one.
    """

    unit: Annotated[Literal["patient"], P] = "patient"
    adjacency: Annotated[Adjacency, P] = "add_or_remove_one"
    samplers: Annotated[tuple[Sampler, ...], Field(max_length=2), P]
    round_events: Annotated[tuple[Event, ...], Field(max_length=100), A]
    study_events: Annotated[tuple[Event, ...], Field(max_length=1000), A]
    delta: Annotated[Delta, A]
    clipping_norm: Annotated[Positive | None, A] = None
    is_bounded: Annotated[bool, P]
    epsilon: Annotated[Epsilon | None, P]
    epsilon_rdp: Annotated[Epsilon | None, P]
    accountant: Annotated[Accountant, S]
    accountant_version: Annotated[Version, S]
    composition_scope: Annotated[Literal[CompositionScope.THIS_STUDY_AT_THIS_SITE], A] = (
        CompositionScope.THIS_STUDY_AT_THIS_SITE
    )
    ledger_sequence: Annotated[Count, A]
    ledger_head: Annotated[Hex64, A]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_account(self, self.study_events)
        return self


class SiteLevelFact(Closed):
    """What the server's mechanism spent for each site, over the rounds of this run.

    Attributes:
        noise_std: of the noise on every coordinate of the mean update; of that of the honest sites which its event
            counts on, where sites made it.
        run_events: all releases of the run so far, this round included, equal ones merged.
        num_sites: the denominator of the mean, whoever answered.
        shows_badge: `earns_badge` with the smaller of `num_sites` and the number of admitted sites, which the
            round's record knows and checks.
    """

    unit: Annotated[Literal["site"], P] = "site"
    adjacency: Annotated[Adjacency, P] = "add_or_remove_one"
    samplers: Annotated[tuple[Sampler, ...], Field(max_length=2), P]
    round_events: Annotated[tuple[Event, ...], Field(max_length=100), S]
    run_events: Annotated[tuple[Event, ...], Field(max_length=10_000), S]
    delta: Annotated[Delta, S]
    mechanism: Annotated[SiteLevelMechanism, S]
    clipping_norm: Annotated[Positive, S]
    noise_std: Annotated[Positive, S]
    num_sites: Annotated[Count, S]
    shows_badge: Annotated[bool, P]
    is_bounded: Annotated[bool, P]
    epsilon: Annotated[Epsilon | None, P]
    epsilon_rdp: Annotated[Epsilon | None, P]
    accountant: Annotated[Accountant, S]
    accountant_version: Annotated[Version, S]
    composition_scope: Annotated[Literal[CompositionScope.THIS_RUN_AT_THE_SERVER], S] = (
        CompositionScope.THIS_RUN_AT_THE_SERVER
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_account(self, self.run_events)
        if self.shows_badge and not self.earns_badge(self.num_sites):
            raise ValueError("a badge goes with enough sites, a small epsilon and fresh noise")
        _check_mechanism(self)
        return self

    def earns_badge(self, num_admitted: int) -> bool:
        """Whether a badge is right when that many sites are admitted."""
        return earns_badge(
            self.run_events,
            num_sites=min(self.num_sites, num_admitted),
            epsilon=self.epsilon,
            delta=self.delta,
        )

    @property
    def num_model_releases(self) -> int:
        """Models that `run_events` pay for; with adaptive clipping every model has a second event."""
        return _count(self.run_events) // _count(self.round_events)


def samplers_of(events: Iterable[Event]) -> tuple[Sampler, ...]:
    """The samplers that occur, in alphabetical order."""
    return tuple(sorted({event.sampler for event in events}))


def are_part_of(part: Iterable[Event], whole: Iterable[Event]) -> bool:
    """Whether every step of `part` is also in `whole`."""
    return _steps(part) <= _steps(whole)


def has_noised_metrics(events: Iterable[Event]) -> bool:
    """Whether one of the events pays for metrics of validation patients."""
    return any(
        isinstance(event, GaussianRelease) and event.population == "validation" for event in events
    )


def _check_mechanism(fact: SiteLevelFact) -> None:
    """A round is one release of a model, and with adaptive clipping one of a count after it."""
    limit = MAX_RELEASES[fact.mechanism]
    if not 1 <= _count(fact.round_events) <= limit:
        raise ValueError("a round of this mechanism has another number of releases")
    if _count(fact.run_events) % _count(fact.round_events):
        raise ValueError("the rounds of a run all have the same number of releases")
    if fact.num_sites < 1:
        raise ValueError("a mean has a denominator")
    if fact.mechanism == "distributed-skellam":
        _check_distributed(fact)
    else:
        _check_gaussian(fact)


def _check_gaussian(fact: SiteLevelFact) -> None:
    noise = [e.noise_multiplier for e in fact.round_events if isinstance(e, GaussianRelease)]
    if len(noise) != len(fact.round_events):
        raise ValueError("a round of this mechanism is made of Gaussian releases")
    if fact.mechanism == "dp-fedavg":  # a row of dp-ftrl has noise of several rounds
        expected = noise[0] * fact.clipping_norm / fact.num_sites
        if not isclose(fact.noise_std, expected, rel_tol=NOISE_TOLERANCE):
            raise ValueError("the noise of the model is not that of its event")


def _check_distributed(fact: SiteLevelFact) -> None:
    """The grid is not in the record: rounding to it makes a contribution 1 to `MAX_ROUNDING_LOSS` times as long."""
    if not all(isinstance(event, DistributedSkellam) for event in fact.run_events):
        raise ValueError("rounds of this mechanism are sums with noise of the sites")
    noise = [e.noise_multiplier for e in fact.round_events if isinstance(e, DistributedSkellam)]
    least = noise[0] * fact.clipping_norm / fact.num_sites
    if not 1 - NOISE_TOLERANCE <= fact.noise_std / least <= MAX_ROUNDING_LOSS + NOISE_TOLERANCE:
        raise ValueError("the noise of the model is not that of its event")


def _count(events: Iterable[Event]) -> int:
    return sum(event.steps for event in events)


def _steps(events: Iterable[Event]) -> "Counter[Event]":
    return Counter({e.model_copy(update={"steps": 1}): e.steps for e in merge_events(events)})


def _check_account(fact: SitePrivacyFact | SiteLevelFact, events: tuple[Event, ...]) -> None:
    if any(event.unit != fact.unit for event in events):
        raise ValueError("an event is of another unit than the account")
    if not are_part_of(fact.round_events, events):
        raise ValueError("the round released something that is not in the account")
    if fact.samplers != samplers_of(events):
        raise ValueError("samplers are not those of the events")
    if fact.is_bounded != (fact.epsilon is not None):
        raise ValueError("an account has an epsilon when it is bounded, and only then")
    if fact.is_bounded != (fact.epsilon_rdp is not None):
        raise ValueError("both accountants give a bound, or neither does")
    if fact.epsilon is not None and (fact.epsilon_rdp or 0) < fact.epsilon:
        raise ValueError("RDP is a looser bound on the same loss; it cannot be the smaller one")
    if fact.is_bounded and any(isinstance(event, UnboundedRelease) for event in events):
        raise ValueError("a release without a bound leaves no bound")
