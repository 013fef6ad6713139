"""Simulations of a training method whose every step is known: site number N adds N times `step`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhealth.config.load import load_study
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study

SIZES = (10, 20, 30, 40, 50)


def content(options: Mapping[str, Any], *, num_rounds: int = 1, **more: Any) -> dict[str, Any]:
    column = {"name": "age", "dtype": "float", "minimum": 0, "maximum": 120}
    return {
        "schema_version": 1,
        "id": "scripted",
        "title": "Known updates",
        "seed": 7,
        "data": {"modalities": [{"kind": "table", "name": "ehr", "columns": [column]}]},
        "training": {"name": "scripted", "options": dict(options), "local_steps": 1},
        "federation": {"min_cohort": 2, "cohort_wait_s": 1, "round_deadline_s": 5},
        "release": {"metrics": ["auc", "log_loss", "train_loss"]},
        "runs": [{"name": "main", "num_rounds": num_rounds}],
    } | more


def masks(**more: Any) -> dict[str, Any]:
    federation = {"min_cohort": 3, "cohort_wait_s": 1, "round_deadline_s": 5}
    return {
        "federation": federation,
        "secure_aggregation": {"min_survivors": 3, "value_range": 8.0, **more},
    }


def hospitals(folder: Path, number: int = 3, **more: Any) -> list[SiteConfig]:
    return [
        SiteConfig.model_validate(
            {
                "schema_version": 1,
                "site_id": f"hospital-{index + 1}",
                "package": {"name": "synthetic", "options": {}},
                "data_dir": folder / "data" / f"hospital-{index + 1}",
                "declared_train_size": SIZES[index],
            }
            | more
        )
        for index in range(number)
    ]


@pytest.fixture
def as_study(tmp_path: Path) -> Callable[[Mapping[str, Any]], Study]:
    def make(said: Mapping[str, Any]) -> Study:
        path = tmp_path / "given.yaml"
        path.write_text(yaml.safe_dump(dict(said), sort_keys=False))
        return load_study(path)

    return make
