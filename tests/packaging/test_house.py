"""The two commands of the README, and what continuous integration runs."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def dry_run(target: str) -> str:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("target", ["demo", "test", "lint", "types"])
def test_every_target_sets_up_the_environment_first(target: str) -> None:
    lines = dry_run(target).splitlines()
    install = next(i for i, line in enumerate(lines) if "pip install" in line)
    used = next(i for i, line in enumerate(lines) if ".venv/bin/" in line and "python" not in line)
    assert install < used
    assert "-c constraints.txt" in lines[install]


def test_make_test_runs_style_layers_types_and_tests() -> None:
    text = dry_run("test")
    assert all(
        tool in text for tool in ("ruff check", "ruff format", "lint-imports", "mypy", "pytest")
    )


def test_the_readme_names_exactly_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert re.findall(r"```\n(make .*?)```", text, re.DOTALL) == ["make demo\nmake test\n"]


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "exec make test" in script.read_text("utf-8")


def test_ray_is_installed_for_the_tests_of_continuous_integration_only() -> None:
    assert "\nmake .venv/.installed-ray || echo " in (ROOT / ".ci" / "run").read_text("utf-8")
    assert '".[ray]"' in dry_run("ray")
    assert not any("ray" in dry_run(target) for target in ("demo", "test"))


def test_the_installation_needs_nothing_but_python_and_make() -> None:
    text = dry_run("test")
    assert not re.search(r"\b(uv|conda|poetry|docker|sudo)\b", text)
