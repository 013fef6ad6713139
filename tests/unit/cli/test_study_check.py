"""`study check` asks the strategies themselves, without torch."""

import subprocess
import sys

from fedhealth.cli.study_check import check_whole_study
from fedhealth.config.check import Finding
from fedhealth.config.load import load_study
from fedhealth.config.study import Study
from fedhealth.config.template import template_path


def study(**changes: object) -> Study:
    base = load_study(template_path("blank")).model_dump()
    return Study.model_validate(base | changes)


def check(**changes: object) -> list[Finding]:
    return check_whole_study(study(**changes), build=False)


def runs(**strategy: object) -> list[dict[str, object]]:
    return [{"name": "one", "num_rounds": 1, "strategy": strategy}]


def texts(findings: list[Finding], level: str) -> str:
    return " ".join(finding.text for finding in findings if finding.level == level)


def test_the_blank_template_has_notes_on_its_masks_and_no_other_finding() -> None:
    assert {(finding.level, finding.code) for finding in check()} == {
        ("note", "FH-SECAGG-021"),
        ("note", "FH-SECAGG-026"),
        ("note", "FH-SECAGG-029"),
    }


def test_an_unknown_strategy_option_is_an_error_that_lists_the_known_ones() -> None:
    errors = texts(check(runs=runs(name="fedprox", options={"proximal_mv": 0.1})), "error")
    assert "proximal_mv" in errors
    assert "proximal_mu" in errors


def test_options_of_flowers_own_strategies_are_checked_too() -> None:
    errors = texts(check(runs=runs(name="flower-fedadam", options={"beta_3": 0.1})), "error")
    assert "beta_3" in errors


def test_fedper_without_a_private_head_is_an_error() -> None:
    assert "private_head" in texts(check(runs=runs(name="fedper")), "error")


def test_a_strategy_that_is_not_installed_is_told_once() -> None:
    findings = check(runs=runs(name="fedavgg"))
    assert [finding.code for finding in findings if finding.level != "note"] == ["FH-CONFIG-010"]


def test_errors_come_first() -> None:
    findings = check(
        federation={"min_cohort": 2}, runs=runs(name="fedper"), secure_aggregation=None
    )
    assert [finding.level for finding in findings] == ["error", "warning", "note"]


def test_checking_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from fedhealth.cli.app import run\n"
        "from fedhealth.config.template import template_path\n"
        "assert run(['study', 'check', str(template_path('blank'))]) == 0\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0
