"""What it saves to run a frozen encoder once: ``python benchmarks/feature_cache.py``.

In one process and in turns, for each encoder: an epoch with the encoder in every step and with its features instead;
and opening a training session three ways: cold (NIfTI files are read and resampled, and encoded), with resampled
volumes on disk only, and warm (features on disk too; files are only read and hashed). The ratios are what counts.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from fedhealth.config.study import Study
from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import SiteContext
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import PatientDataset
from fedhealth.data.volume_cache import VolumeCache
from fedhealth.data.volumes import NiftiVolume
from fedhealth.training.frozen_encoders import apply_frozen_encoders
from fedhealth.training.learner import Learner
from fedhealth.training.local_steps import StepPlan, run_steps
from fedhealth.training.supervised import SupervisedTraining

SOURCE_SPACING_MM = 1.5
GRID_SPACING_MM = 3.0
NUM_COLUMNS = 12
BATCH_SIZE = 16
ENCODERS = ("cnn", "resnet10")


def make_study(encoder: str, size: int) -> Study:
    columns = [
        {"name": f"lab_{i}", "dtype": "float", "minimum": -5, "maximum": 5}
        for i in range(NUM_COLUMNS)
    ]
    volume = {
        "kind": "volume",
        "name": "mri",
        "shape": [size] * 3,
        "spacing_mm": [GRID_SPACING_MM] * 3,
    }
    options = {"image_encoder": encoder, "trainable": "image_frozen"}
    return Study.model_validate(
        {
            "schema_version": 1,
            "id": "bench",
            "title": "Feature cache",
            "seed": 1,
            "data": {"modalities": [{"kind": "table", "name": "ehr", "columns": columns}, volume]},
            "model": {"name": "multimodal", "options": options},
            "training": {
                "local_epochs": 1,
                "batch_size": BATCH_SIZE,
                "optimizer": {"name": "adam", "learning_rate": 1e-3},
            },
            "runs": [{"name": "main", "num_rounds": 1}],
        }
    )


def write_volumes(folder: Path, count: int, size: int) -> None:
    """Files of twice the grid's resolution, as a scanner's are: reading one means to resample it."""
    rng = np.random.default_rng(0)
    side = round(size * GRID_SPACING_MM / SOURCE_SPACING_MM)
    affine = np.diag([SOURCE_SPACING_MM] * 3 + [1.0])
    for index in range(count):
        voxels = rng.integers(0, 400, size=(side,) * 3).astype(np.int16)
        nib.Nifti1Image(voxels, affine).to_filename(folder / f"{index}.nii.gz")


def make_site(study: Study, folder: Path, count: int) -> SiteContext:
    contract = study.data.to_contract(seed=study.seed)
    grid, store = contract.volumes[0], VolumeCache(folder / "cache" / "volumes")
    rng = np.random.default_rng(1)
    patients = tuple(
        Patient(
            patient_id=f"p{index}",
            label=index % 2,
            tables={"ehr": rng.uniform(-4, 4, NUM_COLUMNS)},
            volumes={"mri": NiftiVolume(folder / f"{index}.nii.gz", grid, store, row=index)},
        )
        for index in range(count)
    )
    sides = {patient.patient_id: SplitName.TRAIN for patient in patients}
    cohort = Cohort(contract=contract, patients=patients, fixed_split=sides)
    return SiteContext(
        site_id="site-a",
        load_cohort=lambda: cohort,
        state_dir=folder / "state",
        cache_dir=folder / "cache",
        device="cpu",
        num_threads=1,
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(encoder: str, size: int, count: int, repeats: int) -> dict[str, object]:
    study = make_study(encoder, size)
    method, run = SupervisedTraining(), study.runs[0]
    spec = TensorSpec.of(method.initial_tensors(study, run))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_volumes(folder, count, size)
        caches = {
            "volumes": folder / "cache" / "volumes",
            "features": folder / "cache" / "features",
        }
        removed = {"cold": ("volumes", "features"), "volumes_cached": ("features",), "warm": ()}
        times: dict[str, list[float]] = {}

        def note(kind: str, work: Callable[[], object]) -> None:
            times.setdefault(kind, []).append(seconds(work))

        epoch_of(
            study, make_site(study, folder, count).load_cohort().patients, with_features=True
        )()
        for _ in range(repeats):
            for kind, gone in removed.items():
                for cached in gone:
                    shutil.rmtree(caches[cached], ignore_errors=True)
                # A new process has not read any file yet: new volumes have no digest.
                site = make_site(study, folder, count)
                note(f"start_{kind}", lambda site=site: method.open_session(study, run, spec, site))  # type: ignore[misc]  # a default binds the loop's value
            patients = make_site(study, folder, count).load_cohort().patients
            for kind in ("encoder", "features"):
                note(f"epoch_{kind}", epoch_of(study, patients, with_features=kind == "features"))
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    return {
        "encoder": encoder,
        "size": size,
        "num_patients": count,
        "repeats": repeats,
        "seconds": medians,
        "ratios": {
            "epoch_encoder_over_features": medians["epoch_encoder"] / medians["epoch_features"],
            "start_cold_over_warm": medians["start_cold"] / medians["start_warm"],
            "start_volumes_cached_over_warm": medians["start_volumes_cached"]
            / medians["start_warm"],
        },
    }


def epoch_of(
    study: Study, patients: tuple[Patient, ...], *, with_features: bool
) -> Callable[[], object]:
    """One epoch, all volumes or features in memory before; the first one of a process also loads parts of torch."""
    learner = Learner(study, study.runs[0])
    dataset = PatientDataset(patients, learner.contract)
    if with_features:
        apply_frozen_encoders(learner, [dataset], batch_size=64)
    dataset.batch(range(len(dataset)))
    plan = StepPlan(config=study.training, seed=1, proximal_mu=0.0, is_cancelled=lambda: False)
    return lambda: run_steps(learner, dataset, plan)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="small volumes, few patients")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size, count, repeats = (16, 24, 1) if args.quick else (32, 96, 3)
    results = [measure(encoder, size, count, repeats) for encoder in ENCODERS]
    if args.json:
        print(json.dumps({"results": results}, indent=2))
        return 0
    for result in results:
        print(f"{result['encoder']} at {size}^3, {count} patients: {result['ratios']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
