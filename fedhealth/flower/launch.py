"""How Flower's own programs are started: command lines, environment, and files that they read.

Flower is driven through its console scripts, with its own home folder, telemetry and update check off, and
run-time installation of dependencies off. Nothing else in fedhealth writes a Flower command line.
"""

import os
import secrets
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedhealth.durable import write_atomically
from fedhealth.evidence.signing import write_private

CONNECTION: Final = "consortium"
POLL_VARIABLE: Final = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
SITE_POLL_S: Final = "0.1"  # SuperExec's default is 1 s; a relay waits for it at every message
SERVER_POLL_S: Final = "0.5"  # a ServerApp waits for it once a run
REFUSED_TASKS: Final = (  # SuperExec would start them too
    "flwr-agentapp",
    "flwr-connector",
    "flwr-model",
    "flwr-serverapp",
    "flwr-simulation",
)
STUB: Final = Path(__file__).with_name("clientapp_stub.py")
Command = list[str | Path]


def script(name: str) -> Path:
    """A console script of this very environment, never another one on PATH."""
    return Path(sys.executable).parent / name


def module(name: str, *arguments: str | Path) -> Command:
    """A Python module in a process of its own, isolated from the working directory."""
    return [sys.executable, "-I", "-m", name, *arguments]


def flower_environment(flwr_home: Path, **extra: str) -> dict[str, str]:
    """Environment of every Flower process: no telemetry, no update check, one maths thread."""
    flwr_home.mkdir(parents=True, exist_ok=True, mode=0o700)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLWR_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"))
    }
    return environment | {
        "FLWR_HOME": str(flwr_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        POLL_VARIABLE: SITE_POLL_S,
        "OMP_NUM_THREADS": "1",
        # glibc keeps freed 5 MB parts of a vector otherwise, and learns to do so: a model or more stays resident.
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "MALLOC_ARENA_MAX": "2",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **extra,
    }


def new_secret(path: Path) -> Path:
    """A fresh SuperExec secret: without it, the local Runtime API hands tasks to anybody."""
    path.unlink(missing_ok=True)
    write_private(path, secrets.token_bytes(32))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperLinkPlace:
    """Where a SuperLink listens on loopback, and the files it reads."""

    port: int
    ca_certificate: Path
    certificate: Path
    key: Path
    secret: Path

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"


def superlink(place: SuperLinkPlace) -> Command:
    """The SuperLink: loopback, TLS, node authentication, state in memory, process isolation with a secret."""
    return [
        script("flower-superlink"),
        "--ssl-ca-certfile", place.ca_certificate,
        "--ssl-certfile", place.certificate,
        "--ssl-keyfile", place.key,
        "--enable-supernode-auth",
        "--host", "127.0.0.1",
        "--port", str(place.port),
        "--isolation", "process",
        "--superexec-auth-secret-file", place.secret,
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def simulation_superlink(place: SuperLinkPlace) -> Command:
    """The same for simulated SuperNodes, which live in a run's `flwr-simulation` process and never connect."""
    return [
        *(part for part in superlink(place) if part != "--enable-supernode-auth"),
        "--simulation",
    ]


def server_superexec(place: SuperLinkPlace) -> Command:
    """The process that starts our ServerApp when a run was submitted."""
    return [
        script("flower-superexec"),
        "--runtime-api-address", place.address,
        "--root-certificates", place.ca_certificate,
        "--superexec-auth-secret-file", place.secret,
        "--parent-pid", str(os.getpid()),
    ]  # fmt: skip


def supernode(
    address: str, ca_certificate: Path, node_key: Path, port: int, secret: Path, *, fast: bool
) -> Command:
    """The SuperNode: dials out only; its local Runtime API wants the secret."""
    arguments: Command = [
        "--root-certificates", ca_certificate,
        "--auth-supernode-private-key", node_key,
        "--superlink", address,
        "--host", "127.0.0.1",
        "--port", str(port),
        "--isolation", "process",
        "--superexec-auth-secret-file", secret,
        "--max-retries", "1",
    ]  # fmt: skip
    return module("fedhealth.flower.supernode_process", *(["--eager"] if fast else []), *arguments)


def site_superexec(port: int, secret: Path) -> Command:
    """The process that starts a relay for every message."""
    return [
        script("flower-superexec"),
        "--insecure",  # loopback inside one host; the secret authenticates
        "--runtime-api-address", f"127.0.0.1:{port}",
        "--superexec-auth-secret-file", secret,
        "--parent-pid", str(os.getpid()),
    ]  # fmt: skip


def write_site_commands(folder: Path, warm_socket: Path | None) -> Path:
    """What SuperExec finds first on a site's PATH: our `flwr-clientapp`, and refusals of all other tasks.

    Args:
        folder: where to write.
        warm_socket: hand over to the warm process there; None: a new process for every message.

    Returns:
        The folder.
    """
    for name in REFUSED_TASKS:
        write_atomically(folder / name, b"#!/bin/sh\nexit 1\n", mode=0o700)
    parts = [sys.executable, "-I", "-m", "fedhealth.flower.clientapp_process"]
    if warm_socket is not None:
        parts = [sys.executable, "-I", "-S", str(STUB), str(warm_socket)]
    line = shlex.join(parts)
    write_atomically(
        folder / "flwr-clientapp", f'#!/bin/sh\nexec {line} "$@"\n'.encode(), mode=0o700
    )
    return folder


def write_serverapp_wrapper(folder: Path, log_dir: Path) -> Path:
    """Put a `flwr-serverapp` into `folder` that keeps the app's output and ends with SuperExec.

    Flower throws the output of a ServerApp away; the round loop's log and tracebacks are worth keeping.
    """
    line = shlex.join([sys.executable, "-I", "-m", "fedhealth.flower.serverapp_process"])
    log_path = shlex.quote(str(log_dir / "serverapp.log"))
    text = f'#!/bin/sh\nexec {line} "$@" >>{log_path} 2>&1\n'
    write_atomically(folder / "flwr-serverapp", text.encode(), mode=0o700)
    return folder


def write_simulation_commands(folder: Path, log_dir: Path, workdir: Path) -> Path:
    """Put our `flwr-simulation` into `folder`, and refusals of all other tasks.

    Args:
        folder: what SuperExec is given first on its PATH.
        log_dir: output goes to `simulation.log` there; Flower would throw it away.
        workdir: where the process and what Ray starts run; Ray puts it on the path of its workers.
    """
    for name in (*REFUSED_TASKS, "flwr-clientapp"):
        write_atomically(folder / name, b"#!/bin/sh\nexit 1\n", mode=0o700)
    line = shlex.join([sys.executable, "-I", "-m", "fedhealth.flower.simulation_process"])
    log_path = shlex.quote(str(log_dir / "simulation.log"))
    text = (
        f'#!/bin/sh\ncd {shlex.quote(str(workdir))} || exit 1\nexec {line} "$@" >>{log_path} 2>&1\n'
    )
    write_atomically(folder / "flwr-simulation", text.encode(), mode=0o700)
    return folder


def write_connection(flwr_home: Path, address: str, ca_certificate: Path) -> None:
    """The `config.toml` with which `flwr` finds our SuperLink."""
    text = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "{address}"\nroot-certificates = "{ca_certificate}"\n'
    )
    write_atomically(flwr_home / "config.toml", text.encode())


SERVER_APP: Final = "fedhealth.flower.server_app:app"
CLIENT_APP: Final = "fedhealth.flower.client_app:app"


def write_thin_app(
    folder: Path, flwr_version: str, *, server_app: str = SERVER_APP, client_app: str = CLIENT_APP
) -> Path:
    """The Flower app that is shipped: one file, whose components are the *installed* package."""
    text = f"""[project]
name = "fedhealth-relay"
version = "1.0.0"
description = "Points at the installed fedhealth; holds no code."
license = "Apache-2.0"
dependencies = ["flwr=={flwr_version}"]

[tool.flwr.app]
publisher = "fedhealth"

[tool.flwr.app.components]
serverapp = "{server_app}"
clientapp = "{client_app}"

[tool.flwr.app.config]
run-name = ""
"""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for stale in folder.iterdir():
        stale.unlink()
    write_atomically(folder / "pyproject.toml", text.encode())
    return folder
