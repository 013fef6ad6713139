"""A tiny site in memory: two modalities, a label that needs both, some of everything missing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.config.study import Study
from fedhealth.contracts.cohort import Cohort, LazyVolume, Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import RoundTask, SiteContext

GRID = 8


@dataclass(frozen=True)
class MemoryVolume:
    values: NDArray[np.float32]

    def load(self) -> NDArray[np.float32]:
        return self.values


def make_study(**changes: Any) -> Study:
    columns = [
        {"name": f"lab_{i}", "dtype": "float", "minimum": -4, "maximum": 4} for i in range(3)
    ]
    content: dict[str, Any] = {
        "schema_version": 1,
        "id": "tiny",
        "title": "Tiny",
        "seed": 7,
        "data": {
            "modalities": [
                {"kind": "table", "name": "ehr", "columns": columns},
                {
                    "kind": "volume",
                    "name": "mri",
                    "shape": [GRID] * 3,
                    "spacing_mm": [2, 2, 2],
                },
            ]
        },
        "model": {"name": "multimodal", "options": {"image_widths": [4, 8], "embedding_size": 4}},
        "training": {
            "local_epochs": 1,
            "batch_size": 8,
            "optimizer": {"name": "adam", "learning_rate": 0.01},
        },
        "runs": [
            {"name": "plain", "num_rounds": 3},
            {"name": "heads", "num_rounds": 3, "personalisation": "private_head"},
        ],
    }
    return Study.model_validate({**content, **changes})


def make_patients(count: int, *, seed: int = 0, one_class: bool = False) -> tuple[Patient, ...]:
    rng = np.random.default_rng(seed)
    patients = []
    for index in range(count):
        z = rng.normal(size=2)
        image = rng.normal(size=(GRID, GRID, GRID)).astype(np.float32)
        image[2:6, 2:6, 2:6] += np.float32(z[1])
        labs = z[0] + 0.5 * rng.normal(size=3)
        labs[rng.random(3) < 0.1] = np.nan
        tables: dict[str, NDArray[np.float64]] = {"ehr": np.clip(labs, -4, 4)}
        volumes: dict[str, LazyVolume] = {"mri": MemoryVolume(image)}
        if rng.random() < 0.2:
            volumes = {}
        label = 0 if one_class else int(z.sum() > 0)
        patients.append(
            Patient(patient_id=f"p{index:04d}", label=label, tables=tables, volumes=volumes)
        )
    return tuple(patients)


def make_site(
    folder: Path,
    study: Study,
    patients: tuple[Patient, ...],
    *,
    site_id: str = "site-a",
    device: str = "cpu",
    fixed_split: Mapping[str, SplitName] | None = None,
) -> SiteContext:
    cohort = Cohort(
        contract=study.data.to_contract(seed=study.seed),
        patients=patients,
        fixed_split=fixed_split,
    )
    return SiteContext(
        site_id=site_id,
        load_cohort=lambda: cohort,
        state_dir=folder,
        cache_dir=folder / "cache",
        device=device,
        num_threads=1,
    )


def make_task(
    round_number: int = 1,
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    run_name: str = "plain",
    **strategy_config: float,
) -> RoundTask:
    return RoundTask(
        run_name=run_name,
        round_number=round_number,
        attempt=1,
        strategy_config=strategy_config,
        is_cancelled=is_cancelled,
    )


@dataclass(frozen=True)
class Tiny:
    """The builders above, as one fixture (test folders are not packages)."""

    study: Callable[..., Study] = make_study
    patients: Callable[..., tuple[Patient, ...]] = make_patients
    site: Callable[..., SiteContext] = make_site
    task: Callable[..., RoundTask] = make_task


@pytest.fixture
def tiny() -> Tiny:
    return Tiny()
