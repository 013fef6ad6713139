"""Read `cohort.csv`, strict about everything that a spreadsheet can do to a table.

Called by `reader`. One row is one record of a patient. The file is UTF-8 text (a byte order mark is
harmless), separated by commas, decimals with a point, empty cells where a value is missing. Columns that the
contract does not name are ignored: they are never parsed, so they are in no record, no message and
no cache.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedhealth.contracts.cohort import UNKNOWN_LABEL
from fedhealth.contracts.data import Column, DataContract, SurvivalLabel, TableModality
from fedhealth.data.columns import FIRST_DATA_ROW, Mask, check_column, describe_rows
from fedhealth.errors import SiteDataError

MAX_CSV_BYTES = 1 << 29
"""512 MiB of text: a million patients with a hundred columns."""

PATIENT_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""A pseudonym that is also a file name without surprises: no separator, no `..`."""

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"
_DECIMAL_COMMA = r"[+-]?[0-9]+,[0-9]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortTable:
    """The checked content of `cohort.csv`, rows in file order.

    Attributes:
        patient_ids: N pseudonyms, each at most `records_per_patient` times.
        labels: (N,) int64 codes of the contract; zeros where its `target` says that the label is something else,
            `UNKNOWN_LABEL` for new patients.
        targets: (N, L) float64 of the contract's `label_columns` in that case, of width 0 for masks and codes.
        tables: modality name -> (N, C) float64, NaN where missing.
        rows: N spreadsheet row numbers.
    """

    patient_ids: tuple[str, ...] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    targets: NDArray[np.float64] = field(repr=False)
    tables: dict[str, NDArray[np.float64]] = field(repr=False)
    rows: tuple[int, ...] = field(repr=False)


def read_cohort_csv(path: Path, contract: DataContract) -> CohortTable:
    """Read and check the table.

    Args:
        path: the CSV file.
        contract: columns, codes and limits to keep.

    Raises:
        SiteDataError: FH-DATA-001 no such file, FH-DATA-002 not readable as text, FH-DATA-003
            another separator, FH-DATA-004 a column twice, FH-DATA-005 a column missing, FH-DATA-006
            rows of different length, FH-DATA-007 the header again, FH-DATA-008 no patient,
            FH-DATA-009 unsafe patient id, FH-DATA-010 a patient too often, FH-DATA-011 label missing or
            unknown, FH-DATA-012 not a number, FH-DATA-013 decimal comma, and FH-DATA-014 to 017 as
            in `columns`.
    """
    frame = _parse(_read_text(path), contract)
    rows = tuple(range(FIRST_DATA_ROW, FIRST_DATA_ROW + len(frame)))
    patient_ids = _patient_ids(frame[contract.patient_id_column], contract, rows)
    labels, targets = np.zeros(len(frame), dtype=np.int64), np.zeros((len(frame), 0))
    if not contract.has_labels:
        labels = np.full(len(frame), UNKNOWN_LABEL, dtype=np.int64)
    elif contract.target is None:
        labels = _labels(frame[contract.label_column], contract, rows)
    elif contract.label_columns:
        targets = _targets(frame, contract, rows)
    tables = {table.name: _table(frame, table, rows) for table in contract.tables}
    return CohortTable(
        patient_ids=patient_ids, labels=labels, targets=targets, tables=tables, rows=rows
    )


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        payload = path.read_bytes() if size <= MAX_CSV_BYTES else b""
    except OSError as error:
        raise SiteDataError(
            "FH-DATA-001",
            f"the data folder has no readable cohort.csv ({type(error).__name__}).",
            why="It lists the patients of the cohort, one row each.",
            fix="Put cohort.csv into the data folder and let this account read it.",
        ) from None
    if size > MAX_CSV_BYTES:
        raise _unreadable(f"it has {size} bytes, the limit is {MAX_CSV_BYTES}")
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _unreadable("it is not UTF-8 text") from None


def _parse(text: str, contract: DataContract) -> pd.DataFrame:
    """Text cells of the contract's columns. pandas alone would pad short rows and rename repeated columns."""
    try:
        records = [record for record in csv.reader(io.StringIO(text), strict=True) if record]
    except csv.Error:
        raise _unreadable(
            "its quoting is broken or a cell is longer than 131072 characters"
        ) from None
    if not records:
        raise _empty()
    header = [name.strip() for name in records[0]]
    _check_header(header, contract)
    _check_shape(header, records[1:])
    if len(records) == 1:
        raise _empty()
    frame = pd.DataFrame(records[1:], columns=header, dtype=str)
    wanted = {name: frame[name].str.strip() for name in _wanted(contract)}
    return pd.DataFrame(wanted)


def _wanted(contract: DataContract) -> list[str]:
    columns = [column.name for table in contract.tables for column in table.columns]
    return [contract.patient_id_column, *contract.label_columns, *columns]


def _check_header(header: list[str], contract: DataContract) -> None:
    wanted = _wanted(contract)
    if len(header) == 1 and re.search(r"[;\t|]", header[0]):
        raise SiteDataError(
            "FH-DATA-003",
            "cohort.csv is not separated by commas.",
            why="Semicolons usually come with decimal commas, which would change numbers silently.",
            fix="Export it again with commas between cells and points in decimals.",
        )
    repeated = sorted({name for name in wanted if header.count(name) > 1})
    if repeated:
        raise SiteDataError(
            "FH-DATA-004",
            f"cohort.csv has these columns more than once: {', '.join(repeated)}.",
            why="It is not clear which one is meant.",
            fix="Keep one column of each name.",
        )
    missing = [name for name in wanted if name not in header]
    if missing:
        raise SiteDataError(
            "FH-DATA-005",
            f"cohort.csv lacks {len(missing)} columns of the contract: {', '.join(missing[:20])}.",
            why="A column that is not recorded at a site is still there, with empty cells.",
            fix="Add the columns, spelled as in the study; leave their cells empty if need be.",
        )


def _check_shape(header: list[str], records: list[list[str]]) -> None:
    rows = range(FIRST_DATA_ROW, FIRST_DATA_ROW + len(records))
    ragged = np.array([len(record) != len(header) for record in records], dtype=bool)
    if ragged.any():
        raise SiteDataError(
            "FH-DATA-006",
            f"cohort.csv has {int(ragged.sum())} rows whose number of cells is not the header's "
            f"{len(header)}, first row {rows[int(np.flatnonzero(ragged)[0])]}.",
            why="Values would move to other columns.",
            fix="Quote cells that contain a comma, and export again.",
        )
    again = [row for row, record in zip(rows, records, strict=True) if record == header]
    if again:
        raise SiteDataError(
            "FH-DATA-007",
            f"cohort.csv has its header again in row {again[0]}.",
            why="That happens when files are put together, and the same patients may then be twice.",
            fix="Remove the extra header, and check where the rows below it come from.",
        )


def _patient_ids(
    cells: "pd.Series[str]", contract: DataContract, rows: Sequence[int]
) -> tuple[str, ...]:
    unsafe = ~cells.str.fullmatch(PATIENT_ID).to_numpy(dtype=bool)
    if unsafe.any():
        raise SiteDataError(
            "FH-DATA-009",
            f"the patient id column has {describe_rows(unsafe, rows)} that cannot be used as an id.",
            why="An id also names the patient's image files.",
            fix="Use pseudonyms of at most 64 letters, digits, '.', '_' and '-', beginning with a "
            "letter or digit.",
        )
    limit = contract.records_per_patient
    too_often = cells.map(cells.value_counts()).to_numpy() > limit
    if too_often.any():
        raise SiteDataError(
            "FH-DATA-010",
            f"the patient id column has {describe_rows(too_often, rows)} whose id occurs more than "
            f"{'once' if limit == 1 else f'{limit} times'}.",
            why="The study says how many records one patient may have; all of them count as one patient.",
            fix="Keep that many rows for each patient, or raise data.records_per_patient in study.yaml.",
        )
    return tuple(cells.tolist())


def _labels(
    cells: "pd.Series[str]", contract: DataContract, rows: Sequence[int]
) -> NDArray[np.int64]:
    values = _numbers(cells, contract.label_column, rows)
    unknown = ~np.isin(values, contract.label_codes)
    if unknown.any():
        raise SiteDataError(
            "FH-DATA-011",
            f"the label column {contract.label_column!r} has {describe_rows(unknown, rows)} missing "
            "or outside its codes.",
            why=f"The contract's codes are {list(contract.label_codes)}.",
            fix="Map the labels to these codes; leave patients without a label out of the cohort.",
        )
    return values.astype(np.int64)


def _targets(
    frame: pd.DataFrame, contract: DataContract, rows: Sequence[int]
) -> NDArray[np.float64]:
    """(N, L) float64 of the label columns, each checked like a required column. Raises FH-DATA-012 to 017."""
    found = []
    for name in contract.label_columns:
        column = Column(name=name, dtype="category", codes=(0, 1), required=True)
        target = contract.target
        if isinstance(target, SurvivalLabel) and name == target.time_column:
            column = Column(
                name=name,
                dtype="float",
                unit=target.unit,
                minimum=0.0,
                maximum=target.maximum,
                required=True,
            )
        values = _numbers(frame[name], name, rows)
        check_column(column, values, rows)
        found.append(values)
    return np.column_stack(found)


def _table(frame: pd.DataFrame, table: TableModality, rows: Sequence[int]) -> NDArray[np.float64]:
    block = np.column_stack([_numbers(frame[c.name], c.name, rows) for c in table.columns])
    # Who lacks the whole block lacks its required columns too; that is a missing modality, no mistake.
    has_block: Mask = np.count_nonzero(~np.isnan(block), axis=1) > 0
    kept_rows = [row for row, kept in zip(rows, has_block, strict=True) if kept]
    for index, column in enumerate(table.columns):
        check_column(column, block[has_block, index], kept_rows)
    return block


def _numbers(cells: "pd.Series[str]", name: str, rows: Sequence[int]) -> NDArray[np.float64]:
    """(N,) float64, NaN for empty cells."""
    empty = (cells == "").to_numpy(dtype=bool)
    comma = cells.str.fullmatch(_DECIMAL_COMMA).to_numpy(dtype=bool)
    if comma.any():
        raise SiteDataError(
            "FH-DATA-013",
            f"column {name!r} has {describe_rows(comma, rows)} with a decimal comma.",
            why="A comma separates cells here.",
            fix="Export the file with points in decimals.",
        )
    wrong = ~empty & ~cells.str.fullmatch(_NUMBER).to_numpy(dtype=bool)
    if wrong.any():
        raise SiteDataError(
            "FH-DATA-012",
            f"column {name!r} has {describe_rows(wrong, rows)} that are not numbers.",
            why="Words such as NA, ? or <5 would have to be guessed.",
            fix="Leave the cell empty where the value is missing; write numbers without units.",
        )
    values = np.full(len(cells), np.nan)
    values[~empty] = cells[~empty].to_numpy(dtype=object).astype(np.float64)
    return values


def _unreadable(reason: str) -> SiteDataError:
    return SiteDataError(
        "FH-DATA-002",
        f"cohort.csv cannot be read: {reason}.",
        fix="Export it as UTF-8 CSV: commas between cells, double quotes around text with commas.",
    )


def _empty() -> SiteDataError:
    return SiteDataError(
        "FH-DATA-008",
        "cohort.csv holds no patient.",
        why="Without a patient there is nobody to learn from, and nobody to score.",
        fix="Export the patients of the cohort, or those to be scored, one row each below the header.",
    )
