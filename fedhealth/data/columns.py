"""Hold one column's values against the data contract. Called by `cohort_csv` and by `check`.

Messages name the column, the limits and the rows, never a value: they may be read by people who
must not see one. Rows are given as a spreadsheet numbers them, where row 1 is the header.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import Column
from fedhealth.errors import SiteDataError

FIRST_DATA_ROW = 2
_SHOWN_ROWS = 5

Mask = NDArray[np.bool_]


def check_column(column: Column, values: NDArray[np.float64], rows: Sequence[int]) -> None:
    """Refuse the column when a value breaks the contract.

    Args:
        column: what the contract says.
        values: (N,) float64, NaN where missing.
        rows: N spreadsheet row numbers, for the message.

    Raises:
        SiteDataError: FH-DATA-014 outside the limits or infinite, FH-DATA-015 a fraction in a
            column of whole numbers, FH-DATA-016 an unknown category code, FH-DATA-017 a required
            value is missing.
    """
    missing = np.isnan(values)
    if column.required:
        _refuse_missing(column, missing, rows)
    if column.dtype == "category":
        _refuse_unknown_codes(column, ~missing & ~np.isin(values, column.codes), rows)
        return
    low = -np.inf if column.minimum is None else column.minimum
    high = np.inf if column.maximum is None else column.maximum
    outside = ~missing & (np.isinf(values) | (values < low) | (values > high))
    _refuse_outside(column, outside, rows)
    if column.dtype == "int":
        _refuse_fractions(column, ~missing & (values != np.floor(values)), rows)


def describe_rows(wrong: Mask, rows: Sequence[int]) -> str:
    """``3 values (rows 2, 5, 9)``: how many and where, without what."""
    numbers = [rows[int(index)] for index in np.flatnonzero(wrong)]
    shown = ", ".join(str(number) for number in numbers[:_SHOWN_ROWS])
    more = ", ..." if len(numbers) > _SHOWN_ROWS else ""
    values = "1 value" if len(numbers) == 1 else f"{len(numbers)} values"
    return f"{values} ({'row' if len(numbers) == 1 else 'rows'} {shown}{more})"


def _limit(value: float | None) -> str:
    return "any" if value is None else f"{value:g}"


def _refuse_missing(column: Column, wrong: Mask, rows: Sequence[int]) -> None:
    if wrong.any():
        raise SiteDataError(
            "FH-DATA-017",
            f"column {column.name!r} is required and lacks {describe_rows(wrong, rows)}.",
            why="The study's data contract lets no patient in without it.",
            fix="Fill the values in, or leave these patients out of the cohort.",
        )


def _refuse_unknown_codes(column: Column, wrong: Mask, rows: Sequence[int]) -> None:
    if wrong.any():
        raise SiteDataError(
            "FH-DATA-016",
            f"column {column.name!r} has {describe_rows(wrong, rows)} outside its codes.",
            why=f"The contract's codes are {list(column.codes)}.",
            fix="Map the local codes to the contract's; leave the cell empty where it is unknown.",
        )


def _refuse_outside(column: Column, wrong: Mask, rows: Sequence[int]) -> None:
    if wrong.any():
        unit = f" {column.unit}" if column.unit else ""
        raise SiteDataError(
            "FH-DATA-014",
            f"column {column.name!r} has {describe_rows(wrong, rows)} outside "
            f"{_limit(column.minimum)} to {_limit(column.maximum)}{unit}.",
            why="Such values are not plausible in the contract's unit: often the unit differs.",
            fix=f"Convert the column to{unit or ' the unit of the contract'}, or leave wrong values empty.",
        )


def _refuse_fractions(column: Column, wrong: Mask, rows: Sequence[int]) -> None:
    if wrong.any():
        raise SiteDataError(
            "FH-DATA-015",
            f"column {column.name!r} has {describe_rows(wrong, rows)} that are not whole numbers.",
            why="The contract says int.",
            fix="Round them if that is right, or leave them empty.",
        )
