"""What a task is judged by. Made by `training.judging` from a study, used by the analysis of a comparison."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhealth.statistics.verdicts import MARGIN

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a task is judged by.

    Attributes:
        primary: name of the metric that verdicts are about.
        larger_is_better: which way it improves.
        metrics: all metrics of predictions and labels, by name; an undefined one is left out.
        resampled: (R,) the primary metric with records counted `weights` (R, N) times; NaN where undefined.
        record_values: metrics that are means over records, (N,) each, by name.
        class_sizes: different patients of each class, 0 where a class has none; of labels and the patients (N,)
            whose they are.
        margin: a loss of the primary metric below it is taken as no loss.
    """

    primary: str
    larger_is_better: bool
    metrics: Callable[[Array, Array], Mapping[str, float]]
    resampled: Callable[[Array, Array, NDArray[np.float64]], NDArray[np.float64]]
    record_values: Callable[[Array, Array], Mapping[str, NDArray[np.float64]]]
    class_sizes: Callable[[Array, NDArray[np.int64]], tuple[int, ...]]
    margin: float = MARGIN
