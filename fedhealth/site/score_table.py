"""What `predict` writes of a task's predictions: columns of a table, or a mask a record. Called by `prediction`."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.cohort import HoldsMasks, Patient
from fedhealth.contracts.data import DataContract, MaskLabel, MultiLabel, SurvivalLabel
from fedhealth.data.cohort_csv import PATIENT_ID
from fedhealth.errors import SiteDataError, UsageError

if TYPE_CHECKING:
    from fedhealth.models.protocol import Task

Columns = dict[str, Sequence[str]]


def score_columns(
    contract: DataContract, task: "Task", predictions: NDArray[np.floating[Any]]
) -> Columns:
    """Columns of N cells: a probability for each class or label, a log hazard ratio, or survival at each time.

    Args:
        contract: says what is predicted.
        task: the model's.
        predictions: (N, ...) of the task.

    Raises:
        UsageError: FH-USAGE-090 the predictions have another shape than any task of fedhealth gives.
    """
    match contract.target:
        case None:
            names = [f"probability_{code}" for code in contract.label_codes]
            values = _by_class(predictions, num_classes=len(names))
        case MultiLabel(columns=columns):
            names, values = [f"probability_{name}" for name in columns], predictions
        case SurvivalLabel(unit=unit):
            ends: Sequence[float] = getattr(task, "interval_ends", ())
            names = [f"survival_to_{end:g}_{unit}" for end in ends] or ["log_hazard_ratio"]
            values = predictions if predictions.ndim > 1 else predictions[:, None]
        case MaskLabel():
            names, values = [], predictions.reshape(len(predictions), -1)[:, :0]
    if values.ndim != 2 or values.shape[1] != len(names):  # noqa: PLR2004 - a table
        raise UsageError(
            "FH-USAGE-090",
            "the task's predictions do not fit into a table.",
            why="There is one column for each class, label or time.",
            fix="Use the model in Python (docs/how-to/use-the-model.md).",
        )
    return {name: [f"{v:.6f}" for v in values[:, i]] for i, name in enumerate(names)}


def mask_files(
    contract: DataContract,
    patients: Sequence[Patient],
    predictions: NDArray[np.floating[Any]],
) -> tuple[Columns, dict[str, bytes]]:
    """A NIfTI file for each record that has the image which masks are drawn on, and the column that names it.

    Args:
        contract: with a label of kind mask.
        patients: N records.
        predictions: (N, i, j, k) indices into the mask's codes.

    Raises:
        SiteDataError: an image's file is unreadable; FH-DATA-009 a patient's id is no file name.
        UsageError: FH-USAGE-093 the site package's volumes do not say where their image is.
    """
    target = contract.target
    if not isinstance(target, MaskLabel):
        return {}, {}
    codes = np.asarray(target.codes, dtype=np.uint8)
    files: dict[str, bytes] = {}
    names = []
    for patient, record, predicted in zip(patients, records(patients), predictions, strict=True):
        volume = patient.volumes.get(target.grid.name)
        if volume is None:
            names.append("")
            continue
        if not isinstance(volume, HoldsMasks):
            raise UsageError(
                "FH-USAGE-093",
                "the site package reads volumes that cannot place a mask on their image.",
                why="A mask on another grid than its image would be shown beside what it marks.",
                fix="Give its volumes a method `mask_on_source`, or let `read_folder_cohort` read them.",
            )
        if not re.fullmatch(PATIENT_ID, patient.patient_id):
            raise SiteDataError(
                "FH-DATA-009",
                "a patient id cannot be used as a file name.",
                why="A predicted mask is named after its patient.",
                fix="Use pseudonyms of at most 64 letters, digits, '.', '_' and '-' in the site package.",
            )
        # No id holds a plus (`PATIENT_ID`): with a dash, record 2 of "a" and patient "a-2" would have one file.
        name = f"{patient.patient_id}{'' if record == 1 else f'+{record}'}.nii.gz"
        files[name] = volume.mask_on_source(codes[predicted.astype(np.int64)])
        names.append(name)
    return {"mask": names}, files


def score_table(
    contract: DataContract, patients: Sequence[Patient], columns: Columns, *, calibrated: bool
) -> str:
    """The CSV text: patient id, record, the columns, whether recalibrated, and the modalities of each."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([contract.patient_id_column, "record", *columns, "calibrated", "modalities"])
    said = "yes" if calibrated else "no"
    for row, (patient, record) in enumerate(zip(patients, records(patients), strict=True)):
        used = "+".join(m.name for m in contract.modalities if m.name in modalities_of(patient))
        cells = [values[row] for values in columns.values()]
        writer.writerow([patient.patient_id, record, *cells, said, used])
    return buffer.getvalue()


def records(patients: Sequence[Patient]) -> Iterator[int]:
    """1 for the first record of a patient, 2 for the second, in the order of the patients."""
    seen: Counter[str] = Counter()
    for patient in patients:
        seen[patient.patient_id] += 1
        yield seen[patient.patient_id]


def modalities_of(patient: Patient) -> Mapping[str, object]:
    """Tables and volumes that a record has, by name."""
    return {**patient.tables, **patient.volumes}


def _by_class(
    predictions: NDArray[np.floating[Any]], *, num_classes: int
) -> NDArray[np.floating[Any]]:
    """(N, K): a vector is the probability of the second of two classes."""
    if predictions.ndim == 1 and num_classes == 2:  # noqa: PLR2004 - two classes
        return np.column_stack([1 - predictions, predictions])
    return predictions
