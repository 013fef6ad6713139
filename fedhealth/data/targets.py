"""What is predicted of each patient, by kind: checked, counted, and as one tensor. Called by `batch` and `check`.

The kinds are those of `contracts.data`: one code a patient, several yes-or-no labels, time to an event, or a mask.
Messages hold counts only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.contracts.cohort import UNKNOWN_LABEL, LazyMask, Patient
from fedhealth.contracts.data import (
    DataContract,
    MaskLabel,
    MultiLabel,
    SurvivalLabel,
    Target,
)
from fedhealth.errors import SiteDataError

CountPatients = Callable[[Iterable[Patient]], int]


def label_tensor(patients: Sequence[Patient], contract: DataContract) -> Tensor:
    """The labels of N records, but for masks, which `mask_indices` reads one by one.

    Returns:
        (N,) int64 index into `label_codes`; (N, L) int64 of 0 and 1; or (N, 2) float32 time and event. For masks
        (N,) int64 zeros; for new patients (N,) `UNKNOWN_LABEL`.

    Raises:
        SiteDataError: FH-DATA-031 a label is not in the contract, FH-DATA-060 a target is missing or wrong.
    """
    if not contract.has_labels:
        return torch.full((len(patients),), UNKNOWN_LABEL, dtype=torch.int64)
    if contract.target is None:
        return _code_indices(patients, contract)
    refuse_wrong_targets(patients, contract.target)
    if isinstance(contract.target, MaskLabel):
        return torch.zeros(len(patients), dtype=torch.int64)
    width = 2 if isinstance(contract.target, SurvivalLabel) else len(contract.target.columns)
    values = np.array([p.target for p in patients], dtype=np.float64).reshape(-1, width)
    is_time = isinstance(contract.target, SurvivalLabel)
    return torch.from_numpy(values).to(torch.float32 if is_time else torch.int64)


def refuse_wrong_targets(patients: Sequence[Patient], target: Target) -> None:
    """Raises SiteDataError (FH-DATA-060): a target is missing, of another kind, or outside the contract's limits."""
    wrong = sum(not _is_right(patient, target) for patient in patients)
    if wrong:
        raise SiteDataError(
            "FH-DATA-060",
            f"{wrong} patients have no {_named(target)} or a wrong one.",
            why="Every patient of the cohort needs what is predicted, within the contract's limits.",
            fix="Correct the site package or the export; leave patients without it out of the cohort.",
        )


def mask_indices(mask: LazyMask, target: MaskLabel) -> NDArray[np.uint8]:
    """(i, j, k) uint8 indices into the mask's codes.

    Raises:
        SiteDataError: FH-DATA-061 off the grid or a code outside the contract; or as `LazyMask.load`.
    """
    codes = mask.load()
    table = np.full(256, len(target.codes), dtype=np.int64)
    table[list(target.codes)] = np.arange(len(target.codes))
    fits = codes.shape == target.grid.shape and codes.dtype == np.uint8
    if not fits or int(table[codes].max()) == len(target.codes):
        raise SiteDataError(
            "FH-DATA-061",
            f"a {target.name} mask is not uint8 of the contract's codes on the contract's grid.",
            why=f"The grid is {target.grid.shape}, the codes are {list(target.codes)}.",
            fix="Let `read_folder_cohort` load it, or bring it to the grid in the site package.",
        )
    return table[codes].astype(np.uint8)


def strata_of(labels: Tensor, target: Target | None) -> Tensor:
    """(N,) int64: within what patients are resampled and folded: the code, the event, or nothing."""
    if target is None:
        return labels
    if isinstance(target, SurvivalLabel):
        return labels[:, 1].to(torch.int64)
    return torch.zeros(labels.shape[0], dtype=torch.int64)


def class_sizes(
    labels: NDArray[Any], patients: NDArray[Any], contract: DataContract
) -> tuple[int, ...]:
    """Different patients of each class, 0 where a class has none: what decides whether statistics mean something.

    A class is a code; having and not having each of several labels; the event, and being censored where anybody is.
    Masks have one class, all patients.

    Args:
        labels: of N records, as `label_tensor` gives them; not read for masks.
        patients: (N,) whose record it is, a number or an id.
        contract: says what the labels are.
    """

    def count(rows: NDArray[np.bool_]) -> int:
        return int(np.unique(patients[rows]).size)

    match contract.target:
        case None:
            return tuple(count(labels == index) for index in range(len(contract.label_codes)))
        case MultiLabel():
            return tuple(count(column == value) for column in labels.T for value in (0, 1))
        case SurvivalLabel():
            censored = count(labels[:, 1] == 0)
            return (count(labels[:, 1] == 1), *([censored] if censored else []))
        case MaskLabel():
            return (count(np.ones(patients.size, dtype=np.bool_)),)


def count_by_label(
    patients: Sequence[Patient], contract: DataContract, count: CountPatients
) -> Mapping[int | str, int]:
    """Patients by code; positive ones by label; with the event seen and censored; masks are not read for it."""
    match contract.target:
        case None:
            return {c: count(p for p in patients if p.label == c) for c in contract.label_codes}
        case MultiLabel(columns=columns):
            return {
                name: count(p for p in patients if _numbers(p)[position] == 1)
                for position, name in enumerate(columns)
            }
        case SurvivalLabel():
            return {
                "event": count(p for p in patients if _numbers(p)[1] == 1),
                "censored": count(p for p in patients if _numbers(p)[1] == 0),
            }
        case MaskLabel(name=name):
            return {name: count(patients)}


def _code_indices(patients: Sequence[Patient], contract: DataContract) -> Tensor:
    index_of = {code: index for index, code in enumerate(contract.label_codes)}
    unknown = sum(patient.label not in index_of for patient in patients)
    if unknown:
        raise SiteDataError(
            "FH-DATA-031",
            f"{unknown} patients carry a label that is not in the data contract.",
            why=f"The contract's codes are {list(contract.label_codes)}.",
            fix="Map the labels to the contract's codes in the site package.",
        )
    return torch.tensor([index_of[patient.label] for patient in patients], dtype=torch.int64)


def _numbers(patient: Patient) -> NDArray[np.float64]:
    return patient.target if isinstance(patient.target, np.ndarray) else np.zeros(0)


def _is_right(patient: Patient, target: Target) -> bool:
    if isinstance(target, MaskLabel):
        return patient.target is not None and not isinstance(patient.target, np.ndarray)
    values = _numbers(patient)
    if isinstance(target, MultiLabel):
        return values.shape == (len(target.columns),) and bool(np.isin(values, (0, 1)).all())
    return values.shape == (2,) and 0 <= values[0] <= target.maximum and values[1] in (0, 1)


def _named(target: Target) -> str:
    if isinstance(target, MaskLabel):
        return f"{target.name} mask"
    if isinstance(target, MultiLabel):
        return f"{len(target.columns)} labels of 0 and 1"
    return f"time of 0 to {target.maximum:g} {target.unit} with an event of 0 or 1"
