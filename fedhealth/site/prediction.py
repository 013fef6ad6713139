"""Score new patients: nobody knows their label yet. Called by `fedhealth predict`; everything stays on this machine.

Scores are patients' data: the file is readable by its owner only. Beside it and a temporary folder next to it, for
volumes on the study's grid, nothing is written.
"""

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fedhealth import plugins
from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import DataContract
from fedhealth.durable import write_atomically
from fedhealth.errors import ConfigError, UsageError
from fedhealth.site.recalibration import Recalibration

if TYPE_CHECKING:
    from fedhealth.models.exported import OpenedModel

DIMENSIONS_OF_CLASSES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPatients:
    """Where new patients are, and which site package reads them; None: the generic layout."""

    data_dir: Path
    package: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """How many patients were scored, of how many records, and how many had each modality."""

    num_patients: int
    num_records: int
    having: Mapping[str, int]
    calibrated: bool


def check_out(out: Path, *, may_overwrite: bool) -> None:
    """Refuse what cannot be written, before any patient is read.

    Raises:
        UsageError: FH-USAGE-088 the file is there, FH-USAGE-089 its folder is not there.
    """
    if out.exists() and not (may_overwrite and out.is_file()):
        raise UsageError(
            "FH-USAGE-088",
            "the file of --out is there already.",
            why="Scores that somebody may rely on would be gone.",
            fix="Give another file, or --force to replace it.",
        )
    if not out.parent.is_dir():
        raise UsageError(
            "FH-USAGE-089",
            "the folder of --out is not there.",
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
    """Read, score, and write the table in one step: a reader sees the old file or the whole new one.

    Columns: the patient id, `record` (1 for a patient's first), a probability for each class, `calibrated` (yes or
    no) and `modalities` (those that the patient has, joined by +).

    Args:
        model: as `open_folder` or `OwnModel.opened` give it.
        patients: where they are.
        out: the CSV file; see `check_out`.
        recalibration: of this very model; None leaves the scores as they are.
        device: where to compute.

    Raises:
        SiteDataError: the patients do not keep the data contract.
        ConfigError: FH-CONFIG-043 the site package does not read new patients; or it is not installed.
        TrainingError: FH-TRAIN-004 the model's output is not finite.
        UsageError: FH-USAGE-090 the task has no score of a patient that fits into a table.
    """
    from fedhealth.data.batch import PatientDataset

    # Beside the result and not in /tmp: these are images of patients.
    with tempfile.TemporaryDirectory(prefix=".predict-", dir=out.parent) as scratch:
        cohort = _read(patients, model.contract, Path(scratch))
        dataset = PatientDataset(cohort.patients, model.contract, memory_limit_bytes=0)
        found = model.predict(dataset, device=device).astype(np.float64)
    if recalibration is not None:
        found = recalibration.apply(found)
    names = [f"probability_{code}" for code in model.contract.label_codes]
    classes = _by_class(found, num_classes=len(names))
    text = _table(
        cohort.patients, names, classes, model.contract, calibrated=recalibration is not None
    )
    write_atomically(out, text.encode())
    having = Counter(name for patient in cohort.patients for name in _modalities(patient))
    return Scored(
        num_patients=dataset.num_patients,
        num_records=len(dataset),
        having={m.name: having[m.name] for m in model.contract.modalities},
        calibrated=recalibration is not None,
    )


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


def _by_class(found: NDArray[np.float64], *, num_classes: int) -> NDArray[np.float64]:
    """(N, K): the second class is what a vector is the probability of."""
    if found.ndim == 1 and num_classes == DIMENSIONS_OF_CLASSES:
        return np.column_stack([1 - found, found])
    if found.ndim == DIMENSIONS_OF_CLASSES and found.shape[1] == num_classes:
        return found
    raise UsageError(
        "FH-USAGE-090",
        "this task has no probability for each class.",
        why="The table has one column a class.",
        fix="Use the model in Python (docs/how-to/use-the-model.md).",
    )


def _table(
    patients: Sequence[Patient],
    names: Sequence[str],
    classes: NDArray[np.float64],
    contract: DataContract,
    *,
    calibrated: bool,
) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([contract.patient_id_column, "record", *names, "calibrated", "modalities"])
    seen: Counter[str] = Counter()
    for patient, row in zip(patients, classes, strict=True):
        seen[patient.patient_id] += 1
        present = _modalities(patient)
        used = "+".join(m.name for m in contract.modalities if m.name in present)
        scores = [f"{value:.6f}" for value in row]
        said = "yes" if calibrated else "no"
        writer.writerow([patient.patient_id, seen[patient.patient_id], *scores, said, used])
    return buffer.getvalue()


def _modalities(patient: Patient) -> set[str]:
    return {*patient.tables, *patient.volumes}
