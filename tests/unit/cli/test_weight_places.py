"""Every command finds pretrained weights in its homes and beside its study file."""

import hashlib
from pathlib import Path
from typing import Annotated

import pytest
import typer

from fedhealth.cli.weight_places import look_for_weights
from fedhealth.errors import ConfigError
from fedhealth.models.weight_files import PinnedFile, find_file

PINNED = PinnedFile(name="a", sha256=hashlib.sha256(b"weights").hexdigest())


def _run(arguments: list[str]) -> list[Path]:
    found: list[Path] = []
    app = typer.Typer()

    @app.command()
    def one(
        home: Annotated[Path | None, typer.Option()] = None,
        server_home: Annotated[Path | None, typer.Option()] = None,
        study: Annotated[str | None, typer.Option()] = None,
    ) -> None:
        found.append(find_file(PINNED)[0])

    @app.command()
    def two(study: Path) -> None:
        found.append(find_file(PINNED)[0])

    command = typer.main.get_command(app)
    look_for_weights(command)
    command.main(arguments, standalone_mode=False)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["one", "--home", "{folder}"],
        ["one", "--server-home", "{folder}", "--study", "stroke"],
        ["one", "--home", "{folder}/none", "--study", "{folder}/study.yml"],
        ["two", "{folder}/study.yaml"],
    ],
)
def test_a_command_looks_where_its_arguments_point(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a").write_bytes(b"weights")
    given = [argument.format(folder=tmp_path) for argument in arguments]
    assert _run(given) == [tmp_path / "weights" / "a"]
    with pytest.raises(ConfigError, match="FH-MODEL-032"):
        find_file(PINNED)  # afterwards nothing is left behind


def test_a_study_id_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FH-MODEL-032"):
        _run(["one", "--home", str(tmp_path), "--study", "stroke"])
