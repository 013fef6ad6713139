"""Was it worth it here: held-out results of a model at one site, and of training alone. Never leaves the site.

Called by `fedhealth site evaluate`. Test patients are those of the split's test side: no training, no choice of
settings and no released metric has seen them.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedhealth.config.personalisation import KEEPS_MODEL
from fedhealth.contracts.control_variates import model_part
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import RoundTask, SiteContext
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import PatientDataset
from fedhealth.data.split import split_patients
from fedhealth.errors import TrainingError
from fedhealth.models.seeds import derive_seed
from fedhealth.training.held_out import HeldOutScores, TestResult, result_of, scores_on
from fedhealth.training.learner import Learner, load, spec_of
from fedhealth.training.personalisation.fine_tune import fine_tuned
from fedhealth.training.personalisation.state import open_state
from fedhealth.training.supervised import SupervisedTraining, supervised_options

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

Vector = NDArray[np.float32]


def evaluate_on_test(
    study: "Study", run: "RunPlan", vector: Vector, site: SiteContext
) -> TestResult:
    """`scores_on_test` as a row of the site's table. Raises the same."""
    scores = scores_on_test(study, run, vector, site)
    return result_of(scores, seed=bootstrap_seed(study, site.site_id))


def scores_on_test(
    study: "Study", run: "RunPlan", vector: Vector, site: SiteContext
) -> HeldOutScores:
    """Judge a run's global vector on this site's test patients, with the site's private head where it has one.

    Args:
        study: the study.
        run: the run whose model `vector` is.
        vector: the shared tensors, flat, on the run's spec.
        site: cohort, and the state folder with the private heads.

    Raises:
        ConfigError: as `SupervisedTraining.open_session`.
        AggregationError: FH-TENSOR-003 the vector is not on the spec.
        TrainingError: FH-TRAIN-004 the model's output is not finite, FH-TRAIN-006 the private head is damaged,
            FH-TRAIN-009 the run has private heads and this site has none.
        SiteDataError: the cohort does not keep the data contract.
    """
    torch.set_num_threads(site.num_threads)
    learner = Learner(study, run, device=site.device)
    load_run_model(learner, run, vector, site, study)
    patients = split_patients(site.load_cohort())[SplitName.TEST]
    dataset = PatientDataset(patients, learner.contract, memory_limit_bytes=0)
    return scores_on(learner, dataset, batch_size=supervised_options(study).evaluation_batch_size)


def load_run_model(
    learner: Learner, run: "RunPlan", vector: Vector, site: SiteContext, study: "Study"
) -> None:
    """Give a learner the model that predicts at this site: a run's global vector, and what is the site's own.

    With personalisation fine_tune the site's own model is made now, where it was not made before.

    Raises:
        AggregationError: FH-TENSOR-003 the vector is not on the learner's spec.
        TrainingError: FH-TRAIN-006 what the site keeps is damaged, FH-TRAIN-009 it has nothing; or as
            `personalisation.fine_tune.fine_tuned`.
    """
    model = model_part(vector, has_controls=run.control_variates)
    load(learner.shared, spec_of(learner.shared).unflatten(model))
    if run.personalisation == "none":
        return
    if run.personalisation == "fine_tune":
        load(learner.shared, fine_tuned(study, run, model, site))
        return
    own = open_state(site, run, learner).own
    if own is None:
        raise TrainingError(
            "FH-TRAIN-009",
            f"this site has no private head or other model of its own of run {run.name!r}.",
            why="Only a site that took part has one, and what was never trained says nothing.",
            fix="Evaluate a run without personalisation, or take part in this one.",
        )
    load(learner.shared if run.personalisation in KEEPS_MODEL else learner.private, own)


def bootstrap_seed(study: "Study", site_id: str) -> int:
    """Of this site's patient resamples: the same for every model, so that the table does not change."""
    return derive_seed(study.seed, "bootstrap", site_id)


def train_alone(study: "Study", run: "RunPlan", site: SiteContext) -> TestResult:
    """What this site reaches by itself: the same initial weights, settings and number of rounds, no exchange.

    No noise either, whatever the study's privacy: nothing leaves the site. Nothing is written to the state
    folder. What a strategy asks of a site (FedProx) does not apply.

    Raises:
        TrainingError: FH-TRAIN-004 the training diverged, FH-TRAIN-005 there is no training patient.
        ConfigError, SiteDataError: as `SupervisedTraining.open_session`.
    """
    # Without personalisation everything is in the vector; alone, private and shared are the same, and nothing drifts.
    run = run.alone()
    cohort = site.load_cohort()
    site = replace(site, load_cohort=lambda: cohort)
    method = SupervisedTraining()
    tensors = method.initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    session = method.open_session(study, run, spec, site)
    vector = spec.flatten(tensors)
    for round_number in range(1, run.num_rounds + 1):
        task = RoundTask(
            run_name=run.name,
            round_number=round_number,
            attempt=1,
            strategy_config={},
            is_cancelled=_never,
        )
        vector = spec.flatten(session.train(vector, task).tensors)
    return evaluate_on_test(study, run, vector, site)


def _never() -> bool:
    return False
