"""`fedhealth study new|check|show|schema`."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedhealth.cli.app import run
from fedhealth.config.load import load_study, study_digest
from fedhealth.config.template import template_names, template_path
from fedhealth.errors import ExitCode


def object_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("template", template_names())
def test_a_new_study_passes_its_check(template: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    assert run(["study", "new", str(path), "--template", template]) == ExitCode.OK
    assert path.read_text() == template_path(template).read_text()
    assert run(["study", "check", str(path)]) == ExitCode.OK


def test_new_writes_study_yaml_into_a_folder(tmp_path: Path) -> None:
    assert run(["study", "new", str(tmp_path / "stroke")]) == ExitCode.OK
    assert (tmp_path / "stroke" / "study.yaml").is_file()


def test_new_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("mine")
    assert run(["study", "new", str(path)]) == ExitCode.USAGE
    assert path.read_text() == "mine"
    assert "FH-USAGE-002" in capsys.readouterr().err


def test_new_names_the_templates_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study", "new", str(tmp_path), "--template", "hart"]) == ExitCode.CONFIG
    assert "blank" in capsys.readouterr().err


def test_check_reports_digest_and_findings_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    text = template_path("blank").read_text()
    path.write_text(text.replace("pooling_allowed: false", "pooling_allowed: true"))
    assert run(["study", "check", str(path), "--json"]) == ExitCode.OK
    document = object_of(capsys)
    assert document["schema"] == "fedhealth.study-check"
    assert document["digest"] == study_digest(load_study(path))
    codes = [f["code"] for f in document["findings"] if f["level"] != "note"]
    assert codes == ["FH-CONFIG-027"]


def test_check_of_a_study_that_cannot_run_exits_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(template_path("blank").read_text().replace("name: fedavg}", "name: fedavgg}"))
    assert run(["study", "check", str(path)]) == ExitCode.CONFIG
    assert "fedavgg" in capsys.readouterr().err


def test_show_prints_the_resolved_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study", "show", str(template_path("blank"))]) == ExitCode.OK
    captured = capsys.readouterr()
    assert "max_void_rounds: 3" in captured.out
    assert study_digest(load_study(template_path("blank"))) in captured.err


def test_show_as_json_holds_the_whole_study(capsys: pytest.CaptureFixture[str]) -> None:
    path = template_path("blank")
    assert run(["study", "show", str(path), "--json"]) == ExitCode.OK
    document = object_of(capsys)
    assert document["study"] == load_study(path).model_dump(mode="json")


@pytest.mark.parametrize("kind", ["study", "site", "server"])
def test_schema_prints_json_schema(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study", "schema", kind]) == ExitCode.OK
    assert object_of(capsys)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
