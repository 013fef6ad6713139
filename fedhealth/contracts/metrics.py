"""Names of the metrics that a study may release, with their range: the gate's closed list."""

from typing import Final

METRIC_RANGES: Final[dict[str, tuple[float, float]]] = {
    "auc": (0.0, 1.0),
    "accuracy": (0.0, 1.0),
    "log_loss": (0.0, 1e3),
    "brier": (0.0, 1.0),
    "calibration_error": (0.0, 1.0),
    "train_loss": (0.0, 1e6),
    "macro_auc": (0.0, 1.0),
    "balanced_accuracy": (0.0, 1.0),
    "subset_accuracy": (0.0, 1.0),
    "c_index": (0.0, 1.0),
    "integrated_brier": (0.0, 1.0),
    "dice": (0.0, 1.0),
}
"""Evaluation metrics of the incoming model carry their own name; `train_loss` is the mean local loss."""
