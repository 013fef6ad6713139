"""A whole comparison on one machine: three small hospitals, two runs, pooled data, and each hospital left out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedhealth.cli import app as cli
from fedhealth.config.study import Study
from fedhealth.config.template import template_path
from fedhealth.errors import ExitCode, UsageError
from fedhealth.report.benefit.record import BenefitRecord
from fedhealth.report.model_bundle import CARD_PAGE
from fedhealth.server.benefit_rows import combine_files
from fedhealth.server.home import ServerHome
from fedhealth.simulation.benefit import (
    SiteScores,
    benefit_of_simulation,
    can_leave_out,
    has_one_model,
    plain_run,
    without_one,
)
from fedhealth.site.benefit import benefit_of_site, release_row
from fedhealth.site.home import SiteHome
from fedhealth.training.held_out import HeldOutScores

from .generated_hospitals import write_site_files

SITES = ("hospital-1", "hospital-2", "hospital-3")
MASKS = {"min_survivors": 3, "value_range": 1.0}


def content(**changes: Any) -> dict[str, Any]:
    said = yaml.safe_load(template_path("simulation").read_text("utf-8"))
    said["runs"] = [
        {"name": "shared-head", "num_rounds": 2},
        {"name": "private-head", "num_rounds": 2, "personalisation": "private_head"},
    ]
    said["model"]["options"] = {"embedding_size": 2, "table_hidden_size": 2}
    said["training"]["local_steps"] = 1
    said["data"]["split"] = {"train": 0.3, "validation": 0.2, "test": 0.5}
    return said | changes


def write_hospitals(folder: Path) -> list[str]:
    paths = write_site_files(folder, SITES, num_patients=40, train_size=12)
    return [word for path in paths for word in ("--site", str(path))]


def test_every_method_is_judged_on_the_same_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(content(), sort_keys=False))
    command = ["benefit", str(study), *write_hospitals(tmp_path), "--seeds", "1"]
    code = cli.run([*command, "--out", str(tmp_path / "out"), "--json"])
    captured = capsys.readouterr()
    assert code == ExitCode.OK, captured.err
    record = BenefitRecord.model_validate(json.loads(captured.out)["record"])
    assert record.origin == "simulation"
    assert record.num_seeds == 1
    methods = ["local", "run:shared-head", "run:private-head", "pooled", "left-out"]
    assert [method.key for method in record.methods] == methods
    assert record.methods[2].kind == "personalised"
    for site in record.sites:
        assert [result.method for result in site.results] == methods
        assert "epoch" in {curve.unit for curve in site.curves}
        for gain in site.gains:
            assert (gain.adjusted_p is None) == (gain.metric != "auc")
    assert "round" in {curve.unit for site in record.sites for curve in site.curves}
    page = (tmp_path / "out" / "benefit.html").read_text("utf-8")
    assert "pool" in page
    assert "AUC over rounds" in page
    # Pooling is allowed for generated patients: the page says what that means.
    assert "Your policy allows pooling" in captured.err or "Simply pool the data" in captured.err


def test_what_a_simulated_hospital_makes_says_that_it_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own page, the row that it releases, the consortium's page, and a model that it exports without records."""
    said = content(runs=[{"name": "shared-head", "num_rounds": 1}])
    said["release"] |= {"benefit": True}
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(said, sort_keys=False))
    folder, row = tmp_path / "trial", tmp_path / "row.json"
    command = ["simulate", str(study), *write_hospitals(tmp_path), "--out", str(folder), "--keep"]
    assert cli.run(command) == ExitCode.OK
    home = SiteHome(folder / "sites" / SITES[0])
    result = benefit_of_site(home, None)
    assert (result.record.origin, result.record.is_simulation) == ("site", True)
    page = result.page_path.read_text("utf-8")
    assert "<title>[simulation]" in page
    enough = replace(result, patients_per_class=(50, 50))
    assert release_row(home, None, enough, row).is_simulation
    combined, _ = combine_files([row], ServerHome(folder / "server"))
    assert (combined.origin, combined.is_simulation) == ("released", True)
    out = str(tmp_path / "rows")
    assert cli.run(["benefit", "--rows", str(row), "--out", out]) == ExitCode.OK
    assert "nothing here is evidence about a real hospital" in capsys.readouterr().err
    export = ["model", "export", "--home", str(home.root), "--out", str(tmp_path / "bundle")]
    assert cli.run(export) == ExitCode.OK
    assert "A simulation: one party" in (tmp_path / "bundle" / CARD_PAGE).read_text("utf-8")


def test_a_patient_who_is_tested_with_two_seeds_is_one_patient() -> None:
    site = SiteScores()
    for patients in (["p1", "p2"], ["p2", "p3"]):
        scores = HeldOutScores(
            probabilities=np.array([0.2, 0.8]),
            labels=np.array([0, 1]),
            owners=np.array([0, 1]),
            metrics={},
        )
        site.add("local", scores, patients)
    assert [judged.patients.tolist() for judged in site.judged["local"]] == [[0, 1], [1, 2]]


def study_of(**changes: Any) -> Study:
    return Study.model_validate(content(**changes))


def test_the_federation_without_a_hospital_has_one_plain_run_and_may_be_smaller() -> None:
    study = study_of(secure_aggregation=MASKS)
    others = without_one(study, 2)
    assert [run.name for run in others.runs] == ["shared-head"]
    assert others.federation.min_cohort == 2
    assert others.secure_aggregation is None
    assert can_leave_out(study, 3)
    assert not can_leave_out(study, 2)


def test_with_privacy_the_budget_is_shared_by_the_same_runs() -> None:
    study = study_of(privacy={"target_epsilon": 3, "clipping_norm": 1.0}, release={"metrics": []})
    assert [run.name for run in without_one(study, 2).runs] == ["shared-head", "private-head"]


def test_noise_under_masks_needs_its_hospitals() -> None:
    noise = {"unit": "site", "num_sites": 4, "clipping_norm": 1.0, "target_epsilon": 8.0}
    masks = MASKS | {"distributed_privacy": noise}
    runs = [{"name": name, "num_rounds": 2} for name in ("one", "two")]
    study = study_of(secure_aggregation=masks, runs=runs, release={"metrics": []})
    assert not can_leave_out(study, 3)
    assert can_leave_out(study, 4)
    others = without_one(study, 3)
    assert others.secure_aggregation == study.secure_aggregation
    assert others.runs == study.runs  # they share the budget


def test_where_every_run_is_personal_the_plain_one_is_its_fedavg() -> None:
    personal = {"name": "heads", "num_rounds": 2, "personalisation": "private_head"}
    run = plain_run(study_of(runs=[personal | {"strategy": {"name": "fedper"}}]))
    assert (run.name, run.personalisation, run.strategy.name) == ("heads", "none", "fedavg")


def test_hospitals_with_other_models_have_no_pooled_one_and_other_tasks_are_refused(
    tmp_path: Path,
) -> None:
    model = {"name": "multimodal", "options": {"embedding_size": 2, "table_hidden_size": 4}}
    runs = [{"name": "blocks", "num_rounds": 1, "personalisation": "private_blocks"}]
    blocks = {"shared_blocks": ["encoders.table_ehr."], "variants": {"wide": {"model": model}}}
    study = study_of(runs=runs, site_models=blocks)
    assert not has_one_model(study)
    assert has_one_model(study_of())
    one = study_of(runs=runs, site_models={"shared_blocks": ["encoders.table_ehr."]})
    assert without_one(one, 2).site_models is None
    other = {"model": model, "task": {"name": "multiclass_classification"}}
    differ = study_of(
        runs=runs,
        site_models={**blocks, "variants": {"wide": other}},
        release={"metrics": []},
    )
    with pytest.raises(UsageError, match="FH-BENEFIT-032"):
        benefit_of_simulation(differ, [], tmp_path, num_seeds=1)
