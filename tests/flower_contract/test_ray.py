"""Behaviour of Flower 1.41's simulation and of the Ray it pins that we rely on: an upgrade must fail here."""

import importlib.util
import inspect
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.server.superlink.fleet.vce import vce_api
from flwr.simulation import app as simulation_app
from flwr.supercore import constant

from fedhealth.flower import launch

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason='Ray is not installed: pip install ".[ray]" -c constraints.txt, or `make ray`',
)


def test_a_simulated_run_is_one_task_by_the_name_that_we_put_on_the_path(tmp_path: Path) -> None:
    assert constant.TASK_TYPE_TO_COMMAND[constant.TaskType.SIMULATION] == "flwr-simulation"
    folder = launch.write_simulation_commands(tmp_path / "bin", tmp_path, tmp_path)
    commands = set(constant.TASK_TYPE_TO_COMMAND.values())
    assert {path.name for path in folder.iterdir()} == commands
    refusing = [path for path in folder.iterdir() if path.read_text() == "#!/bin/sh\nexit 1\n"]
    assert {path.name for path in refusing} == commands - {"flwr-simulation"}


def test_the_settings_that_flwr_run_is_given_exist() -> None:
    names = {field.name for field in SimulationConfig.DESCRIPTOR.fields}
    assert {"num_supernodes", "client_resources_num_cpus", "client_resources_num_gpus"} <= names
    assert callable(simulation_app.flwr_simulation)


def test_flower_looks_for_messages_ten_times_a_second_and_takes_any_free_process() -> None:
    assert "f_stop.wait(0.1)" in inspect.getsource(vce_api.add_messages_to_queue)
    assert "processing_started_at" in inspect.getsource(vce_api.worker)


def test_the_constraint_is_the_version_that_flower_pins() -> None:
    pinned = [
        need.partition("==")[2].partition(" ")[0]
        for need in requires("flwr") or ()
        if need.startswith("ray==") and "< '3.13'" in need
    ]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [f"ray=={found}" for found in pinned] == [ln for ln in lines if ln.startswith("ray==")]


@needs_ray
def test_flower_asks_ray_for_no_address_so_that_the_environment_names_it() -> None:
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

    source = inspect.getsource(RayBackend.init_ray)
    assert "ray.init(" in source
    assert "address" not in source
    assert "num_cpus" not in source, "Ray refuses it where it is joined"


@needs_ray
def test_a_process_of_ray_is_given_the_app_anew_with_every_message() -> None:
    """So that what it remembers has to be in the module (`ray_hospital._remembered`), not in the app."""
    from flwr.simulation.ray_transport.ray_actor import VirtualClientEngineActor

    assert "client_app_fn()" in inspect.getsource(VirtualClientEngineActor.run)


@needs_ray
def test_names_of_rays_environment() -> None:
    from ray._private import ray_constants, services

    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    source = inspect.getsource(services.get_node_ip_address)
    assert "if not ray_constants.ENABLE_RAY_CLUSTER:" in source
    assert "return get_localhost_ip()" in source
    assert version("ray") in (ROOT / "constraints.txt").read_text()
