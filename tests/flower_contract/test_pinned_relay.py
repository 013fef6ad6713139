"""The relay is the installed one, whatever bundle a server ships: the private names that this rests on."""

import subprocess
import sys

CHECK = """
import inspect
from flwr.supernode.runtime import run_clientapp
from fedhealth.flower.client_app import app
from fedhealth.flower.clientapp_process import REPLACED, pin_relay

source = inspect.getsource(run_clientapp.run_clientapp)
assert all(f"{name}(" in source for name in REPLACED), "Flower calls them by these names"
pin_relay()
load = run_clientapp.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
assert load("publisher/evil", "1.0.0", "0" * 64) is app
assert run_clientapp.install_from_fab(b"not even a bundle", skip_prompt=True) is None
print("pinned")
"""


def test_flower_s_runner_gets_the_installed_relay_and_unpacks_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHECK], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "pinned\n", done.stderr
