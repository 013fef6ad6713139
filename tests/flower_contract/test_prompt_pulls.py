"""What `fedhealth.flower.prompt_pulls` relies on in Flower 1.41."""

import inspect
import subprocess
import sys

from flwr.supercore.inflatable import inflatable_utils
from flwr.superlink.grid import http_grid
from flwr.supernode.runtime import run_clientapp

from fedhealth.flower.prompt_pulls import CHANGED, FIRST_WAIT_S, LONGEST_WAIT_S, TRIES


def test_waits_are_keyword_defaults_that_no_caller_sets() -> None:
    for function in (
        inflatable_utils.pull_objects,
        inflatable_utils.pull_and_inflate_object_from_tree,
    ):
        assert CHANGED.keys() <= (function.__kwdefaults__ or {}).keys()
    for caller in (http_grid, run_clientapp):
        source = inspect.getsource(caller)
        assert "pull_objects(" in source or "pull_and_inflate_object_from_tree(" in source
        assert not any(name in source for name in CHANGED)


def test_patience_in_all_stays_flowers_own() -> None:
    assert "max_time" not in CHANGED
    defaults = inflatable_utils.pull_objects.__kwdefaults__ or {}
    assert defaults["max_time"] >= 3600


def test_a_part_that_comes_late_is_fetched_at_once() -> None:
    """In a process of its own, since the change is for the whole process."""
    code = """
import time
from flwr.supercore.inflatable import inflatable_utils as flower
from fedhealth.flower.prompt_pulls import pull_promptly

pull_promptly()
tries = []
def pull(name):
    tries.append(time.monotonic())
    if len(tries) < 4:
        raise flower.ObjectUnavailableError(name)
    return b"part"
assert flower.pull_objects(["a"], pull) == {"a": b"part"}
waits = [after - before for before, after in zip(tries, tries[1:])]
defaults = flower.pull_objects.__kwdefaults__
print(len(waits), defaults["initial_backoff"], defaults["backoff_cap"], defaults["max_tries_per_object"])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["3", str(FIRST_WAIT_S), str(LONGEST_WAIT_S), str(TRIES)]
