"""`fedhealth site audit` in a home that has not joined yet, on a hospital of the heart study."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhealth.cli.app import run
from fedhealth.errors import PrivacyError, UsageError
from fedhealth.site.audit import require_clean
from fedhealth.training.audit.whole import AuditSize

CONFIGS = Path(__file__).parents[3] / "configs" / "heart"
SMALL = AuditSize(num_canaries=100, max_steps=10, num_models=8, num_rebuilt=1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("fedhealth.training.audit.whole.QUICK", SMALL)
    # How well the attacks do is tested elsewhere; here they only have to run.
    monkeypatch.setattr("fedhealth.training.audit.shadow_heads._HEART_EPOCHS", 2)
    monkeypatch.setattr("fedhealth.training.audit.inversion._ITERATIONS", 5)
    (tmp_path / "site.yaml").write_text((CONFIGS / "site-switzerland.yaml").read_text())
    write_study(tmp_path, {"target_epsilon": 8})
    return tmp_path


def write_study(home: Path, privacy: dict[str, Any] | None, **changes: Any) -> None:
    study = yaml.safe_load((CONFIGS / "study.yaml").read_text())
    study.pop("privacy", None)
    study["release"] = {"metrics": ["accuracy"]}
    if privacy:
        study["privacy"] = privacy
    folder = home / "studies" / "heart"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study | changes))


def test_audit_before_joining_writes_a_private_result_and_charges_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["site", "audit", "--home", str(home), "--quick", "--json"]) == 0
    out, text = capsys.readouterr()
    said = json.loads(out)
    assert said["schema"] == "fedhealth.site-audit"
    assert said["verdict"] == "no_bug_found"
    assert said["claim"]["epsilon"] == pytest.approx(8, abs=0.05)
    assert said["control"]["epsilon_shown"] > 2
    assert {row["with_privacy"] for row in said["canaries"]} == {True, False}
    assert {row["with_privacy"] for row in said["membership"]} == {True, False}
    assert {row["with_privacy"] for row in said["rebuilt"]} == {True, False}
    path = home / "studies" / "heart" / "results" / "audit.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["verdict"] == "no_bug_found"
    assert not (home / "ledger").exists()
    assert not (home / "studies" / "heart" / "state").exists()
    assert "not a proof" in text
    assert "nothing is charged" in text


def test_a_study_without_privacy_is_shown_as_such(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(home, None)
    assert run(["site", "audit", "--home", str(home), "--quick", "--json"]) == 0
    out, text = capsys.readouterr()
    said = json.loads(out)
    assert (said["verdict"], said["claim"], said["control"]) == ("no_privacy", None, None)
    rows = [*said["canaries"], *said["membership"], *said["rebuilt"]]
    assert rows
    assert not any(row["with_privacy"] for row in rows)
    assert "no patient-level privacy" in text


def test_too_few_canaries_are_refused_before_any_work(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["site", "audit", "--home", str(home), "--canaries", "30"]) == 2
    assert "FH-AUDIT-004" in capsys.readouterr().err


def test_training_that_has_no_audit_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"name": "add_one", "options": {}, "local_steps": 1}
    write_study(home, None, training=training)
    assert run(["site", "audit", "--home", str(home)]) == 2
    assert "FH-AUDIT-005" in capsys.readouterr().err


def test_verdicts_that_are_no_pass_are_errors() -> None:
    bug = {"verdict": "bug", "bugs": ["noise: 0.5, promised 1"], "path": "audit.json"}
    with pytest.raises(PrivacyError, match="FH-AUDIT-010") as caught:
        require_clean(bug)
    assert caught.value.exit_code == 5
    blind = {"verdict": "blind", "control": {"epsilon_shown": 1.0}, "path": "audit.json"}
    with pytest.raises(UsageError, match="FH-AUDIT-011"):
        require_clean(blind)
    require_clean({"verdict": "no_bug_found"})


def test_labels_that_are_no_codes_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load((CONFIGS / "study.yaml").read_text())["data"]
    label = {"kind": "survival", "unit": "days", "maximum": 900}
    write_study(home, None, data=data | {"label": label})
    assert run(["site", "audit", "--home", str(home)]) == 2
    assert "FH-AUDIT-006" in capsys.readouterr().err
