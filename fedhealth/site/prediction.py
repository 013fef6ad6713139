"""Score new patients: nobody knows their label yet. Called by `fedhealth predict`; everything stays on this machine.

Scores are patients' data: the file is readable by its owner only. Beside it and a temporary folder next to it, for
volumes on the study's grid, nothing is written.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from fedhealth import plugins
from fedhealth.contracts.cohort import Cohort
from fedhealth.contracts.data import DataContract, MaskLabel
from fedhealth.durable import write_atomically
from fedhealth.errors import ConfigError, SiteDataError, UsageError
from fedhealth.site.recalibration import Recalibration
from fedhealth.site.score_table import mask_files, modalities_of, score_columns, score_table

if TYPE_CHECKING:
    from fedhealth.models.exported import OpenedModel

TABLE_OF_MASKS: Final = "patients.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPatients:
    """Where new patients are, and which site package reads them; None: the generic layout."""

    data_dir: Path
    package: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """How many patients were scored, of how many records, and how many had each modality that counts.

    `unseen` are modalities that the model was never trained on, which were left out. `unclaimed` are files in a
    modality's folder that are named after none of the patients.
    """

    num_patients: int
    num_records: int
    having: Mapping[str, int]
    unclaimed: Mapping[str, int]
    unseen: tuple[str, ...]
    calibrated: bool


def check_out(out: Path, *, may_overwrite: bool) -> None:
    """Refuse what cannot be written, before any patient is read.

    Raises:
        UsageError: FH-USAGE-088 the file is there, FH-USAGE-089 its folder is not there or cannot be written.
    """
    if out.exists() and not (may_overwrite and out.is_file()):
        raise UsageError(
            "FH-USAGE-088",
            "what --out names is there already.",
            why="Scores that somebody may rely on would be gone.",
            fix="Give another name, or --force to replace a file.",
        )
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise UsageError(
            "FH-USAGE-089",
            "the folder of --out is not there, or nothing can be written into it.",
            fix="Make it, with the rights that scores of patients should have.",
        )


def score_new_patients(
    model: "OpenedModel",
    patients: NewPatients,
    out: Path,
    *,
    recalibration: Recalibration | None,
    device: str = "cpu",
) -> Scored:
    """Read, score, and write in one step: what is there afterwards is whole.

    A CSV file with the columns of `score_table`; where masks are predicted, a folder with one NIfTI file for each
    record that has an image, on that image's own voxels, and the table beside them.

    Args:
        model: as `open_folder` or `OwnModel.opened` give it.
        patients: where they are.
        out: file, or folder for masks; see `check_out`.
        recalibration: of this very model; None leaves the scores as they are.
        device: where to compute.

    Raises:
        SiteDataError: the patients do not keep the data contract; FH-DATA-043 somebody has only what the model was
            never trained on.
        ConfigError: FH-CONFIG-043 the site package does not read new patients; or it is not installed.
        TrainingError: FH-TRAIN-004 the model's output is not finite.
        UsageError: FH-USAGE-088 a file where a folder of masks has to be; see `score_table`.
    """
    from fedhealth.data.batch import PatientDataset
    from fedhealth.data.reader import unclaimed_volumes

    contract = model.contract
    # Beside the result and not in /tmp: these are images of patients.
    with tempfile.TemporaryDirectory(prefix=".predict-", dir=out.parent) as scratch:
        cohort = _read(patients, contract, Path(scratch) / "cache")
        cohort = _without(cohort, model.unseen)
        dataset = PatientDataset(cohort.patients, contract, memory_limit_bytes=0)
        found = model.predict(dataset, device=device)
        if recalibration is not None:
            found = recalibration.apply(found.astype(np.float64))
        columns = score_columns(contract, model.task, found)
        named, masks = mask_files(contract, cohort.patients, found)
        text = score_table(
            contract, cohort.patients, columns | named, calibrated=recalibration is not None
        )
        if isinstance(contract.target, MaskLabel):
            check_out(out, may_overwrite=False)
            _write_folder(out, {**masks, TABLE_OF_MASKS: text.encode()}, Path(scratch))
        else:
            write_atomically(out, text.encode())
    having = Counter(name for patient in cohort.patients for name in modalities_of(patient))
    return Scored(
        num_patients=dataset.num_patients,
        num_records=len(dataset),
        having={m.name: having[m.name] for m in contract.modalities},
        unseen=model.unseen,
        unclaimed=unclaimed_volumes(patients.data_dir, contract, cohort.patients),
        calibrated=recalibration is not None,
    )


def _without(cohort: Cohort, unseen: tuple[str, ...]) -> Cohort:
    """The patients without modalities that nobody trained this model on."""
    if not unseen:
        return cohort
    kept = tuple(
        replace(
            patient,
            tables={n: v for n, v in patient.tables.items() if n not in unseen},
            volumes={n: v for n, v in patient.volumes.items() if n not in unseen},
        )
        for patient in cohort.patients
    )
    empty = sum(not modalities_of(patient) for patient in kept)
    if empty:
        raise SiteDataError(
            "FH-DATA-043",
            f"{empty} records have nothing but {', '.join(unseen)}, which this model was never trained on.",
            why="What it would say of them is as good as drawn by lot.",
            fix="Leave them out, or score them with the model of a site that has such patients.",
        )
    return replace(cohort, patients=kept)


def _write_folder(out: Path, files: Mapping[str, bytes], scratch: Path) -> None:
    made = scratch / "out"
    for name, content in files.items():
        write_atomically(made / name, content)
    made.rename(out)


def _read(patients: NewPatients, contract: DataContract, scratch: Path) -> Cohort:
    if patients.package is None:
        from fedhealth.data.reader import read_folder_cohort

        return read_folder_cohort(patients.data_dir, contract, scratch)
    factory = plugins.load("fedhealth.sites", patients.package)
    package = factory(data_dir=patients.data_dir, options=dict(patients.options), cache_dir=scratch)
    read = getattr(package, "load_new_patients", None)
    if not callable(read):
        raise ConfigError(
            "FH-CONFIG-043",
            f"site package {patients.package!r} does not read new patients.",
            why="Its reader expects a label of every patient, which nobody knows yet.",
            fix="Give it a method `load_new_patients` (docs/how-to/use-the-model.md).",
        )
    cohort: Cohort = read(contract)
    return cohort
