"""What `study check` says about a study that is well formed."""

import subprocess
import sys

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


def runs(**strategy: object) -> list[dict[str, object]]:
    return [{"name": "one", "num_rounds": 1, "strategy": strategy}]


def test_the_blank_template_has_no_findings() -> None:
    assert check_study(study()) == []


def test_a_plugin_that_is_not_installed_is_an_error() -> None:
    findings = check_study(study(model={"name": "multimodel"}))
    assert codes(findings, "error") == {"FH-CONFIG-010"}
    assert "multimodal" in findings[0].text


def test_an_unknown_strategy_option_is_an_error_that_lists_the_known_ones() -> None:
    findings = check_study(study(runs=runs(name="fedprox", options={"proximal_mv": 0.1})))
    assert "FH-CONFIG-021" in codes(findings, "error")
    assert any("proximal_mu" in finding.text for finding in findings)


def test_options_of_flowers_own_strategies_are_checked_too() -> None:
    findings = check_study(study(runs=runs(name="flower-fedadam", options={"beta_3": 0.1})))
    assert "FH-CONFIG-021" in codes(findings, "error")


def test_fedper_without_a_private_head_is_an_error() -> None:
    assert "FH-CONFIG-023" in codes(check_study(study(runs=runs(name="fedper"))), "error")


def test_a_policy_that_allows_pooling_is_told_to_pool() -> None:
    findings = check_study(study(policy={"pooling_allowed": True}))
    assert codes(findings, "warning") == {"FH-CONFIG-027"}
    assert "simply pool the data" in findings[0].text


def test_a_minimum_cohort_of_two_is_warned_about() -> None:
    findings = check_study(study(federation={"min_cohort": 2}))
    assert codes(findings, "warning") == {"FH-CONFIG-024"}


def test_errors_come_first() -> None:
    findings = check_study(study(federation={"min_cohort": 2}, runs=runs(name="fedper")))
    assert [finding.level for finding in findings] == ["error", "warning"]


def test_checking_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from fedhealth.config.check import check_study\n"
        "from fedhealth.config.load import load_study\n"
        "from fedhealth.config.template import template_path\n"
        "check_study(load_study(template_path('blank')))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


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
