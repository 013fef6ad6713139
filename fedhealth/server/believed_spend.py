"""What the server believes of a site's privacy account. Called by `contributions`.

The plan of a site follows from the study and the size it declared, so the server works out the same one and
holds each answer against it.
"""

from collections.abc import Iterable
from typing import Final

from fedhealth.evidence.statements import Contribution, Manifest, PrivacySpend
from fedhealth.privacy.accounting.events import (
    Event,
    GaussianRelease,
    PoissonSubsampledGaussian,
    UnboundedRelease,
)
from fedhealth.privacy.accounting.metrics import METRIC_BOUNDS
from fedhealth.privacy.accounting.plan import SitePlan
from fedhealth.report.privacy import spend_is_consistent
from fedhealth.secagg.patient_account import SumTerms

NOISE_TOLERANCE: Final = 0.01
"""Relative: versions of an accountant differ in the last digit of a calibrated noise, which has four."""
MAX_OTHER_KINDS: Final = 4
"""Mechanisms in the account that are not in the plan, such as those of an earlier study of this name."""


def spend_is_believed(
    said: Contribution,
    manifest: Manifest,
    plan: SitePlan | None,
    *,
    declared_train_size: int,
    sums: SumTerms | None = None,
) -> bool:
    """Whether what a site says that its answer cost is what the study planned, and adds up.

    Args:
        said: a contribution whose signature was verified.
        manifest: what it answers.
        plan: of this site; None for a study without patient-level privacy.
        declared_train_size: public, from the roster; 1 where a study hides it.
        sums: where distributed noise is all that covers a patient.
    """
    spend = said.privacy
    if said.drop_code is not None:
        return spend is None
    if plan is None and sums is not None:
        return spend is not None and _is_summed(said, spend, sums)
    if plan is None:
        return spend is None or _is_open(said, spend, declared_train_size)
    return (
        spend is not None
        and spend_is_consistent(spend, declared_train_size=declared_train_size)
        and abs(spend.delta / plan.delta - 1) < NOISE_TOLERANCE
        and spend.clipping_norm == plan.clipping_norm
        and _is_planned_round(said, manifest, spend, plan)
        and sum(not _is_planned(event, plan) for event in spend.study_events) <= MAX_OTHER_KINDS
    )


def _is_summed(said: Contribution, spend: PrivacySpend, sums: SumTerms) -> bool:
    """A training answer costs exactly one sum, the closing one nothing; delta and clipping norm are the study's."""
    sum_event = sums.event
    wanted = (sum_event,) if said.kind == "train" else ()
    others = [
        event
        for event in spend.study_events
        if event.model_copy(update={"steps": 1, "population": sum_event.population}) != sum_event
    ]
    allowed = (wanted, tuple(event.model_copy(update={"population": "all"}) for event in wanted))
    return (
        spend.round_events in allowed
        and abs(spend.delta / sums.delta - 1) < NOISE_TOLERANCE
        and spend.clipping_norm == sums.clipping_norm
        and len(others) <= MAX_OTHER_KINDS
        and spend_is_consistent(spend)
    )


def _is_open(said: Contribution, spend: PrivacySpend, declared_train_size: int) -> bool:
    """An update or a metric without noise is an event without a bound, and nothing else is in the round."""
    says_unbounded = all(isinstance(event, UnboundedRelease) for event in spend.round_events)
    released = said.kind == "train" or said.train_metrics or said.evaluate_metrics
    return (
        says_unbounded
        and (bool(spend.round_events) or not released)
        and spend_is_consistent(spend, declared_train_size=declared_train_size)
    )


def _is_planned_round(
    said: Contribution, manifest: Manifest, spend: PrivacySpend, plan: SitePlan
) -> bool:
    """Training when it was asked for, with the planned number of steps; metrics only when they were paid for."""
    trained = _kind(spend.round_events, PoissonSubsampledGaussian)
    told = _kind(spend.round_events, GaussianRelease)
    wanted = [plan.train_event(manifest.run_name).steps] if manifest.kind == "train" else []
    return (
        all(_is_planned(event, plan) for event in spend.round_events)
        and [event.steps for event in trained] == wanted
        and [event.steps for event in told] in ([], [1])
        and not said.train_metrics
        and (bool(told) or not said.evaluate_metrics)
        and said.evaluate_metrics.keys() <= METRIC_BOUNDS.keys()
    )


def _kind(events: Iterable[Event], kind: type[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def _is_planned(event: Event, plan: SitePlan) -> bool:
    if isinstance(event, PoissonSubsampledGaussian):
        return (
            abs(event.sampling_rate / plan.sampling_rate - 1) < 1e-9  # noqa: PLR2004 - float rounding
            and _is_enough(event.noise_multiplier, plan.noise_multiplier)
            and event.population in {"train", "all"}
            and event.split_id == plan.split_id
        )
    planned = plan.metrics_noise_multiplier
    return (
        isinstance(event, GaussianRelease)
        and planned is not None
        and _is_enough(event.noise_multiplier, planned)
        and event.population in {"validation", "all"}
        and event.split_id == plan.split_id
    )


def _is_enough(noise: float, planned: float) -> bool:
    return noise >= planned * (1 - NOISE_TOLERANCE)
