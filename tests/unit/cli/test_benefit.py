"""`fedhealth benefit`: which options fit together, and released rows to record, page and JSON."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedhealth.cli import app as cli
from fedhealth.errors import EvidenceError, ExitCode
from fedhealth.evidence.benefit_row import BenefitRow, ReleasedGain, ReleasedMetrics
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import parse_statement
from fedhealth.report.benefit.record import BenefitRecord


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    logger = logging.getLogger("fedhealth")
    before = (logger.handlers[:], logger.level)
    yield
    logger.handlers[:], logger.level = before


def row(folder: Path, site_id: str, low: float, high: float, metric: str = "auc") -> str:
    gain = ReleasedGain(
        method="run:plain",
        over="local",
        metric=metric,
        value=(low + high) / 2,
        low=low,
        high=high,
        p_value=0.004,
        standard_error=0.01,
    )
    said = BenefitRow(
        study_id="tiny",
        study_sha256="0" * 64,
        site_id=site_id,
        primary="auc",
        larger_is_better=True,
        margin=0.02,
        fewest=5,
        is_simulation=False,
        personal_runs=("plain",),
        results=(ReleasedMetrics(method="local", metrics={"auc": 0.7}),),
        gains=(gain,),
        issued_at="2026-01-01T00:00:00Z",
    )
    path = folder / f"{site_id}.json"
    path.write_bytes(said.sign(SigningKey.generate()).to_bytes())
    return str(path)


def test_released_rows_become_record_page_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [row(tmp_path, "aa", 0.01, 0.05), row(tmp_path, "bb", -0.05, -0.01)]
    out = tmp_path / "out"
    code = cli.run(["benefit", "--rows", paths[0], "--rows", paths[1], "--out", str(out), "--json"])
    captured = capsys.readouterr()
    assert code == ExitCode.OK
    said = json.loads(captured.out)
    assert said["schema"] == "fedhealth.benefit"
    assert BenefitRecord.model_validate(said["record"]).origin == "released_unverified"
    assert said["sentences"]["headlines"] == {"run:plain": "Worth it for some, worse for others"}
    assert "Worse at bb." in captured.err
    assert "without a check of their signatures" in captured.err
    assert BenefitRecord.model_validate_json((out / "benefit.json").read_bytes())
    assert "Personalised (run plain)" in (out / "benefit.html").read_text("utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--home", "site", "--rows", "row.json"],
        ["--release", "row.json", "--rows", "other.json"],
        ["--home", "site", "--out", "folder"],
        ["--home", "site", "--server-home", "server"],
        ["--study", "tiny", "--rows", "row.json"],
    ],
)
def test_options_of_different_questions_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["benefit", *arguments]) == ExitCode.USAGE
    assert "FH-BENEFIT-020" in capsys.readouterr().err


def test_a_file_that_is_no_row_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "row.json").write_text("{}")
    code = cli.run(["benefit", "--rows", str(tmp_path / "row.json"), "--out", str(tmp_path)])
    assert code == ExitCode.EVIDENCE_NOT_VERIFIED
    assert "FH-EVIDENCE-001" in capsys.readouterr().err
    assert not (tmp_path / "benefit.json").exists()


def test_a_difference_that_was_not_released_is_not_called_too_few_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study lists the log loss only: verdicts are about the AUC, and of that nothing left."""
    paths = [row(tmp_path, name, 0.01, 0.05, metric="log_loss") for name in ("aa", "bb")]
    out = tmp_path / "out"
    code = cli.run(["benefit", "--rows", paths[0], "--rows", paths[1], "--out", str(out)])
    said = capsys.readouterr().err + (out / "benefit.html").read_text("utf-8")
    assert code == ExitCode.OK
    assert "no site released a difference in AUC" in said
    assert "Not released" in said
    assert "oo few patients to say" not in said


@pytest.mark.parametrize("name", ["nobody.json", ""])
def test_a_row_that_cannot_be_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code = cli.run(["benefit", "--rows", str(tmp_path / name), "--out", str(tmp_path / "out")])
    assert code == ExitCode.USAGE
    assert "FH-BENEFIT-015" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high", "metric"),
    [(0.5, -0.5, "auc"), (-1.5, 0.5, "auc"), (0.0, 1e300, "log_loss"), (0.01, 0.05, "nonsense")],
)
def test_a_difference_that_no_metric_can_have_is_no_row(
    tmp_path: Path, low: float, high: float, metric: str
) -> None:
    with pytest.raises(ValidationError):
        row(tmp_path, "aa", low, high, metric)


def test_a_row_says_a_thing_once(tmp_path: Path) -> None:
    envelope = Envelope.from_bytes(Path(row(tmp_path, "aa", 0.01, 0.05)).read_bytes())
    said = json.loads(envelope.payload)
    said["gains"] *= 2
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-002"):
        parse_statement(BenefitRow, json.dumps(said))
