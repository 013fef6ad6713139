"""A table-only site in memory: the audit of its steps takes a second."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fedhealth.config.study import Study
from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import PatientMechanism, SiteContext
from fedhealth.training.audit.bench import Bench, bench_study

SITE_SIZE = 40


def make_study(*, with_volume: bool = False, num_columns: int = 3, **changes: Any) -> Study:
    columns = [
        {"name": f"lab_{i}", "dtype": "float", "minimum": -4, "maximum": 4}
        for i in range(num_columns)
    ]
    modalities: list[dict[str, Any]] = [{"kind": "table", "name": "ehr", "columns": columns}]
    if with_volume:
        grid = {"shape": [8, 8, 8], "spacing_mm": [2, 2, 2]}
        modalities.append({"kind": "volume", "name": "mri", **grid})
    content: dict[str, Any] = {
        "schema_version": 1,
        "id": "tiny",
        "title": "Tiny",
        "seed": 7,
        "data": {"modalities": modalities},
        "model": {
            "name": "multimodal",
            "options": {"embedding_size": 4, "table_hidden_size": 8, "image_widths": [4, 8]},
        },
        "training": {
            "local_steps": 5,
            "batch_size": 8,
            "optimizer": {"name": "adam", "learning_rate": 0.01},
        },
        "runs": [{"name": "plain", "num_rounds": 4}],
        "release": {"metrics": ["accuracy"]},
        "privacy": {"target_epsilon": 8},
    }
    return Study.model_validate({**content, **changes})


def make_patients(count: int = SITE_SIZE) -> tuple[Patient, ...]:
    rng = np.random.default_rng(0)
    return tuple(
        Patient(
            patient_id=f"p{index:04d}",
            label=int(rng.random() < 0.5),
            tables={"ehr": rng.uniform(-4, 4, size=3)},
            volumes={},
        )
        for index in range(count)
    )


def make_mechanism(**changes: Any) -> PatientMechanism:
    facts = {
        "sampling_rate": 0.2,
        "noise_multiplier": 1.5,
        "clipping_norm": 0.5,
        "expected_batch_size": 8.0,
        "num_steps": 10,
    }
    return PatientMechanism(**{**facts, **changes})


def make_bench(**changes: Any) -> Bench:
    study = changes.pop("study", None) or make_study()
    facts: dict[str, Any] = {
        "study": bench_study(study),
        "run": study.runs[0],
        "patients": make_patients(),
        "device": "cpu",
        "rng": np.random.default_rng(11),
    }
    return Bench(**{**facts, **changes})


def make_site(study: Study, folder: Any) -> SiteContext:
    """All patients train."""
    patients = make_patients()
    cohort = Cohort(
        contract=study.data.to_contract(seed=study.seed),
        patients=patients,
        fixed_split=dict.fromkeys((p.patient_id for p in patients), SplitName.TRAIN),
    )
    return SiteContext(
        site_id="site-a",
        load_cohort=lambda: cohort,
        state_dir=folder,
        cache_dir=folder,
        device="cpu",
        num_threads=1,
    )


@dataclass(frozen=True)
class Small:
    """The builders above, as one fixture (test folders are not packages)."""

    study: Callable[..., Study] = make_study
    patients: Callable[..., tuple[Patient, ...]] = make_patients
    mechanism: Callable[..., PatientMechanism] = make_mechanism
    bench: Callable[..., Bench] = make_bench
    site: Callable[..., SiteContext] = make_site


@pytest.fixture
def small() -> Small:
    return Small()
