"""The site package `heart`: one of the four hospitals, written as CSV and read like any hospital's data."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedhealth.config.base import ConfigModel
from fedhealth.contracts.cohort import Cohort
from fedhealth.contracts.data import DataContract
from fedhealth.data.reader import COHORT_FILE, read_folder_cohort
from fedhealth.data.site_options import parse_site_options
from fedhealth.errors import SiteDataError
from fedhealth_site_heart.tables import COLUMNS, Hospital, read_table

FEATURES = COLUMNS[:-1]
ZERO_IS_MISSING = ("trestbps", "chol")
"""Nobody has a blood pressure or a cholesterol of 0: chol is 0 in all of Switzerland and a quarter of VA."""


class HeartOptions(ConfigModel):
    """Options of the site package `heart`."""

    hospital: Hospital = Field(description="cleveland, hungarian, switzerland or va.")


class HeartSite:
    """One of the four UCI hospitals.

    Args:
        data_dir: an empty folder, into which `cohort.csv` is written at the first load, or one that has it. It
            may be read-only afterwards.
        options: see `HeartOptions`.
        cache_dir: not used, there are no volumes.

    Raises:
        ConfigError: FH-CONFIG-041 an option is wrong.
    """

    def __init__(self, *, data_dir: Path, options: Mapping[str, object], cache_dir: Path) -> None:
        self._data_dir = data_dir
        self._options = parse_site_options(HeartOptions, options, package="heart")
        self._cache_dir = cache_dir

    def load_cohort(self, contract: DataContract) -> Cohort:
        """Write `cohort.csv` if need be, then read it with the generic reader.

        Raises:
            SiteDataError: as `read_folder_cohort`; FH-DATA-050 the folder holds something else, FH-DATA-051 a
                cohort.csv of another hospital, FH-DATA-052 it cannot be written.
        """
        self._fill()
        return read_folder_cohort(self._data_dir, contract, self._cache_dir)

    def load_new_patients(self, contract: DataContract) -> Cohort:
        """Patients to predict, from a folder in the generic layout. Raises as `read_folder_cohort`."""
        return read_folder_cohort(self._data_dir, contract, self._cache_dir)

    def _fill(self) -> None:
        path = self._data_dir / COHORT_FILE
        text = cohort_csv(self._options.hospital)
        try:
            if path.exists():
                self._refuse_other_cohort(path.read_bytes(), text)
                return
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._refuse_other_files()
            path.write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise SiteDataError(
                "FH-DATA-052",
                f"cohort.csv cannot be written or read ({type(error).__name__}).",
                why="This site package puts its hospital's table into the data folder at the first load.",
                fix="Let this account write to data_dir once.",
            ) from None

    def _refuse_other_cohort(self, payload: bytes, text: str) -> None:
        if payload != text.encode():
            raise SiteDataError(
                "FH-DATA-051",
                f"cohort.csv in the data folder is not that of {self._options.hospital}.",
                why="It is left as it is: it could be real data, or another hospital's.",
                fix="Correct the option hospital in site.yaml, or use an empty data folder.",
            )

    def _refuse_other_files(self) -> None:
        if any(self._data_dir.iterdir()):
            raise SiteDataError(
                "FH-DATA-050",
                "the data folder holds files that do not belong to this site package.",
                why="They are left as they are: they could be real data.",
                fix="Give the site package `heart` an empty data_dir.",
            )


def cohort_csv(hospital: Hospital) -> str:
    """The hospital's table as the generic reader wants it: id, label 0 or 1, empty cells for missing values.

    Row order is the file's; ids are made up (``va-0042``), since the published files have none.
    """
    table = _with_missing_zeros(read_table(hospital))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["patient_id", "label", *FEATURES])
    for number, row in enumerate(table):
        cells = ["" if np.isnan(value) else f"{value:g}" for value in row[:-1]]
        writer.writerow([f"{hospital}-{number:04d}", int(row[-1] > 0), *cells])
    return buffer.getvalue()


def _with_missing_zeros(table: NDArray[np.float64]) -> NDArray[np.float64]:
    table = table.copy()
    for name in ZERO_IS_MISSING:
        column = table[:, COLUMNS.index(name)]
        column[column == 0] = np.nan
    return table
