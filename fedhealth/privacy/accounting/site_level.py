"""What a whole site gives away through the models of a run, and what that number is worth with few sites.

Called by reports and plans. The unit is the site and is never mixed with a patient's account. Every site is asked
in every round and everybody sees who answered, so no sampling makes the noise count for more than it is. The noise is
the server's, or with ``distributed-skellam`` the sum of what sites added, of which some number has to be honest.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context
from typing import Final, Literal

from fedhealth.contracts.aggregation import SiteLevelRelease, SkellamShare
from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.accountants import Spend, compose
from fedhealth.privacy.accounting.events import (
    DistributedSkellam,
    Event,
    GaussianRelease,
    Generator,
    UnboundedRelease,
    merge_events,
)

MIN_SITES_FOR_BADGE: Final = 20
"""Below it the noise that gives a small epsilon is as large as what it hides: no report shows a badge."""

MAX_EPSILON_FOR_BADGE: Final = 10.0
"""No badge above it. The odds that a site took part may then change by more than exp(10), about 22 000; Ponomareva
et al. 2023 (arXiv 2303.00654, section 5.2) put the end of what they call reasonable protection there as well."""

SITES: Final = "sites"
"""Stands where a patient's event names the split of a data set: all sites are one population."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLevelStatement:
    """The guarantee for a whole site against somebody who sees the models of the run, and nothing else."""

    spend: Spend
    """Epsilon (PLD and RDP), delta, unit, adjacency, accountant and its version."""
    num_sites: int
    noise_over_clip: float
    """Least standard deviation of a round's noise on one coordinate of the mean, in clipping norms."""
    is_meaningful: bool
    """`earns_badge`: enough sites, an epsilon that says something, noise that nobody can remove."""
    sentence: str

    @property
    def epsilon(self) -> float:
        """The headline: epsilon from privacy loss distributions; may be infinite."""
        return self.spend.epsilon

    @property
    def delta(self) -> float:
        """The delta that the epsilon belongs to."""
        return self.spend.delta

    @property
    def unit(self) -> Literal["site"]:
        """Always the site."""
        return "site"


def default_delta(num_sites: int) -> float:
    """``min(1e-3, 0.1 / num_sites)``: the rule for patients, with sites in their place.

    A tenth of 1 / num_sites, since a mechanism that publishes one site in `num_sites` at random has that delta.

    Raises:
        PrivacyError: FH-PRIVACY-085 fewer than one site.
    """
    if num_sites < 1:
        raise PrivacyError("FH-PRIVACY-085", f"{num_sites} sites have no site-level privacy.")
    return min(1e-3, 0.1 / num_sites)


def has_seeded_noise(events: Iterable[Event]) -> bool:
    """Whether the noise of any of them came from a fixed seed, as in tests."""
    return any(
        not isinstance(event, UnboundedRelease) and event.generator == "seeded_for_tests"
        for event in events
    )


def site_level_events(releases: Iterable[SiteLevelRelease]) -> tuple[Event, ...]:
    """The events of these rounds, equal ones counted together.

    A round is one Gaussian release (DP-FedAvg: McMahan et al. 2018, arXiv 1710.06963; DP-FTRL: one row of the
    matrix mechanism), and one more for the noised count when the clipping norm adapts (Andrew et al. 2021,
    arXiv 1905.03871, theorem 1: the two compose to the multiplier that the study set). With noise from the sites it is
    one distributed Skellam release (Agarwal, Kairouz, Liu 2021, arXiv 2110.04995).

    Raises:
        PrivacyError: FH-PRIVACY-110 a release says that sites made the noise and not how much, or the reverse.
    """
    return merge_events(event for release in releases for event in _events_of(release))


def earns_badge(
    events: Iterable[Event], *, num_sites: int, epsilon: float | None, delta: float
) -> bool:
    """Whether the account of these releases may be shown with a badge.

    At least `MIN_SITES_FOR_BADGE` sites, an epsilon of at most `MAX_EPSILON_FOR_BADGE`, a delta below 1 / num_sites,
    and no noise from a fixed seed.

    Args:
        events: all releases of the run.
        num_sites: the smaller of the mean's denominator and, where it is known, the number of admitted sites: a
            denominator is an option, and does not make hospitals.
        epsilon: of the events; None without a bound.
        delta: that epsilon's.
    """
    return _why_no_badge(tuple(events), num_sites, epsilon, delta) is None


def statement_of_site_level(
    events: Iterable[Event],
    num_sites: int,
    delta: float | None = None,
    *,
    noise_over_clip: float | None = None,
) -> SiteLevelStatement:
    """Epsilon of a run for a whole site, and a sentence that says what it is worth.

    Args:
        events: all releases of the run, unit ``site``.
        num_sites: the public denominator of the mean.
        delta: left out, `default_delta`.
        noise_over_clip: the noise of a round on a coordinate of the mean over the clipping norm; left out, a lower
            bound from the events.

    Raises:
        PrivacyError: FH-PRIVACY-085 fewer than one site, FH-PRIVACY-086 an event of another unit,
            FH-PRIVACY-087 a delta outside of (0, 1).
    """
    listed = tuple(events)
    chosen = default_delta(num_sites) if delta is None else delta
    if num_sites < 1:
        raise PrivacyError("FH-PRIVACY-085", f"{num_sites} sites have no site-level privacy.")
    if not 0 < chosen < 1:
        raise PrivacyError(
            "FH-PRIVACY-087",
            f"a delta of {chosen} is not between 0 and 1.",
            fix="Leave it out, or give a number well below 1 / number of sites.",
        )
    if any(event.unit != "site" for event in listed):
        raise PrivacyError(
            "FH-PRIVACY-086",
            "an event of a patient's account was given for a site's.",
            why="The two protect different things; one number for both would be true of neither.",
            fix="Compose each unit by itself.",
        )
    spend = replace(compose(listed, delta=chosen), unit="site")  # without events it cannot know
    share = _least_multiplier(listed) / num_sites if noise_over_clip is None else noise_over_clip
    reason = _why_no_badge(listed, num_sites, spend.epsilon, chosen)
    return SiteLevelStatement(
        spend=spend,
        num_sites=num_sites,
        noise_over_clip=share,
        is_meaningful=reason is None,
        sentence=_sentence(spend, num_sites, share, reason) + _trust(listed),
    )


def _events_of(release: SiteLevelRelease) -> Iterable[Event]:
    if (release.mechanism == "distributed-skellam") != (release.skellam is not None):
        raise PrivacyError(
            "FH-PRIVACY-110",
            f"a release of {release.mechanism} comes {'with' if release.skellam else 'without'} shares of noise.",
            why="Gaussian noise of a server and Skellam noise of sites are accounted for in different ways.",
            fix="Use a strategy that gives `skellam` with distributed-skellam, and only there.",
        )
    if release.skellam is not None:
        yield _distributed(release.skellam, release.generator)
    else:
        yield _gaussian(release.noise_multiplier, release.generator)
    if release.quantile_multiplier is not None:
        yield _gaussian(release.quantile_multiplier, release.generator)


def _gaussian(multiplier: float, generator: Generator) -> GaussianRelease:
    return GaussianRelease(
        unit="site",
        noise_multiplier=multiplier,
        steps=1,
        population="all",
        split_id=SITES,
        generator=generator,
    )


def _distributed(share: SkellamShare, generator: Generator) -> DistributedSkellam:
    return DistributedSkellam(
        unit="site",
        l1_sensitivity=share.l1_sensitivity,
        l2_sensitivity=share.l2_sensitivity,
        variance=share.variance,
        num_honest=share.num_honest,
        steps=1,
        population="all",
        split_id=SITES,
        generator=generator,
    )


def _least_multiplier(events: tuple[Event, ...]) -> float:
    if any(isinstance(event, UnboundedRelease) for event in events):
        return 0.0
    kinds = (GaussianRelease, DistributedSkellam)
    multipliers = [e.noise_multiplier for e in events if isinstance(e, kinds)]
    return min(multipliers, default=0.0)


def _why_no_badge(
    events: tuple[Event, ...], num_sites: int, epsilon: float | None, delta: float
) -> str | None:
    """The first reason against a badge, as the end of a sentence; None where there is none."""
    if num_sites < MIN_SITES_FOR_BADGE:
        return f"with fewer than {MIN_SITES_FOR_BADGE} sites this is no protection to rely on"
    if epsilon is None or not math.isfinite(epsilon):
        return "something left without noise, so nothing bounds it"
    if epsilon > MAX_EPSILON_FOR_BADGE:
        return f"an epsilon above {MAX_EPSILON_FOR_BADGE:g} bounds next to nothing"
    if has_seeded_noise(events):
        return "the noise came from a fixed seed, and who knows the seed can remove it"
    if delta * num_sites >= 1:
        return (
            "delta is not below 1 / number of sites, so publishing one site whole would be allowed"
        )
    return None


def _sentence(spend: Spend, num_sites: int, share: float, reason: str | None) -> str:
    models = f"Against somebody who sees only the models, a whole site has epsilon {_number(spend.epsilon)}"
    said = f"{models} at delta {spend.delta:.2g} (add or remove one site)"
    noise = (
        f"in every round each coordinate of the mean carries noise of at least {share:.2g} clipping norms, "
        f"and one of the {num_sites} sites moves the mean by at most {1 / num_sites:.2g} of them."
    )
    if reason is None:
        return f"{said}; {noise}"
    return f"{said}; {noise} No badge: {reason}."


def _trust(events: tuple[Event, ...]) -> str:
    counted = [event.num_honest for event in events if isinstance(event, DistributedSkellam)]
    if not counted:
        return ""
    return f" It counts on the noise of at least {max(counted)} honest sites in every sum."


def _number(epsilon: float) -> str:
    """Three digits, never rounded down: a bound that is shown lower than it is would be none."""
    if math.isinf(epsilon):
        return "infinity"
    return f"{Context(prec=3, rounding=ROUND_CEILING).create_decimal(repr(epsilon)).normalize():f}"
