"""What `pip install fedhealth` puts on a hospital's machine."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = {"fedhealth", "fedhealth_strategies"}


def build(target: str, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(out.iterdir())


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as wheel:
        return wheel.namelist()


def test_wheel_holds_the_two_packages_and_nothing_else(members: list[str]) -> None:
    folders = {name.partition("/")[0] for name in members}
    assert {f for f in folders if not f.endswith(".dist-info")} == TOP_LEVEL


def test_wheel_holds_no_site_test_benchmark_or_document(members: list[str]) -> None:
    rooms = ("sites/", "tests/", "benchmarks/", "docs/", "configs/")
    assert [name for name in members if name.startswith(rooms)] == []
    assert [name for name in members if name.startswith("fedhealth_site_")] == []


def test_wheel_carries_the_templates_of_configs_and_no_other_yaml(members: list[str]) -> None:
    configs = {path.relative_to(ROOT / "configs").as_posix() for path in yaml_files()}
    inside = {name for name in members if name.endswith((".yaml", ".yml"))}
    assert inside == {f"fedhealth/config/templates/{name}" for name in configs}


def yaml_files() -> list[Path]:
    return sorted((ROOT / "configs").rglob("*.yaml"))


def test_wheel_says_that_it_is_typed_and_how_it_is_licensed(members: list[str]) -> None:
    assert {"fedhealth/py.typed", "fedhealth_strategies/py.typed"} <= set(members)
    assert any(name.endswith("licenses/LICENSE") for name in members)


def test_wheel_holds_no_data_and_no_key(members: list[str]) -> None:
    """The MNI152 template is a public average brain, not a person's."""
    refused = (".nii", ".nii.gz", ".dcm", ".csv", ".pem", ".key", ".pkl", ".pt", ".pth", ".sqlite")
    public = "fedhealth/models/mni152/"
    found = [name for name in members if name.endswith(refused) and not name.startswith(public)]
    assert found == []


def test_sdist_builds_the_same_wheel_members(tmp_path: Path, members: list[str]) -> None:
    sdist = build("sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    python = {name for name in members if name.endswith(".py")}
    inside = {name.removeprefix("strategies/") for name in names if name.endswith(".py")}
    assert inside == python | {"hatch_build.py"}
