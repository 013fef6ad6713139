"""Turn a table modality's values into numbers for a model, with public constants only.

Called by `batch` (features of patients) and by model builders (feature widths, before any patient
is read). Scaling uses the contract's public limits or reference ranges, so no statistic of a patient
enters a model's input transform: there is nothing to account for and nothing to agree on between
sites.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import Column, DataContract, TableModality
from fedhealth.errors import ConfigError, SiteDataError

Values = NDArray[np.float64]
Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TableEncoder:
    """Columns of one table modality as features plus missing-value indicators.

    A numeric column becomes one feature: the ends of its reference range are -1 and +1, and without
    one minimum and maximum are. Plausibility limits are wide, so that most patients then lie close
    together: under clipping and noise that signal is easily lost. A category column becomes one
    feature per code (0 or 1, in the contract's order). A missing value becomes 0 in all its
    features, and 1 in the column's indicator.
    """

    modality: TableModality

    @property
    def num_features(self) -> int:
        """Number of features (F): one per numeric column, one per code of a category column."""
        return sum(_width(column) for column in self.modality.columns)

    @property
    def num_columns(self) -> int:
        """Number of columns (C), which is also the number of missing-value indicators."""
        return len(self.modality.columns)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in order: ``age``, ``cp=1``, ``cp=2``, ..."""
        names: list[str] = []
        for column in self.modality.columns:
            if column.dtype == "category":
                names += [f"{column.name}={code}" for code in column.codes]
            else:
                names.append(column.name)
        return tuple(names)

    def encode(self, values: Values) -> tuple[Features, Features]:
        """Encode one row or many.

        Args:
            values: (..., C) float64, one value per column, NaN where missing.

        Returns:
            features (..., F) float32 and missing-value indicators (..., C) float32.

        Raises:
            SiteDataError: FH-DATA-030 the last axis is not C long.
        """
        if values.ndim == 0 or values.shape[-1] != self.num_columns:
            width = values.shape[-1] if values.ndim else 0
            raise SiteDataError(
                "FH-DATA-030",
                f"table {self.modality.name!r} has {width} values a row, "
                f"the contract has {self.num_columns} columns.",
                fix="Return one value per column of the modality, NaN where it is missing.",
            )
        missing = np.isnan(values)
        features = np.zeros((*values.shape[:-1], self.num_features), dtype=np.float32)
        start = 0
        for index, column in enumerate(self.modality.columns):
            stop = start + _width(column)
            features[..., start:stop] = _encode_column(column, values[..., index])
            start = stop
        return features, missing.astype(np.float32)


def table_encoders(contract: DataContract) -> dict[str, TableEncoder]:
    """One encoder per table modality, in study order: a model builder reads its widths here."""
    return {table.name: TableEncoder(table) for table in contract.tables}


def _width(column: Column) -> int:
    return len(column.codes) if column.dtype == "category" else 1


def _encode_column(column: Column, values: Values) -> Values:
    if column.dtype == "category":
        # NaN equals no code, so a missing category is all zeros without a special case.
        is_code: Values = np.equal(values[..., None], np.asarray(column.codes)).astype(np.float64)
        return is_code
    if column.minimum is None or column.maximum is None:
        raise ConfigError(
            "FH-CONFIG-040",
            f"column {column.name!r} has no minimum and maximum.",
            why="Numeric columns are scaled with public limits, never with statistics of patients.",
            fix="Give the column a minimum and a maximum in the study's data section.",
        )
    low, high = column.reference or (column.minimum, column.maximum)
    scaled: Values = 2.0 * (values - low) / (high - low) - 1.0
    return np.nan_to_num(scaled, nan=0.0)[..., None]
