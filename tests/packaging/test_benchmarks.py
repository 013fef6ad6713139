"""Every benchmark can be read by a machine and be run in a short form."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_a_benchmark_takes_json_and_quick(script: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "--json" in done.stdout
    assert "--quick" in done.stdout


def test_there_are_benchmarks() -> None:
    assert SCRIPTS
