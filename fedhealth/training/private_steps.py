"""The optimiser steps of one local round under patient privacy (DP-SGD). Called by `supervised`.

Abadi et al. 2016, "Deep Learning with Differential Privacy" (arXiv 1607.00133), algorithm 1, with a patient as the
unit: what the site may release after the steps is what `PatientMechanism` says, neither more nor less. How
many steps there are, how many patients a step has on average and what it is divided by come from the mechanism.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from logging import getLogger
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.data.batch import Batch, PatientDataset
from fedhealth.errors import SiteDataError
from fedhealth.models.example_batch import random_batch_like, without
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients
from fedhealth.privacy.dp_sgd.gradient_sum import GradientSum, check_all_noised, check_mechanism
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.frozen_tensors import trained
from fedhealth.training.learner import Learner, non_finite
from fedhealth.training.local_steps import (
    StepPlan,
    add_corrections,
    cuda_devices,
    make_optimizer,
    stop_if,
)
from fedhealth.training.modality_dropout import drop_modalities
from fedhealth.training.pulls import pull_of
from fedhealth.training.shared_records import SharedRecords

if TYPE_CHECKING:
    from fedhealth.config.study import TrainingConfig

MICRO_BATCHES_PER_BATCH = 2
"""A forward pass takes about twice the study's batch size in records at most: with batches of 16 a Poisson draw is
above that in one step of 7000, and else one pass is enough."""

NUM_TRIAL_RECORDS = 5
"""Enough for records with everything, and without the odd and the even modalities."""

_log = getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What the parts of a step share."""

    learner: Learner
    dataset: PatientDataset
    config: "TrainingConfig"
    gradients: ClippedGradients
    clipping_norm: float
    randomness: Randomness


def run_private_steps(
    learner: Learner,
    dataset: PatientDataset,
    plan: StepPlan,
    mechanism: PatientMechanism,
    randomness: Randomness,
    *,
    gradients: ClippedGradients | None = None,
) -> None:
    """Train the learner's shared and private parameters in place, all of them clipped and noised.

    What is frozen (`frozen_tensors`) is not trained: it keeps the incoming, public values, and gets no noise.

    A private head goes through the same steps: a head trained without noise would depend on every patient in full,
    and the gradients of the shared body with it. The proximal term and corrections are added after the noise: they
    know no patient but through earlier, noised steps.

    Args:
        learner: model, task and weights.
        dataset: training patients; none at all is fine, and looks the same from outside.
        plan: `seed` is not used, see below. `shared` records are drawn apart, before the patients: what they add does
            not depend on who is there (`shared_records`).
        mechanism: what was reserved in the ledger.
        randomness: of sampling, noise and everything else that is drawn for patients.
        gradients: of `clipped_gradients`, kept by a session from round to round; None makes them for this call.

    Raises:
        CancelledTrainingError: FH-TRAIN-001 `plan.is_cancelled()` turned true.
        PrivacyError: FH-PRIVACY-053 the mechanism is none, FH-PRIVACY-054 a tensor would be trained without noise.
        TrainingError: FH-TRAIN-004 a trained weight is not finite.
    """
    check_mechanism(mechanism)
    check_all_noised(learner.model, {**learner.shared, **learner.private})
    if gradients is not None:
        _run_steps(learner, dataset, plan, mechanism, randomness, gradients=gradients)
        return
    gradients = clipped_gradients(learner, dataset, plan.shared)
    try:
        _run_steps(learner, dataset, plan, mechanism, randomness, gradients=gradients)
    finally:
        gradients.close()


def clipped_gradients(
    learner: Learner, dataset: PatientDataset, shared: SharedRecords | None = None
) -> ClippedGradients:
    """Tries on made-up patients how the model's gradients are kept apart; close it when the learner is done."""
    trial = random_batch_like(dataset.batch([]), NUM_TRIAL_RECORDS)
    rows = torch.arange(len(trial))
    seen = dataset.modalities | (frozenset() if shared is None else shared.dataset.modalities)
    for number, name in enumerate(trial.present):
        # No record at all: nothing will ever look at it, and its width may be unknown.
        never = name not in seen
        trial = without(trial, name, None if never else rows % 3 == 1 + number % 2)
    return ClippedGradients(
        learner.model,
        learner.task,
        trained({**learner.shared, **learner.private}),
        trial.to(learner.device),
    )


def _run_steps(
    learner: Learner,
    dataset: PatientDataset,
    plan: StepPlan,
    mechanism: PatientMechanism,
    randomness: Randomness,
    *,
    gradients: ClippedGradients,
) -> None:
    parameters = trained({**learner.shared, **learner.private})
    optimizer = make_optimizer(plan.config.optimizer, list(parameters.values()))
    pull = pull_of(learner, plan)
    gradient_sum = GradientSum(parameters)
    num_left_out = 0
    learner.model.train()
    # Modality dropout and Dropout layers draw from a secret source, not from the study's seed: positions in a batch
    # shift when a patient is removed, and with public masks other patients' gradients would shift with them. Then
    # the difference between two neighbouring cohorts is no longer one clipped gradient.
    with torch.random.fork_rng(devices=cuda_devices(learner)):
        step = _Step(
            learner=learner,
            dataset=dataset,
            config=plan.config,
            gradients=gradients,
            clipping_norm=mechanism.clipping_norm,
            randomness=randomness,
        )
        shared_step, whole = None, mechanism
        if plan.shared is not None:
            shared_step = replace(step, dataset=plan.shared.dataset)
            rate = plan.shared.sampling_rate(mechanism)
            both = mechanism.expected_batch_size + plan.shared.expected_size(mechanism)
            whole = replace(mechanism, expected_batch_size=both)
        for _ in range(mechanism.num_steps):
            stop_if(plan.is_cancelled)
            # For Dropout layers. torch keeps 32 bits of a seed, so no seed serves more than one step.
            torch.manual_seed(secret_seed(randomness))
            gradient_sum.clear()
            if shared_step is not None:
                drawn = randomness.bernoulli(shared_step.dataset.num_patients, rate)
                num_left_out += _add_patients(shared_step, gradient_sum, np.flatnonzero(drawn))
            chosen = randomness.bernoulli(dataset.num_patients, mechanism.sampling_rate)
            num_left_out += _add_patients(step, gradient_sum, np.flatnonzero(chosen))
            # An empty draw takes this step too, on noise alone: skipping it would tell that it was empty.
            check_all_noised(learner.model, parameters)
            gradient_sum.write_noised_mean(whole, randomness)
            pull.add_gradient()
            add_corrections(learner, plan.corrections)
            optimizer.step()
            pull.follow_step()
    if num_left_out:
        _log.warning(
            "gradients not finite or far too long, and unreadable files, were left out %d times",
            num_left_out,
        )
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters.values()):
        raise non_finite("a trained weight")


def _add_patients(step: _Step, gradient_sum: GradientSum, chosen: NDArray[np.intp]) -> int:
    num_left_out = 0
    for part in _micro_batches(step, chosen):
        loaded, num_unreadable = load_readable(step.dataset, part)
        num_left_out += num_unreadable
        if loaded is None:
            continue
        batch, owners = loaded
        batch = drop_modalities(
            batch, step.config.modality_dropout, partial(secret_scores, step.randomness)
        ).to(step.learner.device)
        num_left_out += step.gradients.add_to(
            gradient_sum.by_name,
            batch,
            owners.to(step.learner.device),
            clipping_norm=step.clipping_norm,
        )
    return num_left_out


def _micro_batches(step: _Step, chosen: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Patients, a patient's records always together: they are summed before the norm is taken."""
    limit = MICRO_BATCHES_PER_BATCH * step.config.batch_size
    rows, _ = step.dataset.records_of(chosen)
    num_parts = max(1, math.ceil(len(rows) / limit))
    yield from (part for part in np.array_split(chosen, num_parts) if part.size)


def load_readable(
    dataset: PatientDataset, patients: NDArray[np.intp]
) -> tuple[tuple[Batch, Tensor] | None, int]:
    """Records and owners of those patients whose files can be read, and how many cannot.

    A file that cannot be read shows only when its patient is drawn: a failure would tell the server who was.
    """
    try:
        rows, owners = dataset.records_of(patients)
        return (dataset.batch(rows), owners), 0
    except SiteDataError:
        readable = [patient for patient in patients if _is_readable(dataset, patient)]
    if not readable:
        return None, len(patients)
    rows, owners = dataset.records_of(np.array(readable))
    return (dataset.batch(rows), owners), len(patients) - len(readable)


def _is_readable(dataset: PatientDataset, patient: int) -> bool:
    try:
        dataset.batch(dataset.records_of(np.array([patient]))[0])
    except SiteDataError:
        return False
    return True


def secret_scores(randomness: Randomness, num_rows: int, num_columns: int) -> Tensor:
    """Uniform on [0, 1), 24 bits each: as many as float32 holds."""
    words = randomness.uniform_bits(num_rows * num_columns) >> np.uint64(40)
    scores = words.astype(np.float32) * np.float32(2.0**-24)
    return torch.from_numpy(scores.reshape(num_rows, num_columns))


def secret_seed(randomness: Randomness) -> int:
    """A seed for torch that nobody can guess."""
    return int(randomness.uniform_bits(1)[0] >> np.uint64(1))
