"""The demo's final table: sites down, models across."""

from collections.abc import Sequence
from typing import Any


def summary_rows(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Headers and rows of AUC by site and model; a dash where AUC is undefined (one class)."""
    models = [row["model"] for row in results[0]["rows"]]
    rows: list[list[object]] = [
        [result["site_id"], result["num_patients"], *(_auc(row) for row in result["rows"])]
        for result in results
    ]
    return ["site", "test patients", *models], rows


def _auc(row: dict[str, Any]) -> str:
    if row["auc"] is None:
        return "-"
    return f"{row['auc']:.3f} ({row['auc_low']:.2f}-{row['auc_high']:.2f})"
