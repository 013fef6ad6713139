"""The app bundle that a server ships to hospitals: one file, no code (docs/adr/0004)."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from fedhealth.flower.launch import write_thin_app


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = write_thin_app(tmp_path_factory.mktemp("flower") / "app", version("flwr"))
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path_factory.mktemp("flwr-home")),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    flwr = Path(sys.executable).parent / "flwr"
    subprocess.run(
        [flwr, "build", "--app", folder],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )
    return zipfile.ZipFile(next(folder.glob("*.fab")))


def test_the_bundle_holds_its_description_and_nothing_else(bundle: zipfile.ZipFile) -> None:
    assert set(bundle.namelist()) == {"pyproject.toml", ".info/CONTENT"}


def test_its_components_are_the_installed_package(bundle: zipfile.ZipFile) -> None:
    description = tomllib.loads(bundle.read("pyproject.toml").decode())
    components = description["tool"]["flwr"]["app"]["components"]
    assert components == {
        "serverapp": "fedhealth.flower.server_app:app",
        "clientapp": "fedhealth.flower.client_app:app",
    }
    for component in components.values():
        module, _, name = component.partition(":")
        assert hasattr(import_module(module), name)


def test_writing_the_app_again_removes_whatever_lay_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "extra.py").write_text("print('shipped by accident')")
    write_thin_app(folder, version("flwr"))
    assert [path.name for path in folder.iterdir()] == ["pyproject.toml"]
