"""`study privacy` plans sites, and `study check` knows what cannot be released or carried out."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.optimize import brentq
from scipy.stats import norm

from fedhealth.cli.app import run
from fedhealth.cli.noise_hints import model_sizes
from fedhealth.cli.study_check import check_whole_study
from fedhealth.config.check import Finding
from fedhealth.config.load import study_to_yaml
from fedhealth.config.study import Study
from fedhealth.errors import ExitCode, PrivacyError
from fedhealth.privacy.accounting.plan import check_delta, plan_site

from ..conftest import study_content  # noqa: TID252 - tests are no installed package
from ..privacy.accounting.studies import (  # noqa: TID252 - tests are no installed package
    private_study,
)

METRICS = {"target_epsilon": 8.0, "release_metrics": "closing"}
FIXED = {
    "noise_multiplier": 2.0,
    "release_metrics": "closing",
    "metrics_noise_multiplier": 5.0,
}


def study_file(folder: Path, study: Study) -> str:
    path = folder / "study.yaml"
    path.write_text(study_to_yaml(study), "utf-8")
    return str(path)


def site_file(folder: Path, **privacy: Any) -> str:
    content = {
        "schema_version": 1,
        "site_id": "st-mary",
        "package": {"name": "synthetic"},
        "data_dir": ".",
        "declared_train_size": 80,
        "privacy": privacy,
    }
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return str(path)


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    assert run(["study", "privacy", *arguments, "--json"]) == ExitCode.OK
    captured = capsys.readouterr()
    answer: dict[str, Any] = json.loads(captured.out)
    return answer, captured.err


def test_the_plan_of_a_size_is_the_one_that_a_site_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = private_study(FIXED)
    answer, text = ask(capsys, study_file(tmp_path, study), "--sites", "80")
    (site,) = answer["sites"]
    plan = plan_site(study, 80)
    assert plan is not None
    assert site["noise_multiplier"] == plan.noise_multiplier
    assert site["sampling_rate"] == 0.2
    assert site["planned_steps"] == 20
    assert site["noise_per_coordinate"] == pytest.approx(plan.noise_multiplier / 16)
    metrics_noise = plan.metrics_noise_multiplier
    assert metrics_noise is not None
    assert site["metrics"]["noise_std"]["log_loss"] == pytest.approx(
        3 * metrics_noise * math.sqrt(2) / plan.declared_validation_size
    )
    assert site["accepted"] is None
    assert answer["are_examples"] is False
    assert "delta" in text
    assert "add or remove one" in text


def test_spend_grows_over_the_rounds_up_to_the_whole_studys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, _ = ask(capsys, study_file(tmp_path, private_study(FIXED)), "--sites", "80")
    (site,) = answer["sites"]
    curve = site["after_rounds"]
    assert [(point["run"], point["round"]) for point in curve] == [
        ("first", 1),
        ("first", 2),
        ("first", 3),
        ("second", 1),
        ("second", 2),
    ]
    spent = [point["epsilon"] for point in curve]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(site["spend"]["epsilon"])
    assert all(point["epsilon_rdp"] >= point["epsilon"] for point in curve)


def test_without_sizes_the_sizes_are_called_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = private_study({"noise_multiplier": 2.0})
    answer, text = ask(capsys, study_file(tmp_path, fixed))
    assert answer["are_examples"] is True
    assert [site["declared_train_size"] for site in answer["sites"]] == [50, 100, 200, 400, 1000]
    assert "examples" in text


def test_alternatives_are_worked_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = private_study()
    answer, _ = ask(capsys, study_file(tmp_path, study), "--sites", "80")
    bigger, shorter, _fewer = answer["alternatives"]
    training = study.training.model_copy(update={"batch_size": 32})
    plan = plan_site(study.model_copy(update={"training": training}), 80)
    assert plan is not None
    assert bigger["noise_multiplier"] == plan.noise_multiplier
    assert bigger["noise_per_coordinate"] == pytest.approx(plan.noise_multiplier / 32)
    assert shorter["planned_steps"] == 4 * (1 + 1)
    assert [item["delta"] for item in answer["alternatives"]] == [plan.delta] * 3


def test_an_epsilon_in_a_hint_has_its_delta_and_neither_is_rounded_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = private_study({"noise_multiplier": 2.0})
    answer, text = ask(capsys, study_file(tmp_path, fixed), "--sites", "120")
    told = re.findall(r"epsilon ([\d.]+) at delta ([\d.e-]+)\.(?:\s|$)", " ".join(text.split()))
    assert len(told) == len(answer["alternatives"]) == 3
    for (epsilon, delta), item in zip(told, answer["alternatives"], strict=True):
        assert item["epsilon"] <= float(epsilon) <= item["epsilon"] * 1.001
        assert 0.1 / 120 <= float(delta) <= 0.1 / 120 * 1.01
    (row,) = [line for line in text.splitlines() if line.endswith("e-04")]
    epsilon, epsilon_rdp, delta = map(float, row.split()[-3:])
    spend = answer["sites"][0]["spend"]
    assert spend["epsilon"] <= epsilon < spend["epsilon"] + 1e-3
    assert spend["epsilon_rdp"] <= epsilon_rdp < spend["epsilon_rdp"] + 1e-3
    assert delta >= spend["delta"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"release": {"metrics": ["auc"]}}, "FH-PRIVACY-044"),
        ({"training": {"name": "add_one", "local_steps": 1}}, "FH-PRIVACY-046"),
        ({"privacy": {"target_epsilon": 8.0, "delta": 0.11}}, "FH-PRIVACY-043"),
    ],
)
def test_what_study_check_refuses_is_not_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], code: str
) -> None:
    study = study_file(tmp_path, private_study(**changes))
    for command in (["check", study], ["privacy", study, "--sites", "80"]):
        assert run(["study", *command]) == ExitCode.CONFIG
        captured = capsys.readouterr()
        assert code in captured.err
        assert not captured.out


@pytest.mark.parametrize(("limit", "accepted"), [(8.0, True), (7.0, False)])
def test_a_site_file_says_whether_that_site_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, limit: float, accepted: bool
) -> None:
    config = site_file(tmp_path, max_epsilon_per_study=limit)
    study = study_file(tmp_path, private_study())
    answer, text = ask(capsys, study, "--site-config", config)
    (site,) = answer["sites"]
    assert site["accepted"] is accepted
    assert site["declared_train_size"] == 80
    assert ("accepts" if accepted else "FH-PRIVACY-021") in text


def test_a_study_without_privacy_is_told_plainly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = private_study().model_copy(update={"privacy": None})
    config = site_file(tmp_path, max_epsilon_per_study=8.0)
    answer, text = ask(capsys, study_file(tmp_path, study), "--site-config", config)
    assert answer["privacy"] is None
    assert answer["sites"] == []
    assert answer["unprotected"][0]["refusal"]["code"] == "FH-PRIVACY-020"
    assert "nothing bounds" in text


def test_another_target_can_be_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_file(tmp_path, private_study().model_copy(update={"privacy": None}))
    answer, _ = ask(capsys, study, "--sites", "80", "--target-epsilon", "2")
    assert 1.97 < answer["sites"][0]["spend"]["epsilon"] <= 2.0


@pytest.mark.parametrize(
    ("epsilon", "code"),
    [
        ("0", "FH-PRIVACY-015"),
        ("-1", "FH-PRIVACY-016"),
        ("inf", "FH-PRIVACY-017"),
        ("nan", "FH-PRIVACY-018"),
    ],
)
def test_a_target_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], epsilon: str, code: str
) -> None:
    study = study_file(tmp_path, private_study())
    arguments = ["study", "privacy", study, "--target-epsilon", epsilon]
    assert run(arguments) == ExitCode.PRIVACY_BUDGET
    assert code in capsys.readouterr().err


def test_a_size_below_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_file(tmp_path, private_study())
    assert run(["study", "privacy", study, "--sites", "0"]) == ExitCode.USAGE
    assert "FH-PRIVACY-042" in capsys.readouterr().err


def test_a_site_that_is_always_sampled_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = private_study({"noise_multiplier": 2.0})
    _, text = ask(capsys, study_file(tmp_path, fixed), "--sites", "10")
    assert "every step" in text


def test_site_level_privacy_is_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"num_sites": 4, "noise_multiplier": 4.0, "clipping_norm": 1.0}
    strategy = {"name": "dp-fedavg", "options": options}
    runs = [{"name": "sites", "num_rounds": 30, "strategy": strategy}]
    fixed = private_study({"noise_multiplier": 2.0}, runs=runs)
    answer, text = ask(capsys, study_file(tmp_path, fixed), "--sites", "80")
    (said,) = answer["site_level_runs"]
    assert (said["run"], said["unit"], said["shows_badge"]) == ("sites", "site", False)
    assert said["epsilon"] == pytest.approx(4.7, rel=0.02)  # z = 4, 30 rounds, delta 1e-3
    assert "kept apart" in " ".join(text.split())
    assert "No badge" in " ".join(text.split())


def site_level_run(name: str, noise: float, num_sites: int = 4, rounds: int = 30) -> dict[str, Any]:
    options = {"num_sites": num_sites, "noise_multiplier": noise, "clipping_norm": 1.0}
    strategy = {"name": "dp-fedavg", "options": options}
    return {"name": name, "num_rounds": rounds, "strategy": strategy}


def test_a_site_pays_for_all_site_level_runs_of_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        site_level_run("one", 4.0, num_sites=4),
        site_level_run("two", 6.0, num_sites=200, rounds=20),
        {"name": "open", "num_rounds": 1},
    ]
    study = study_file(tmp_path, private_study({"noise_multiplier": 2.0}, runs=runs))
    answer, text = ask(capsys, study, "--sites", "80")
    whole, parts = answer["site_level_study"], answer["site_level_runs"]
    assert whole["runs"] == ["one", "two"]
    assert whole["runs_without_site_level_privacy"] == ["open"]
    assert (whole["unit"], whole["num_sites"], whole["delta"]) == ("site", 4, 0.1 / 200)
    mu = math.sqrt(30 / 4.0**2 + 20 / 6.0**2)  # Gaussian releases compose to one: Dong et al. 2022
    assert whole["epsilon"] == pytest.approx(gaussian_epsilon(mu, 0.1 / 200), rel=2e-3)
    assert whole["epsilon"] > max(part["epsilon"] for part in parts)
    least = min(part["noise_over_clipping_norm"] for part in parts)
    assert whole["noise_over_clipping_norm"] == least
    assert whole["shows_badge"] is False
    said = " ".join(text.split())
    assert "Runs one, two together: " in said
    assert "without any bound for a site: open" in said


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018 (arXiv 1805.06530), theorem 8, solved for epsilon."""

    def delta_at(epsilon: float) -> float:
        inner = norm.cdf(mu / 2 - epsilon / mu)
        return float(inner - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)) - delta

    return float(brentq(delta_at, 0.0, 100.0))


def test_one_site_level_run_needs_no_composition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = private_study({"noise_multiplier": 2.0}, runs=[site_level_run("one", 4.0)])
    answer, text = ask(capsys, study_file(tmp_path, study), "--sites", "80")
    assert answer["site_level_study"] is None
    assert "together:" not in text


def test_a_private_head_is_noised_too_and_a_frozen_encoder_is_not() -> None:
    head = [{"name": "head", "num_rounds": 1, "personalisation": "private_head"}]
    whole, frozen = model_sizes(private_study())
    assert model_sizes(private_study(runs=head))[0] == whole
    assert 0 < frozen.num_parameters < whole.num_parameters


def check(**changes: Any) -> list[Finding]:
    return check_whole_study(private_study(**changes), build=False)


def found(findings: list[Finding], code: str) -> Finding:
    (one,) = [finding for finding in findings if finding.code == code]
    return one


def test_a_study_whose_privacy_can_be_carried_out_has_no_errors() -> None:
    assert not [finding for finding in check(privacy=METRICS) if finding.level != "note"]


def test_metrics_that_cannot_be_noised_are_an_error_that_says_what_to_write() -> None:
    release = {"metrics": ["auc", "log_loss", "brier", "calibration_error", "train_loss"]}
    finding = found(check(privacy=METRICS, release=release), "FH-PRIVACY-044")
    assert finding.level == "error"
    assert "release.metrics: [log_loss, brier]" in finding.text
    for name in ("auc", "calibration_error", "train_loss"):
        assert f"{name}: it " in finding.text


def test_metrics_that_will_not_leave_are_a_warning() -> None:
    assert found(check(), "FH-PRIVACY-045").level == "warning"


def test_training_that_cannot_protect_patients_is_an_error() -> None:
    training = {"name": "add_one", "local_steps": 1}
    assert found(check(training=training), "FH-PRIVACY-046").level == "error"


def test_epochs_are_explained() -> None:
    training = {"batch_size": 16, "local_epochs": 1}
    assert found(check(training=training), "FH-PRIVACY-048").level == "note"


def test_a_fixed_delta_names_the_largest_site_that_it_fits() -> None:
    privacy = {"target_epsilon": 8.0, "delta": 2e-4}
    finding = found(check(privacy=privacy), "FH-PRIVACY-049")
    assert "more than 500 " in finding.text
    assert finding.level == "warning"


@pytest.mark.parametrize("delta", [0.1 / 3, 0.1 / 7, 0.1 / 49, 1e-3, 3e-4, 0.1, 0.07, 1e-8])
def test_the_largest_size_is_where_sites_begin_to_refuse(delta: float) -> None:
    privacy = {"target_epsilon": 8.0, "delta": delta}
    finding = found(check(privacy=privacy), "FH-PRIVACY-049")
    told = re.search(r"more than (\d+) ", finding.text)
    assert told is not None
    check_delta(delta, int(told[1]))
    with pytest.raises(PrivacyError):
        check_delta(delta, int(told[1]) + 1)


@pytest.mark.parametrize("delta", [math.nextafter(0.1, 1), 0.11, 0.5, 0.99])
def test_a_delta_that_no_site_can_take_is_an_error_that_says_what_to_write(delta: float) -> None:
    with pytest.raises(PrivacyError):
        check_delta(delta, 1)
    findings = check(privacy={"target_epsilon": 8.0, "delta": delta})
    finding = found(findings, "FH-PRIVACY-043")
    assert finding.level == "error"
    assert "Leave it out" in finding.text
    assert "1e-4 for 1000 patients" in finding.text
    assert "FH-PRIVACY-049" not in {other.code for other in findings}


def test_a_study_without_privacy_has_none_of_these_findings() -> None:
    study = private_study().model_copy(update={"privacy": None})
    findings = check_whole_study(study, build=False)
    assert not [finding for finding in findings if finding.code.startswith("FH-PRIVACY")]


def test_noise_under_the_masks_is_told_with_who_has_to_be_honest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = {"unit": "site", "num_sites": 20, "clipping_norm": 1.0, "target_epsilon": 8}
    content = study_content(min_cohort=3) | {"secure_aggregation": {"distributed_privacy": noise}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    assert run(["study", "privacy", str(path), "--json"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)["sums"]
    assert said["num_honest"] == 2
    assert said["num_sums"] == 3
    assert said["epsilon"] > 8, "a patient moves a site's update by two radii"
    assert "honest" in captured.err
    assert "nothing bounds" not in captured.err
