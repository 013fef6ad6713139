"""What sums with distributed noise cost one patient: for the site's ledger, and for the server that checks it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedhealth.config.study import Study
from fedhealth.privacy.accounting.events import DistributedSkellam
from fedhealth.privacy.accounting.plan import LARGEST_DELTA, default_delta
from fedhealth.privacy.accounting.split_id import split_id
from fedhealth.privacy.distributed.plan import DistributedPlan
from fedhealth.secagg.round_settings import distributed_plan

SITE_FACTOR: Final = 2
"""A patient who joins or leaves moves a site's clipped update from one point of a ball to another: by twice its radius
at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisedSums:
    """The distributed mechanism of a study as one patient sees it.

    Attributes:
        by_run: what one round of a run costs.
        planned: all rounds of all runs, spare ones included.
        clipping_norm: of the unit.
        noise_multiplier: the least over the runs, of the honest sites' noise together over a patient's sensitivity.
    """

    by_run: Mapping[str, DistributedSkellam]
    planned: tuple[DistributedSkellam, ...]
    clipping_norm: float
    noise_multiplier: float


def noised_sums(study: Study, num_elements: Mapping[str, int]) -> NoisedSums | None:
    """The mechanism of a study, from the sizes of its runs' models; None without distributed privacy.

    Raises:
        PrivacyError: no noise and grid fit the study.
    """
    plans = {
        run.name: distributed_plan(study, num_elements[run.name])
        for run in study.runs
        if run.name in num_elements
    }
    known = {name: plan for name, plan in plans.items() if plan is not None}
    if not known:
        return None
    by_run = {name: patient_event(study, plan) for name, plan in known.items()}
    masks = study.secure_aggregation
    noise = None if masks is None else masks.distributed_privacy
    spare = 0 if noise is None else noise.spare_rounds
    longest = max(study.runs, key=lambda run: run.num_rounds).name
    planned = [
        by_run[run.name].model_copy(
            update={"steps": run.num_rounds + (spare if run.name == longest else 0)}
        )
        for run in study.runs
        if run.name in by_run
    ]
    return NoisedSums(
        by_run=by_run,
        planned=tuple(planned),
        clipping_norm=next(iter(known.values())).clipping_norm,
        noise_multiplier=min(event.noise_multiplier for event in by_run.values()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SumTerms:
    """What a site has to say about a patient's account, where distributed noise is all that covers one."""

    event: DistributedSkellam
    delta: float
    clipping_norm: float


def sum_terms(study: Study, num_elements: int) -> SumTerms | None:
    """The terms of one sum over a model of that size; None where something else covers patients, or nothing."""
    plan = distributed_plan(study, num_elements)
    if plan is None or study.privacy is not None:
        return None
    return SumTerms(
        event=patient_event(study, plan),
        delta=patient_delta(study),
        clipping_norm=plan.clipping_norm,
    )


def patient_event(study: Study, plan: DistributedPlan) -> DistributedSkellam:
    """What one sum costs one patient, who is the unit or is in one site's update."""
    factor = 1 if plan.unit == "patient" else SITE_FACTOR
    event = plan.event(1, split_id=split_id(study), population="train", sensitivity_factor=factor)
    return event.model_copy(update={"unit": "patient"})


def patient_delta(study: Study) -> float:
    """Delta of a patient's account in a study that hides sizes: from the largest size that a site may declare."""
    masks = study.secure_aggregation
    if masks is None:
        return LARGEST_DELTA
    chosen = None if masks.distributed_privacy is None else masks.distributed_privacy.delta
    most = default_delta(masks.max_train_size)
    return most if chosen is None else min(chosen, most)
