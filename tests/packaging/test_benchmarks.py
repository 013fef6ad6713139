"""Every benchmark can be read by a machine and be run in a short form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))
CHEAP = ("feature_cache", "simulate", "worker_training")
"""These run in the default suite; all others on demand (`pytest -m slow tests/packaging`)."""
HELP = """
import contextlib, io, json, runpy, sys
from pathlib import Path

said = {}
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    sys.path.insert(0, str(Path(script).parent))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    said[Path(script).stem] = out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def help_of() -> dict[str, str]:
    """What `--help` says of each script, all in one process: they import the same heavy libraries."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, *map(str, SCRIPTS)],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    said: dict[str, str] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_a_benchmark_takes_json_and_quick(script: Path, help_of: dict[str, str]) -> None:
    assert "--json" in help_of[script.stem]
    assert "--quick" in help_of[script.stem]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, marks=() if path.stem in CHEAP else pytest.mark.slow, id=path.stem)
        for path in SCRIPTS
    ],
)
def test_a_benchmark_runs_to_its_figures_in_the_short_form(script: Path) -> None:
    """Exit code 1 is a budget that was missed, which on a machine with other work says nothing."""
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=3500,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.returncode in {0, 1}, done.stderr[-2000:]
    assert json.loads(done.stdout)


def test_there_are_benchmarks() -> None:
    assert set(CHEAP) < {script.stem for script in SCRIPTS}
