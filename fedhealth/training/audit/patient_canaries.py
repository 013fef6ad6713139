"""The one-run audit from outside: made-up patients with drawn labels, and the last weights. Called by `whole`.

The study's own training session does the work, rounds and all; the attacker sees the last weights only.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import PatientMechanism, RoundTask, SiteContext
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import PatientDataset
from fedhealth.data.split import split_patients
from fedhealth.privacy.audit.one_run import Guesses, guess_extremes
from fedhealth.training.audit.gradient_canaries import num_guesses
from fedhealth.training.audit.made_up_patients import made_up_patients
from fedhealth.training.learner import Learner, load
from fedhealth.training.supervised import SupervisedTraining

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

Values = NDArray[np.float64]
_BATCH = 64


def attack_losses(
    study: "Study",
    run: "RunPlan",
    site: SiteContext,
    mechanisms: Sequence[PatientMechanism | None],
    *,
    num_canaries: int,
    rng: np.random.Generator,
) -> Guesses:
    """Train on the cohort and half of the canaries, one round a mechanism (None: as without privacy), and guess.

    A canary looks "in" when its loss fell a lot from the first weights to the last (the calibrated attack of
    Watson et al. 2022, "On the Importance of Difficulty Calibration in Membership Inference Attacks", section 3).

    Raises:
        UsageError: FH-AUDIT-002 the training diverged.
        ConfigError, PrivacyError, SiteDataError, TrainingError: as the session.
    """
    # Nothing is kept back at the site, so that the attacker sees the whole model.
    run = run.alone()
    cohort = site.load_cohort()
    canaries = made_up_patients(cohort.contract, num_canaries, rng)
    is_included = rng.random(num_canaries) < 0.5  # noqa: PLR2004 - a fair coin
    included = [canary for canary, is_in in zip(canaries, is_included, strict=True) if is_in]
    learner = Learner(study, run, device=site.device)
    dataset = PatientDataset(canaries, learner.contract)
    before = patient_losses(learner, dataset)
    with tempfile.TemporaryDirectory() as folder:
        site = replace(
            site, state_dir=Path(folder), load_cohort=lambda: _with_canaries(cohort, included)
        )
        load(learner.shared, _train(study, run, site, mechanisms))
    scores = before - patient_losses(learner, dataset)
    return guess_extremes(scores, is_included, num_guesses(num_canaries))


def patient_losses(learner: Learner, dataset: PatientDataset) -> Values:
    """(R,) the task's loss of each record by itself."""
    learner.model.eval()
    losses = []
    with torch.inference_mode():
        for rows in torch.split(torch.arange(len(dataset)), _BATCH):
            batch = dataset.batch(rows).to(learner.device)
            logits = learner.model(batch)
            losses += [
                float(learner.task.loss(logits[row : row + 1], batch.labels[row : row + 1]))
                for row in range(len(batch))
            ]
    return np.array(losses, dtype=np.float64)


def _with_canaries(cohort: Cohort, canaries: Sequence[Patient]) -> Cohort:
    """The cohort and the canaries, everybody on the side where they would be, canaries on the training side."""
    sides = {
        patient.patient_id: side
        for side, patients in split_patients(cohort).items()
        for patient in patients
    }
    sides |= dict.fromkeys((canary.patient_id for canary in canaries), SplitName.TRAIN)
    return replace(cohort, patients=(*cohort.patients, *canaries), fixed_split=sides)


def _train(
    study: "Study",
    run: "RunPlan",
    site: SiteContext,
    mechanisms: Sequence[PatientMechanism | None],
) -> dict[str, NDArray[np.float32]]:
    method = SupervisedTraining()
    tensors = method.initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    session = method.open_session(study, run, spec, site)
    for number, mechanism in enumerate(mechanisms, start=1):
        task = RoundTask(
            run_name=run.name,
            round_number=number,
            attempt=1,
            strategy_config={},
            is_cancelled=lambda: False,
            mechanism=mechanism,
        )
        tensors = dict(session.train(spec.flatten(tensors), task).tensors)
    return tensors
