"""The command line: exit codes, JSON, and nothing of a patient in what it prints."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fedhealth.cli import app as cli
from fedhealth.cli import output
from fedhealth.cli.lazy import LazyGroup
from fedhealth.config.template import template_path
from fedhealth.errors import ConfigError, ExitCode

MARK = "DOE^JOHN"
BLANK = str(template_path("blank"))


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    logger = logging.getLogger("fedhealth")
    before = (logger.handlers[:], logger.level)
    yield
    logger.handlers[:], logger.level = before


def test_help_lists_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert all(name in text for name in cli.Commands.members)


def test_every_group_imports_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.Commands.members:
        assert cli.run([name, "--help"]) == ExitCode.OK
        assert f"Usage: fedhealth {name}" in capsys.readouterr().out


def test_version_prints_package_flower_torch_and_schemas(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["--version"]) == ExitCode.OK
    names = [line.rpartition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"fedhealth", "flwr", "torch", "schema study", "schema round-record"} <= set(names)


@pytest.mark.parametrize(
    "arguments", [["stduy"], ["study", "chek"], ["study", "check"], ["--nope"]]
)
def test_a_wrong_command_line_exits_2_and_points_to_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.err.startswith("FH-USAGE-001")
    assert "--help" in captured.err
    assert captured.out == ""


def test_a_misspelt_command_is_told_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, wanted in ((["stduy"], "study"), (["study", "chek"], "check")):
        assert cli.run(arguments) == ExitCode.USAGE
        assert f"Did you mean '{wanted}'" in capsys.readouterr().err


def test_help_of_a_command_describes_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["study", "check", "--help"]) == ExitCode.OK
    assert "STUDY.yaml  The study file.  [required]" in capsys.readouterr().out


def test_no_command_shows_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == ExitCode.USAGE
    assert "Usage: fedhealth" in capsys.readouterr().err


def test_a_wrong_file_exits_3_with_line_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(Path(BLANK).read_text().replace("batch_size", "batchsize"))
    assert cli.run(["study", "check", str(path)]) == ExitCode.CONFIG
    captured = capsys.readouterr()
    line = next(i for i, row in enumerate(path.read_text().splitlines(), 1) if "batchsize" in row)
    assert f"{path}:{line} has the unknown key" in captured.err
    assert "Did you mean `batch_size`?" in captured.err


def test_with_json_an_error_is_one_object_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["study", "check", str(tmp_path / "no.yaml"), "--json"]) == ExitCode.CONFIG
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "fedhealth.error"
    assert (document["code"], document["exit_code"]) == ("FH-CONFIG-001", 3)
    assert document["problems"][0]["line"] == 1


def test_a_usage_error_with_json_is_one_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["study", "check", "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["code"] == "FH-USAGE-001"


def raising(error: BaseException) -> typer.Typer:
    app = output.new_app("A command that fails.")

    @app.command()
    def fail() -> None:
        raise error

    @app.callback()
    def group() -> None: ...

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyError(MARK), ExitCode.BUG),
        (ConfigError("FH-CONFIG-999", "made up."), ExitCode.CONFIG),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (typer.Exit(9), ExitCode.NO_QUORUM),
    ],
)
def test_every_way_to_fail_has_its_exit_code(
    error: BaseException,
    code: ExitCode,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "app", raising(error))
    assert cli.run(["fail"]) == code
    captured = capsys.readouterr()
    assert MARK not in captured.err + captured.out
    assert "Traceback" not in captured.err


def test_the_traceback_of_a_bug_is_shown_only_at_debug_level(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output.configure_logging("debug")
    monkeypatch.setattr(cli, "app", raising(KeyError("x")))
    assert cli.run(["fail"]) == ExitCode.BUG
    assert "Traceback" in capsys.readouterr().err


def test_a_group_is_imported_only_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"absent": ("fedhealth.cli.absent", "Is not there.")}
    monkeypatch.setattr(cli.Commands, "members", members)
    assert cli.run(["--help"]) == ExitCode.OK
    assert cli.run(["absent"]) == ExitCode.BUG


def test_a_lazy_group_without_members_is_a_plain_group() -> None:
    assert LazyGroup(name="empty").commands == {}


def test_log_level_is_refused_unless_known() -> None:
    assert cli.run(["--log-level", "loud", "study", "schema"]) == ExitCode.USAGE
    assert cli.run(["--log-level", "info", "study", "schema"]) == ExitCode.OK
