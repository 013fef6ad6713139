"""Which libraries get imported by what: checked in fresh interpreters, not in this one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "flwr", "monai", "pandas", "nibabel", "sklearn", "opacus")
AUDITOR_ROOMS = ("contracts", "gate", "evidence", "report", "config")
ROOT = Path(__file__).parents[2]


def imported_after(code: str, *, cwd: Path) -> set[str]:
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=cwd, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def modules_of(room: str) -> list[str]:
    paths = sorted((ROOT / "fedhealth" / room).glob("*.py"))
    names = [f"fedhealth.{room}.{path.stem}" for path in paths if path.stem != "__init__"]
    return [f"fedhealth.{room}", *names]


@pytest.mark.parametrize("room", AUDITOR_ROOMS)
def test_what_an_auditor_runs_imports_no_heavy_library(room: str, tmp_path: Path) -> None:
    loaded = imported_after(f"import {', '.join(modules_of(room))}", cwd=tmp_path)
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["study", "check", "--help"]])
def test_help_and_version_import_no_heavy_library_and_no_rich(
    arguments: list[str], tmp_path: Path
) -> None:
    code = f"from fedhealth.cli.app import run\nassert run({arguments!r}) == 0"
    loaded = imported_after(code, cwd=tmp_path)
    assert loaded.isdisjoint({*HEAVY, "rich"})


def test_help_imports_nothing_but_the_command_line_and_configuration(tmp_path: Path) -> None:
    code = "from fedhealth.cli.app import run\nassert run(['--help']) == 0"
    loaded = imported_after(code, cwd=tmp_path)
    assert loaded.isdisjoint({"numpy", "jinja2", "cryptography", "yaml", "pydantic"})


def test_the_relays_half_of_the_package_is_importable_without_torch(tmp_path: Path) -> None:
    path = ROOT / "fedhealth" / "flower" / "client_app.py"
    assert path.exists()
    loaded = imported_after("import fedhealth.flower.client_app", cwd=tmp_path)
    assert loaded.isdisjoint({"torch", "monai", "pandas", "nibabel"})


def test_models_of_records_alone_are_built_without_monai(tmp_path: Path) -> None:
    """Its import is most of what a worker's start costs beyond torch."""
    modules = ("multimodal", "logistic_fusion", "image_encoders", "classification")
    code = f"import {', '.join(f'fedhealth.models.{name}' for name in modules)}"
    loaded = imported_after(f"{code}, fedhealth.training.supervised", cwd=tmp_path)
    assert "torch" in loaded
    assert "monai" not in loaded


@pytest.mark.parametrize("name", ["strategies", "sites", "tests", "configs", "benchmarks", "docs"])
def test_folders_of_the_repository_are_not_importable(name: str, tmp_path: Path) -> None:
    """A dependency may bring a folder of that name along (Opacus brings `benchmarks`): ours it is not."""
    program = (
        f"import importlib.util; spec = importlib.util.find_spec({name!r}); "
        "print(*(spec.submodule_search_locations or [spec.origin]) if spec else [])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert str(ROOT / name) not in done.stdout.split()


def test_imports_go_down_only() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
