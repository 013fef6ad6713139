"""What `study check` says about a study that is well formed."""

import pytest

from fedhealth.config.check import Finding, check_study
from fedhealth.config.load import load_study
from fedhealth.config.study import Study
from fedhealth.config.template import template_path


def study(**changes: object) -> Study:
    base = load_study(template_path("blank")).model_dump()
    return Study.model_validate(base | changes)


def codes(findings: list[Finding], level: str) -> set[str]:
    return {finding.code for finding in findings if finding.level == level}


def test_the_blank_template_has_no_findings() -> None:
    assert check_study(study()) == []


def test_a_plugin_that_is_not_installed_is_an_error() -> None:
    findings = check_study(study(model={"name": "multimodel"}))
    assert codes(findings, "error") == {"FH-CONFIG-010"}
    assert "multimodal" in findings[0].text


def test_a_policy_that_allows_pooling_is_told_to_pool() -> None:
    findings = check_study(study(policy={"pooling_allowed": True}))
    assert codes(findings, "warning") == {"FH-CONFIG-027"}
    assert "simply pool the data" in findings[0].text


def test_a_minimum_cohort_of_two_is_warned_about() -> None:
    findings = check_study(study(federation={"min_cohort": 2}, secure_aggregation=None))
    assert codes(findings, "warning") == {"FH-CONFIG-024"}


@pytest.mark.parametrize("num_parameters", [10, 1000])
def test_build_says_what_travels(num_parameters: int) -> None:
    training = {
        "name": "add_one",
        "options": {"num_parameters": num_parameters},
        "local_steps": 1,
    }
    plan = [{"name": "one", "num_rounds": 1}]
    findings = check_study(study(training=training, runs=plan), build=True)
    assert codes(findings, "note") == {"FH-CONFIG-028"}


def test_build_finds_a_grid_that_does_not_fit_the_image_encoder() -> None:
    model = {"name": "multimodal", "options": {"image_encoder": "vit_tiny", "image_patch_size": 12}}
    findings = check_study(study(model=model), build=True)
    assert codes(findings, "error") == {"FH-MODEL-030"}
    assert "multiples of 12" in findings[0].text


def test_build_says_what_is_averaged_over_the_sites_that_have_a_modality() -> None:
    federation = {"min_cohort": 3, "average_encoders_over": "sites_with_modality"}
    model = {"name": "multimodal"}
    findings = check_study(study(model=model, federation=federation), build=True)
    blocks = [f.text for f in findings if f.code == "FH-CONFIG-035"]
    assert any("averaged over the sites that declare" in text for text in blocks)
    assert not codes(findings, "error")


def test_build_refuses_a_method_that_does_not_know_modalities() -> None:
    federation = {"min_cohort": 3, "average_encoders_over": "sites_with_modality"}
    training = {"name": "add_one", "local_steps": 1}
    findings = check_study(study(training=training, federation=federation), build=True)
    assert codes(findings, "error") == {"FH-MODEL-011"}


def survival(task: str, **changes: object) -> Study:
    base = load_study(template_path("blank")).model_dump()
    label = {"kind": "survival", "unit": "days", "maximum": 900}
    new = {
        "data": base["data"] | {"label": label},
        "task": {"name": task},
        "model": {"name": "multimodal"},
        "release": {"metrics": ["log_loss"]},
        "privacy": {"target_epsilon": 8, "clipping_norm": 1.0, "release_metrics": "closing"},
        "secure_aggregation": None,
    }
    return Study.model_validate(base | new | changes)


def test_build_refuses_cox_under_patient_privacy_and_names_the_way_out() -> None:
    findings = check_study(survival("survival_cox", release={"metrics": []}), build=True)
    assert codes(findings, "error") == {"FH-PRIVACY-058"}
    assert "survival_discrete_time" in findings[0].text
    findings = check_study(survival("survival_discrete_time"), build=True)
    assert not codes(findings, "error")


def test_build_names_metrics_that_the_task_does_not_give() -> None:
    asked = {"metrics": ["brier", "log_loss"]}
    findings = check_study(survival("survival_discrete_time", release=asked), build=True)
    assert codes(findings, "error") == {"FH-CONFIG-038"}
    assert "brier" in findings[0].text
    open_study = survival("survival_discrete_time", release=asked, privacy=None)
    assert codes(check_study(open_study, build=True), "warning") == {"FH-CONFIG-038"}
