"""Command lines, environment and files with which Flower's own programs are started."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedhealth.flower import launch


@pytest.fixture
def place(tmp_path: Path) -> launch.SuperLinkPlace:
    names = ("ca.crt", "server.crt", "server.key", "secret")
    ca, certificate, key, secret = (tmp_path / name for name in names)
    return launch.SuperLinkPlace(
        port=4711,
        ca_certificate=ca,
        certificate=certificate,
        key=key,
        secret=secret,
    )


def test_the_superlink_is_on_loopback_with_tls_node_authentication_and_a_secret(
    place: launch.SuperLinkPlace,
) -> None:
    command = [str(part) for part in launch.superlink(place)]
    pairs = dict(itertools.pairwise(command))
    assert pairs["--host"] == "127.0.0.1"
    assert pairs["--isolation"] == "process"
    assert pairs["--superexec-auth-secret-file"] == str(place.secret)
    assert "--enable-supernode-auth" in command
    assert "--disable-runtime-dependency-installation" in command
    assert "--insecure" not in command
    assert command[0] == str(Path(sys.executable).parent / "flower-superlink")


@pytest.mark.parametrize("fast", [True, False])
def test_a_supernode_checks_the_servers_certificate_and_listens_on_loopback(
    tmp_path: Path, fast: bool
) -> None:
    command = [
        str(part)
        for part in launch.supernode(
            "host:1", tmp_path / "ca", tmp_path / "key", 5, tmp_path / "secret", fast=fast
        )
    ]
    pairs = dict(itertools.pairwise(command))
    assert pairs["--root-certificates"] == str(tmp_path / "ca")
    assert pairs["--host"] == "127.0.0.1"
    assert pairs["--isolation"] == "process"
    assert pairs["--superexec-auth-secret-file"] == str(tmp_path / "secret")
    assert "--insecure" not in command
    assert "--allow-runtime-dependency-installation" not in command
    assert ("--eager" in command) is fast


def test_flower_processes_phone_nobody_and_inherit_no_flower_or_python_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_INTERNAL_GRPC_CONTROL_API", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    made = launch.flower_environment(tmp_path / "home", MORE="x")
    assert made["FLWR_TELEMETRY_ENABLED"] == "0"
    assert made["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert made["FLWR_HOME"] == str(tmp_path / "home")
    assert made["MORE"] == "x"
    assert "FLWR_INTERNAL_GRPC_CONTROL_API" not in made
    assert "PYTHONPATH" not in made
    assert made["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_a_secret_is_new_each_time_and_private(tmp_path: Path) -> None:
    path = tmp_path / "run" / "secret"
    first = launch.new_secret(path).read_bytes()
    second = launch.new_secret(path).read_bytes()
    assert len(first) == len(second) == 32
    assert first != second
    assert path.stat().st_mode & 0o777 == 0o600


def test_paths_with_shell_characters_stay_paths(tmp_path: Path) -> None:
    name = "a 'b\"$(touch x);&"  # and short: what a socket's path may be is limited
    folder = launch.write_site_commands(tmp_path / name, tmp_path / name / "s")
    stub = folder / "flwr-clientapp"
    assert stub.stat().st_mode & 0o777 == 0o700
    done = subprocess.run([stub, "--token", "x"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1, "nobody listens"
    assert b"FileNotFoundError" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    logs = tmp_path / name / "logs"
    logs.mkdir()
    wrapper = launch.write_serverapp_wrapper(tmp_path / name, logs) / "flwr-serverapp"
    subprocess.run([wrapper, "--help"], cwd=tmp_path, check=True, timeout=60)
    assert "--token" in (logs / "serverapp.log").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_every_other_task_is_refused_at_a_site(tmp_path: Path) -> None:
    folder = launch.write_site_commands(tmp_path, None)
    for name in launch.REFUSED_TASKS:
        assert subprocess.run([folder / name], check=False).returncode == 1


def test_a_module_runs_isolated_from_folder_and_environment(tmp_path: Path) -> None:
    (tmp_path / "fedhealth.py").write_text("raise SystemExit('shadowed')")
    command = [str(part) for part in launch.module("fedhealth", "--help")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
