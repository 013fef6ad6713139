"""Held-out patients are looked at once, at the end: whoever they are changes no model and no recalibration.

For the settings of training alone see `tests/unit/training/test_tuned_alone.py`.
"""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhealth.config.load import load_study
from fedhealth.config.study import Study
from fedhealth.config.template import template_path
from fedhealth.contracts.data import SplitName
from fedhealth.data.reader import COHORT_FILE
from fedhealth.data.split import side_of
from fedhealth.simulation.hospitals import read_sites
from fedhealth.simulation.simulate import simulate
from fedhealth.site.home import SiteHome
from fedhealth.site.own_model import open_own_model
from fedhealth.site.recalibration import recalibrate

from .generated_hospitals import write_site_files

PERSONALISATIONS = ("none", "private_head", "fine_tune")
SITES = ("hospital-1", "hospital-2")


def study_file(folder: Path) -> Path:
    said = yaml.safe_load(template_path("simulation").read_text("utf-8"))
    said["runs"] = [
        {"name": name.replace("_", "-"), "num_rounds": 1, "personalisation": name}
        for name in PERSONALISATIONS
    ]
    said["model"]["options"] = {"embedding_size": 2, "table_hidden_size": 2}
    said["training"]["local_steps"] = 1
    said["federation"]["min_cohort"] = 2
    said["data"]["split"] = {"train": 0.2, "validation": 0.6, "test": 0.2}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(said, sort_keys=False))
    return path


def everything_learned(study: Study, sites: list[Path], folder: Path) -> dict[str, Any]:
    """Models, what is told of them on validation patients, a hospital's own tensors, and its recalibration."""
    done = simulate(study, read_sites(sites, None), folder)
    found: dict[str, Any] = {}
    for run in study.runs:
        finished = done.runs[run.name]
        found[f"model of {run.name}"] = finished.vector.tobytes()
        found[f"metrics of {run.name}"] = [r.aggregate_evaluate_metrics for r in finished.records]
    home = SiteHome(folder / "sites" / SITES[0])
    for run in study.runs:
        own = open_own_model(home, None, run.name)
        found[f"own model of {run.name}"] = own.weights
    found["recalibration"] = recalibrate(open_own_model(home, None, "none"), made_at="now")
    shutil.rmtree(folder)
    return found


def exchange(folder: Path, study: Study, side: SplitName) -> int:
    """Give every other patient of one side another label, and all of them another marker; how many they are."""
    plan = study.data.to_contract(seed=study.seed).split
    changed = 0
    for site_id in SITES:
        path = folder / "data" / site_id / COHORT_FILE
        with path.open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            if side_of(row["patient_id"], plan) is side:
                label = (int(row["label"]) + changed % 2) % 2
                row |= {"label": str(label), "marker_1": str(30 + 40 * label)}
                changed += 1
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return changed


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load_study(study_file(tmp_path))


def test_held_out_patients_change_nothing_that_is_learned(tmp_path: Path, study: Study) -> None:
    sites = write_site_files(tmp_path, SITES, num_patients=120, train_size=24)
    before = everything_learned(study, sites, tmp_path / "before")
    assert exchange(tmp_path, study, SplitName.TEST) > 20
    after = everything_learned(study, sites, tmp_path / "after")
    assert {name for name in before if before[name] != after[name]} == set()
    # The comparison sees something: validation patients change what is fitted to them, and no model of a round.
    assert exchange(tmp_path, study, SplitName.VALIDATION) > 20
    other = everything_learned(study, sites, tmp_path / "other")
    changed = {name for name in before if before[name] != other[name]}
    assert {"recalibration", "metrics of none"} <= changed
    assert not {name for name in changed if "model of" in name}
