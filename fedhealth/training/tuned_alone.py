"""The baseline that a federation has to beat: this hospital alone, without noise, with settings chosen for it.

Called by `fedhealth site evaluate` and by benchmarks. Nothing of it leaves the site, so no privacy is spent; and
a model that a hospital trains for itself needs no noise. The settings come from one fixed grid, by
cross-validation on training and validation patients; test patients are looked at once, at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedhealth.config.study import OptimizerConfig
from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import SiteContext
from fedhealth.data.batch import PatientDataset
from fedhealth.data.split import split_patients
from fedhealth.errors import TrainingError
from fedhealth.models.judgement import primary_metric, record_values
from fedhealth.models.protocol import Predictions, Task
from fedhealth.models.seeds import derive_seed
from fedhealth.training.frozen_encoders import apply_frozen_encoders
from fedhealth.training.held_out import HeldOutScores, scores_on
from fedhealth.training.learner import Learner, Tensors, dump, load
from fedhealth.training.local_steps import StepPlan, run_steps
from fedhealth.training.supervised import supervised_options

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

LEARNING_RATES: Final = (0.003, 0.01, 0.03)
STAGE_EPOCHS: Final = 5
NUM_STAGES: Final = 8
"""With the rates above the whole grid: 24 settings, every rate after 5, 10, ... 40 epochs. Fixed on generated
cohorts of other seeds, before any comparison (docs/explanation/privacy-utility.md)."""

BATCH_SIZE: Final = 32
NUM_FOLDS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point of the grid: Adam's learning rate, and how many epochs."""

    learning_rate: float
    num_epochs: int


GRID: Final = tuple(
    Setting(learning_rate=rate, num_epochs=STAGE_EPOCHS * stages)
    for rate, stages in product(LEARNING_RATES, range(1, NUM_STAGES + 1))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedAlone:
    """The tuned model's scores on test patients, and what was chosen how.

    Attributes:
        scores: test patients, judged once.
        setting: the grid's winner.
        log_losses: cross-validated log loss of each setting of `GRID`, in its order; infinite where the
            training diverged. For a task without log loss, 1 minus its first metric.
    """

    scores: HeldOutScores
    setting: Setting
    log_losses: tuple[float, ...]


def train_alone_tuned(study: "Study", run: "RunPlan", site: SiteContext) -> TunedAlone:
    """Choose a setting by cross-validation, train with it on all patients but the test side, judge once.

    The model is the study's, with the same initial weights and modality dropout; optimiser (Adam, new at every
    5th epoch), learning rate, batch size and epochs are this baseline's own. It gets the validation patients
    too, which federated training leaves out: where it is unfair, it is so against the federation.

    Raises:
        TrainingError: FH-TRAIN-040 fewer than two patients to learn from, FH-TRAIN-041 every setting diverged.
        ConfigError, SiteDataError: as `SupervisedTraining.open_session`.
    """
    sides = split_patients(site.load_cohort())
    known = (*sides[SplitName.TRAIN], *sides[SplitName.VALIDATION])
    (tuned,) = train_tuned(study, run, known, [sides[SplitName.TEST]], site=site)
    return tuned


def train_tuned(
    study: "Study",
    run: "RunPlan",
    known: Sequence[Patient],
    tests: Sequence[Sequence[Patient]],
    *,
    site: SiteContext,
) -> list[TunedAlone]:
    """Choose a setting by cross-validation on `known` patients, train on them, judge once on each of `tests`.

    Args:
        study: model, task, data contract and seed.
        run: its personalisation is left out.
        known: patients to learn and to choose from.
        tests: groups of held-out patients.
        site: device, threads and cache; its id goes into the seed.

    Raises:
        TrainingError, ConfigError, SiteDataError: as `train_alone_tuned`.
    """
    torch.set_num_threads(site.num_threads)
    # Alone nothing is sent, so nothing is private: the head is trained like the rest.
    learner = Learner(study, run.alone(), device=site.device)
    options = supervised_options(study)
    dataset, *judged = (
        PatientDataset(patients, learner.contract, memory_limit_bytes=options.memory_limit_bytes)
        for patients in (known, *tests)
    )
    apply_frozen_encoders(
        learner,
        (dataset, *judged),
        batch_size=options.evaluation_batch_size,
        cache_dir=site.cache_dir,
    )
    trainer = _Trainer(study, learner, options.evaluation_batch_size, site.site_id)
    log_losses = cross_validate(trainer, dataset)
    setting = GRID[int(np.argmin(log_losses))]
    trainer.train(dataset, setting.learning_rate, setting.num_epochs // STAGE_EPOCHS)
    return [
        TunedAlone(
            scores=scores_on(learner, test, batch_size=options.evaluation_batch_size),
            setting=setting,
            log_losses=tuple(log_losses),
        )
        for test in judged
    ]


class _Trainer:
    """Trains the learner from the study's initial weights, in stages of `STAGE_EPOCHS` epochs."""

    def __init__(
        self, study: "Study", learner: Learner, evaluation_batch_size: int, site_id: str
    ) -> None:
        self.learner = learner
        self.evaluation_batch_size = evaluation_batch_size
        self.seed = derive_seed(study.seed, "tuned alone", site_id)
        self._training = study.training
        self._first: Tensors = dump(learner.shared)

    def train(
        self,
        dataset: PatientDataset,
        learning_rate: float,
        num_stages: int,
        judged: PatientDataset | None = None,
    ) -> list[Predictions]:
        """Train; the predictions for `judged` patients after each stage, fewer where it diverged."""
        load(self.learner.shared, self._first)
        config = self._training.model_copy(
            update={
                "optimizer": OptimizerConfig(name="adam", learning_rate=learning_rate),
                "batch_size": BATCH_SIZE,
                "local_epochs": STAGE_EPOCHS,
                "local_steps": None,
            }
        )
        predictions = []
        for stage in range(num_stages):
            plan = StepPlan(
                config=config,
                seed=derive_seed(self.seed, stage),
                proximal_mu=0.0,
                is_cancelled=_never,
            )
            try:
                run_steps(self.learner, dataset, plan)
                if judged is not None:
                    predictions.append(
                        self.learner.predict(judged, batch_size=self.evaluation_batch_size)
                    )
            except TrainingError as error:
                if judged is None or error.code != "FH-TRAIN-004":
                    raise
                break  # this rate diverges: its later stages have lost
        return predictions


def cross_validate(trainer: _Trainer, dataset: PatientDataset) -> list[float]:
    """Log loss of every setting of `GRID`, each patient predicted by a model that did not see them.

    A task without log loss is judged by 1 minus its first metric, the mean over records or, where it is no such
    mean (the concordance of Cox's model), over folds.

    Raises:
        TrainingError: FH-TRAIN-040 fewer than two patients, FH-TRAIN-041 every setting diverged.
    """
    if dataset.num_patients < 2:  # noqa: PLR2004 - one to learn from and one to judge with
        raise TrainingError(
            "FH-TRAIN-040",
            "this site has fewer than two patients on the training and validation sides.",
            why="A setting cannot be chosen without a patient to train on and another to judge with.",
            fix="Check the cohort and the study's split.",
        )
    folds = patient_folds(dataset, NUM_FOLDS, seed=derive_seed(trainer.seed, "folds"))
    log_losses = [
        value for rate in LEARNING_RATES for value in _log_losses(trainer, dataset, folds, rate)
    ]
    if not np.isfinite(log_losses).any():
        raise TrainingError(
            "FH-TRAIN-041",
            "training alone diverged with every setting of the grid.",
            why="There is then no model of this hospital's own to compare with.",
            fix="Check the plausibility limits of the study's columns, and the model.",
        )
    return log_losses


def patient_folds(dataset: PatientDataset, num_folds: int, *, seed: int) -> list[NDArray[np.int64]]:
    """Rows of each fold, all records of a patient in one; never more folds than patients.

    Numbers of patients, and of those whose first record has label 1, differ by one at most between folds; events
    stand for labels where the label is a time, and nothing does for masks.
    """
    strata = dataset.strata.numpy()
    first_labels = np.array(
        [strata[int(dataset.records_of([p])[0][0])] for p in range(dataset.num_patients)]
    )
    rng = np.random.Generator(np.random.PCG64(seed))
    mixed = rng.permutation(first_labels.size)
    by_label = mixed[np.argsort(first_labels[mixed], kind="stable")]
    return [
        np.sort(dataset.records_of(by_label[fold::num_folds])[0].numpy())
        for fold in range(min(num_folds, first_labels.size))
    ]


def _log_losses(
    trainer: _Trainer, dataset: PatientDataset, folds: Sequence[NDArray[np.int64]], rate: float
) -> list[float]:
    """Loss after each stage with one learning rate, over all folds' patients together."""
    losses = np.full((NUM_STAGES, len(dataset)), np.inf)
    for fold in folds:
        rest, judged = np.setdiff1d(np.arange(len(dataset)), fold), dataset.take(fold)
        stages = trainer.train(dataset.take(rest), rate, NUM_STAGES, judged=judged)
        for stage, predictions in enumerate(stages):
            losses[stage, fold] = _losses(trainer.learner.task, predictions, judged)
    # A fold whose metric is undefined says nothing of a setting, and the same nothing of all.
    told = ~np.isnan(losses).any(axis=0)
    return [float(row[told].mean()) if told.any() else float("inf") for row in losses]


def _losses(task: Task, predictions: Predictions, judged: PatientDataset) -> NDArray[np.float64]:
    """(N,) log losses, or 1 minus the task's first metric; NaN where that is undefined."""
    labels = judged.labels.numpy()
    values = record_values(task, predictions, labels)
    if "log_loss" in values:
        return values["log_loss"]
    metric = primary_metric(task)
    if metric in values:
        return 1.0 - values[metric]
    found = task.metrics(predictions, labels).get(metric, float("nan"))
    return np.full(len(judged), 1.0 - found)


def _never() -> bool:
    return False
