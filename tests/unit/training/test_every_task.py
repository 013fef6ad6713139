"""One round of local training for every task: evaluate, train with and without privacy, judge, compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.config.study import Study
from fedhealth.contracts.cohort import Cohort, LazyVolume, Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import PatientMechanism, RoundTask, SiteContext
from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.check import check_cohort
from fedhealth.errors import ConfigError, PrivacyError
from fedhealth.privacy.accounting.metrics import METRIC_BOUNDS
from fedhealth.training import tuned_alone
from fedhealth.training.evaluation import bootstrap_seed, scores_on_test
from fedhealth.training.held_out import paired_difference, result_of
from fedhealth.training.learner import Learner
from fedhealth.training.private_steps import clipped_gradients
from fedhealth.training.supervised import SupervisedTraining

SIDE = 16
NUM_PATIENTS = 36


@dataclass(frozen=True)
class MemoryVolume:
    values: NDArray[np.float32]

    def load(self) -> NDArray[np.float32]:
        return self.values


@dataclass(frozen=True)
class MemoryMask:
    values: NDArray[np.uint8]

    def load(self) -> NDArray[np.uint8]:
        return self.values


TABLE = {
    "kind": "table",
    "name": "ehr",
    "columns": [
        {"name": f"lab_{i}", "dtype": "float", "minimum": -4, "maximum": 4} for i in range(3)
    ],
}
VOLUMES = [
    {"kind": "volume", "name": name, "shape": [SIDE, SIDE, 1], "spacing_mm": [2, 2, 2]}
    for name in ("t1", "flair")
]
SETTINGS: dict[str, dict[str, Any]] = {
    "binary_classification": {"label": {"codes": [0, 1]}},
    "multiclass_classification": {"label": {"codes": [0, 1, 2]}},
    "multilabel_classification": {"label": {"kind": "multi_label", "columns": ["a", "b"]}},
    "survival_cox": {"label": {"kind": "survival", "unit": "days", "maximum": 10}},
    "survival_discrete_time": {
        "label": {"kind": "survival", "unit": "days", "maximum": 10},
        "options": {"num_intervals": 4},
    },
    "segmentation": {"label": {"kind": "mask", "mask": "lesion", "grid": "t1", "codes": [0, 3]}},
}
FIRST_METRIC = {
    "binary_classification": "auc",
    "multiclass_classification": "macro_auc",
    "multilabel_classification": "macro_auc",
    "survival_cox": "c_index",
    "survival_discrete_time": "c_index",
    "segmentation": "dice",
}
MEANS = [name for name in SETTINGS if name != "survival_cox"]


def study_of(task: str, *, private: bool = False, **changes: Any) -> Study:
    setting = SETTINGS[task]
    is_mask = task == "segmentation"
    content: dict[str, Any] = {
        "schema_version": 1,
        "id": "tasks",
        "title": "Tasks",
        "seed": 7,
        "data": {
            "label": setting["label"],
            "modalities": VOLUMES if is_mask else [TABLE],
            "split": {"train": 0.4, "validation": 0.3, "test": 0.3},
        },
        "task": {"name": task, "options": setting.get("options", {})},
        "model": {"name": "unet", "options": {"width": 4}}
        if is_mask
        else {"name": "multimodal", "options": {"embedding_size": 4, "table_hidden_size": 8}},
        "training": {
            "local_epochs": 2,
            "batch_size": 8,
            "optimizer": {"name": "adam", "learning_rate": 0.01},
        },
        "runs": [{"name": "plain", "num_rounds": 3}],
    }
    if private:
        content["privacy"] = {"target_epsilon": 8, "clipping_norm": 1.0}
    return Study.model_validate({**content, **changes})


def patients_of(task: str) -> tuple[Patient, ...]:
    rng = np.random.default_rng(4)
    return tuple(_patient(task, number, rng) for number in range(NUM_PATIENTS))


def _patient(task: str, number: int, rng: np.random.Generator) -> Patient:
    labs = np.clip(rng.normal(size=3), -4, 4)
    label, target = 0, None
    tables: dict[str, NDArray[np.float64]] = {"ehr": labs}
    volumes: dict[str, LazyVolume] = {}
    if task == "binary_classification":
        label = int(labs[0] > 0)
    elif task == "multiclass_classification":
        label = int(np.digitize(labs[0], [-0.4, 0.4]))
    elif task == "multilabel_classification":
        target = (labs[:2] > 0).astype(np.float64)
    elif task == "segmentation":
        mask = np.zeros((SIDE, SIDE, 1), dtype=np.uint8)
        x, y = rng.integers(0, SIDE - 6, size=2)
        mask[x : x + 6, y : y + 6] = 3
        image = rng.normal(size=mask.shape) + mask
        scaled = ((image - image.mean()) / image.std()).astype(np.float32)
        volumes = {"t1": MemoryVolume(scaled)}
        if number % 3:
            volumes["flair"] = MemoryVolume(-scaled)
        return Patient(
            patient_id=f"p{number:03d}", tables={}, volumes=volumes, target=MemoryMask(mask)
        )
    else:
        time = float(np.clip(rng.exponential(4 * np.exp(-labs[0])), 0.1, 10))
        target = np.array([time, float(rng.random() < 0.7)])
    return Patient(
        patient_id=f"p{number:03d}", label=label, tables=tables, volumes=volumes, target=target
    )


def site_of(folder: Path, study: Study, patients: tuple[Patient, ...]) -> SiteContext:
    cohort = Cohort(contract=study.data.to_contract(seed=study.seed), patients=patients)
    return SiteContext(
        site_id="site-a",
        load_cohort=lambda: cohort,
        state_dir=folder,
        cache_dir=folder,
        device="cpu",
        num_threads=1,
        noise_seed=bytes(32),
    )


def round_task(mechanism: PatientMechanism | None = None) -> RoundTask:
    return RoundTask(
        run_name="plain",
        round_number=1,
        attempt=1,
        strategy_config={},
        is_cancelled=lambda: False,
        mechanism=mechanism,
    )


@pytest.mark.parametrize("task", list(SETTINGS))
def test_a_round_learns_and_its_results_can_be_released_and_judged(
    task: str, tmp_path: Path
) -> None:
    study, patients = study_of(task), patients_of(task)
    site = site_of(tmp_path, study, patients)
    check_cohort(site.load_cohort())
    method = SupervisedTraining()
    tensors = method.initial_tensors(study, study.runs[0])
    spec = TensorSpec.of(tensors)
    session = method.open_session(study, study.runs[0], spec, site)
    first = spec.flatten(tensors)
    vector, losses = first, []
    for _ in range(4):
        update = session.train(vector, round_task())
        vector = spec.flatten(update.tensors)
        losses.append(update.metrics["train_loss"])
    assert losses[-1] < losses[0]
    found = session.evaluate(vector)
    assert FIRST_METRIC[task] in found
    assert all(METRIC_RANGES[name][0] <= v <= METRIC_RANGES[name][1] for name, v in found.items())
    values = session.patient_metrics(vector)
    for name, each in values.items():
        assert name in METRIC_BOUNDS
        assert found[name] == pytest.approx(each.mean())
    better, worse = (scores_on_test(study, study.runs[0], v, site) for v in (vector, first))
    seed = bootstrap_seed(study, "site-a")
    result = result_of(better, seed=seed)
    assert result.metric == FIRST_METRIC[task]
    assert result.value is not None
    assert result.low is not None
    assert result.high is not None
    assert result.low <= result.value <= result.high
    difference = paired_difference(better, worse, seed=seed, num_resamples=200)
    assert difference.primary is not None
    value = better.metrics[difference.metric] - worse.metrics[difference.metric]
    assert difference.primary.value == pytest.approx(value)
    assert (difference.log_loss is None) == (task in {"survival_cox", "segmentation"})


MECHANISM = PatientMechanism(
    noise_multiplier=1.0,
    clipping_norm=1.0,
    sampling_rate=0.5,
    num_steps=2,
    expected_batch_size=8.0,
)


@pytest.mark.parametrize("task", MEANS)
def test_private_training_keeps_the_patients_apart_in_one_pass(task: str, tmp_path: Path) -> None:
    study = study_of(task, private=True)
    site = site_of(tmp_path, study, patients_of(task))
    method = SupervisedTraining()
    tensors = method.initial_tensors(study, study.runs[0])
    spec = TensorSpec.of(tensors)
    session = method.open_session(study, study.runs[0], spec, site)
    update = session.train(spec.flatten(tensors), round_task(MECHANISM))
    assert all(np.isfinite(t).all() for t in update.tensors.values())
    assert all(not np.array_equal(update.tensors[name], t) for name, t in tensors.items())
    learner = Learner(study, study.runs[0])
    gradients = clipped_gradients(learner, session._train)
    assert gradients.uses_book_keeping
    gradients.close()


def test_cox_is_refused_at_server_and_site_when_patients_are_protected(tmp_path: Path) -> None:
    study = study_of("survival_cox", private=True)
    method = SupervisedTraining()
    with pytest.raises(PrivacyError, match="discrete_time"):
        method.initial_tensors(study, study.runs[0])
    tensors = method.initial_tensors(study_of("survival_cox"), study.runs[0])
    site = site_of(tmp_path, study, patients_of("survival_cox"))
    with pytest.raises(PrivacyError, match="discrete_time"):
        method.open_session(study, study.runs[0], TensorSpec.of(tensors), site)


def test_nobody_to_validate_on_gives_no_metric(tmp_path: Path) -> None:
    for task in SETTINGS:
        study = study_of(task, runs=[{"name": "plain", "num_rounds": 1}])
        everybody = {p.patient_id: SplitName.TRAIN for p in patients_of(task)}
        site = site_of(tmp_path, study, patients_of(task))
        cohort = Cohort(
            contract=site.load_cohort().contract, patients=patients_of(task), fixed_split=everybody
        )
        method = SupervisedTraining()
        tensors = method.initial_tensors(study, study.runs[0])
        spec = TensorSpec.of(tensors)
        context = SiteContext(
            site_id="site-a",
            load_cohort=lambda cohort=cohort: cohort,
            state_dir=tmp_path,
            cache_dir=tmp_path,
            device="cpu",
            num_threads=1,
        )
        session = method.open_session(study, study.runs[0], spec, context)
        assert session.evaluate(spec.flatten(tensors)) == {}
        assert all(v.size == 0 for v in session.patient_metrics(spec.flatten(tensors)).values())
        scores = scores_on_test(study, study.runs[0], spec.flatten(tensors), context)
        assert result_of(scores, seed=1).num_patients == 0
        assert paired_difference(scores, scores, seed=1).primary is None


@pytest.mark.parametrize("task", ["survival_cox", "multiclass_classification"])
def test_a_tuned_baseline_is_there_for_every_task(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned_alone, "LEARNING_RATES", (0.01,))
    monkeypatch.setattr(tuned_alone, "NUM_STAGES", 2)
    study = study_of(task)
    found = tuned_alone.train_alone_tuned(
        study, study.runs[0], site_of(tmp_path, study, patients_of(task))
    )
    assert len(found.log_losses) == 2
    assert np.isfinite(found.log_losses).all()
    assert found.scores.metrics[FIRST_METRIC[task]] > 0.5


def test_a_task_of_voxels_needs_a_model_of_voxels() -> None:
    study = study_of("segmentation", model={"name": "multimodal"})
    with pytest.raises(ConfigError) as caught:
        Learner(study, study.runs[0])
    assert caught.value.code == "FH-MODEL-020"
