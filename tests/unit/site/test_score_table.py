"""What `predict` writes of every task."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from fedhealth.config.study import Study
from fedhealth.data.batch import PatientDataset
from fedhealth.data.reader import read_folder_cohort
from fedhealth.errors import SiteDataError, UsageError
from fedhealth.models.exported import ModelDescription, OpenedModel, open_model, weights_bytes
from fedhealth.report.model_bundle import _channels
from fedhealth.site.prediction import NewPatients, score_new_patients
from fedhealth.site.score_table import score_columns
from fedhealth.training.learner import Learner

SIDE = 16
TABLE = {
    "kind": "table",
    "name": "ehr",
    "columns": [{"name": "lab", "dtype": "float", "minimum": -4, "maximum": 4}],
}
IMAGE = {"kind": "volume", "name": "t1", "shape": [SIDE, SIDE, SIDE], "spacing_mm": [2, 2, 2]}
SETTINGS: dict[str, dict[str, Any]] = {
    "binary_classification": {"label": {"codes": [0, 1]}},
    "multiclass_classification": {"label": {"codes": [0, 1, 5]}},
    "multilabel_classification": {"label": {"kind": "multi_label", "columns": ["a", "b"]}},
    "survival_cox": {"label": {"kind": "survival", "unit": "days", "maximum": 10}},
    "survival_discrete_time": {
        "label": {"kind": "survival", "unit": "days", "maximum": 10},
        "options": {"num_intervals": 4},
    },
    "segmentation": {"label": {"kind": "mask", "mask": "lesion", "grid": "t1", "codes": [0, 3]}},
}
COLUMNS = {
    "binary_classification": ["probability_0", "probability_1"],
    "multiclass_classification": ["probability_0", "probability_1", "probability_5"],
    "multilabel_classification": ["probability_a", "probability_b"],
    "survival_cox": ["log_hazard_ratio"],
    "survival_discrete_time": [
        "survival_to_2.5_days",
        "survival_to_5_days",
        "survival_to_7.5_days",
        "survival_to_10_days",
    ],
    "segmentation": ["mask"],
}


def opened(task: str) -> OpenedModel:
    """A model with its first weights, through the bytes of an exported folder."""
    said = SETTINGS[task]
    is_mask = task == "segmentation"
    study = Study.model_validate(
        {
            "schema_version": 1,
            "id": "tasks",
            "title": "Tasks",
            "seed": 5,
            "data": {"label": said["label"], "modalities": [IMAGE] if is_mask else [TABLE, IMAGE]},
            "task": {"name": task, "options": said.get("options", {})},
            "model": {"name": "unet", "options": {"width": 4}}
            if is_mask
            else {"name": "multimodal", "options": {"image_widths": [4], "embedding_size": 4}},
            "training": {"local_steps": 1},
            "release": {"metrics": []},
            "runs": [{"name": "plain", "num_rounds": 1}],
        }
    )
    learner = Learner(study, study.runs[0])
    weights = weights_bytes(dict(learner.model.named_parameters()))
    return open_model(ModelDescription.of(study, weights).to_bytes(), weights)


@pytest.fixture
def new_patients(tmp_path: Path) -> Path:
    """`a` has both, `b` has the table only, `c` an image that is not on the study's grid."""
    folder = tmp_path / "new"
    (folder / "t1").mkdir(parents=True)
    (folder / "cohort.csv").write_text("patient_id,lab\na,0.5\nb,1\nc,\n", encoding="utf-8")
    rng = np.random.default_rng(1)
    for name, shape, spacing in (("a", (SIDE,) * 3, 2.0), ("c", (20, 18, 30), 1.5)):
        affine = np.diag([-spacing, spacing, spacing, 1.0])
        image = nib.Nifti1Image(rng.normal(size=shape).astype(np.float32), affine)
        nib.save(image, folder / "t1" / f"{name}.nii.gz")
    return folder


@pytest.mark.parametrize("task", [name for name in SETTINGS if name != "segmentation"])
def test_every_task_has_its_columns(task: str, tmp_path: Path, new_patients: Path) -> None:
    model, out = opened(task), tmp_path / "scores.csv"
    done = score_new_patients(model, NewPatients(data_dir=new_patients), out, recalibration=None)
    assert (done.num_patients, done.having) == (3, {"ehr": 2, "t1": 2})
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert list(rows[0]) == ["patient_id", "record", *COLUMNS[task], "calibrated", "modalities"]
    assert [row["modalities"] for row in rows] == ["ehr+t1", "ehr", "t1"]
    cohort = read_folder_cohort(new_patients, model.contract, tmp_path / "cache")
    batch = PatientDataset(cohort.patients, model.contract).batch([0, 1, 2])
    with torch.no_grad():
        logits = model.model(batch).double().numpy()
    sigmoid = 1 / (1 + np.exp(-logits))
    expected = {
        "binary_classification": np.column_stack([1 - sigmoid[:, 0], sigmoid[:, 0]]),
        "multiclass_classification": np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True),
        "multilabel_classification": sigmoid,
        "survival_cox": logits,
        "survival_discrete_time": np.cumprod(1 - sigmoid, axis=1),
    }[task]
    found = [[float(row[name]) for name in COLUMNS[task]] for row in rows]
    assert np.allclose(found, expected, atol=2e-6)
    assert len(_channels(model.contract, model.task.num_outputs)) == model.task.num_outputs


def test_masks_lie_on_the_patients_own_images(tmp_path: Path, new_patients: Path) -> None:
    (new_patients / "cohort.csv").write_text("patient_id\na\nc\n", encoding="utf-8")
    model, out = opened("segmentation"), tmp_path / "masks"
    patients = NewPatients(data_dir=new_patients)
    score_new_patients(model, patients, out, recalibration=None)
    rows = list(csv.DictReader((out / "patients.csv").open(encoding="utf-8")))
    assert [row["mask"] for row in rows] == ["a.nii.gz", "c.nii.gz"]
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "c.nii.gz", "patients.csv"]
    for name in ("a", "c"):
        image = nib.load(new_patients / "t1" / f"{name}.nii.gz")
        mask = nib.load(out / f"{name}.nii.gz")
        assert mask.shape == image.shape
        assert np.allclose(mask.affine, image.affine)
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 3}
    cohort = read_folder_cohort(new_patients, model.contract, tmp_path / "cache")
    batch = PatientDataset(cohort.patients, model.contract).batch([0])
    with torch.no_grad():
        winner = model.model(batch)[0].argmax(dim=0).numpy()
    # The first image differs from the grid by the direction of its first axis only.
    expected = np.where(winner[::-1] == 1, 3, 0)
    assert np.array_equal(np.asarray(nib.load(out / "a.nii.gz").dataobj), expected)
    assert {p.name for p in tmp_path.iterdir()} == {"new", "masks", "cache"}
    with pytest.raises(UsageError, match="FH-USAGE-088"):
        score_new_patients(model, patients, out, recalibration=None)


def test_no_two_records_have_one_mask_file(tmp_path: Path, new_patients: Path) -> None:
    """Record 2 of patient `c` is not patient `c-2`."""
    from fedhealth.site.score_table import mask_files

    model = opened("segmentation")
    (new_patients / "cohort.csv").write_text("patient_id\na\nc\n", encoding="utf-8")
    cohort = read_folder_cohort(new_patients, model.contract, tmp_path / "cache")
    first, second = cohort.patients[1], cohort.patients[1]
    other = replace(cohort.patients[0], patient_id="c-2")
    columns, files = mask_files(
        model.contract, [first, second, other], np.zeros((3, SIDE, SIDE, SIDE))
    )
    assert columns == {"mask": ["c.nii.gz", "c+2.nii.gz", "c-2.nii.gz"]}
    assert len(files) == 3


def test_what_a_model_was_never_trained_on_does_not_count(
    tmp_path: Path, new_patients: Path
) -> None:
    (new_patients / "cohort.csv").write_text("patient_id,lab\na,0.5\nb,1\n", encoding="utf-8")
    patients, model = NewPatients(data_dir=new_patients), opened("binary_classification")
    blind = replace(model, unseen=("t1",))
    done = score_new_patients(blind, patients, tmp_path / "blind.csv", recalibration=None)
    assert (done.unseen, done.having) == (("t1",), {"ehr": 2, "t1": 0})
    score_new_patients(model, patients, tmp_path / "seeing.csv", recalibration=None)
    # In Python too, where patients come with all that they have.
    cohort = read_folder_cohort(new_patients, model.contract, tmp_path / "cache")
    in_python = blind.predict(PatientDataset(cohort.patients, model.contract))
    (new_patients / "t1" / "a.nii.gz").unlink()
    score_new_patients(model, patients, tmp_path / "without.csv", recalibration=None)
    texts = [(tmp_path / f"{n}.csv").read_text() for n in ("blind", "without", "seeing")]
    assert texts[0] == texts[1] != texts[2]
    rows = list(csv.DictReader((tmp_path / "blind.csv").open(encoding="utf-8")))
    assert [float(row["probability_1"]) for row in rows] == pytest.approx(in_python, abs=1e-6)


def test_a_patient_with_nothing_but_what_the_model_never_saw_is_refused(
    tmp_path: Path, new_patients: Path
) -> None:
    """Patient `c` has an image only."""
    blind = replace(opened("binary_classification"), unseen=("t1",))
    with pytest.raises(SiteDataError, match=r"FH-DATA-043 1 records"):
        score_new_patients(
            blind, NewPatients(data_dir=new_patients), tmp_path / "scores.csv", recalibration=None
        )
    assert not (tmp_path / "scores.csv").exists()


def test_an_image_that_no_patient_claims_is_told(tmp_path: Path, new_patients: Path) -> None:
    (new_patients / "t1" / "c.nii.gz").rename(new_patients / "t1" / "C.nii.gz")
    (new_patients / "cohort.csv").write_text("patient_id,lab\na,0.5\nc,1\n", encoding="utf-8")
    done = score_new_patients(
        opened("binary_classification"),
        NewPatients(data_dir=new_patients),
        tmp_path / "scores.csv",
        recalibration=None,
    )
    assert done.unclaimed == {"t1": 1}
    assert done.having == {"ehr": 2, "t1": 1}


def test_predictions_of_another_shape_are_refused() -> None:
    model = opened("multiclass_classification")
    with pytest.raises(UsageError, match="FH-USAGE-090"):
        score_columns(model.contract, model.task, np.zeros((2, 4)))


def test_a_patient_without_the_image_has_no_mask_and_is_said_so(
    tmp_path: Path, new_patients: Path
) -> None:
    from fedhealth.site.score_table import mask_files

    model = opened("segmentation")
    (new_patients / "cohort.csv").write_text("patient_id\na\nc\n", encoding="utf-8")
    cohort = read_folder_cohort(new_patients, model.contract, tmp_path / "cache")
    without = [replace(cohort.patients[0], volumes={}), cohort.patients[1]]
    columns, files = mask_files(model.contract, without, np.zeros((2, SIDE, SIDE, SIDE)))
    assert columns == {"mask": ["", "c.nii.gz"]}
    assert list(files) == ["c.nii.gz"]
