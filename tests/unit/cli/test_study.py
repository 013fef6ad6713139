"""`fedhealth study new|check|show|schema`."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedhealth.cli.app import run
from fedhealth.config.load import load_study, study_digest
from fedhealth.config.template import template_names, template_path
from fedhealth.errors import ExitCode
from fedhealth.models.pretrained import WEIGHTS_FILE, WEIGHTS_SHA256


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


def test_check_builds_with_a_weights_file_beside_the_study_and_says_what_was_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    content = load_study(template_path("blank")).model_dump(mode="json")
    pinned = {"image_weights_file": "own.safetensors", "image_weights_sha256": WEIGHTS_SHA256}
    content["model"] = {"name": "multimodal", "options": {"image_weights": "file", **pinned}}
    path.write_text(json.dumps(content))  # JSON is YAML
    assert run(["study", "check", str(path), "--build"]) == ExitCode.CONFIG
    assert "FH-MODEL-032" in capsys.readouterr().err
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "own.safetensors").write_bytes(WEIGHTS_FILE.read_bytes())
    assert run(["study", "check", str(path), "--build", "--json"]) == ExitCode.OK
    notes = {f["code"]: f["text"] for f in object_of(capsys)["findings"]}
    assert "12 pretrained tensors" in notes["FH-CONFIG-037"]
    assert "the whole file" in notes["FH-CONFIG-037"]
