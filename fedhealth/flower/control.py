"""How a supervisor asks its SuperLink: whether it is up, and Flower's own command line. For servers and simulations."""

import json
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from fedhealth.errors import TransportError
from fedhealth.flower import launch
from fedhealth.flower.flwr_commands import documents
from fedhealth.supervision.children import Child
from fedhealth.supervision.die_with_parent import die_with_parent

START_S: Final = 90.0
FLWR_S: Final = 60.0
FLWR_EACH_S: Final = 2.0


def wait_healthy(
    url: str, child: Child, *, ca_certificate: Path, stopping: threading.Event
) -> None:
    """Wait until a child answers, or until `stopping`.

    Raises:
        TransportError: FH-SERVER-001 it ended, or did not answer in time.
    """
    context = ssl.create_default_context(cafile=str(ca_certificate))
    deadline = time.monotonic() + START_S
    with httpx.Client(verify=context, trust_env=False) as client:
        while not stopping.is_set():
            if child.exit_code() is not None or time.monotonic() > deadline:
                raise TransportError(
                    "FH-SERVER-001",
                    f"{child.name} did not start.",
                    why="Sites cannot reach the study without it.",
                    fix=f"Look at {child.log_path}.",
                )
            try:
                if client.get(url, timeout=2).is_success:
                    return
            except httpx.HTTPError:
                stopping.wait(0.1)


def flwr(
    *commands: Sequence[str], environment: Mapping[str, str], logs: Path
) -> list[dict[str, Any]]:
    """Commands of Flower's command line in one process, and what each of them answered.

    Raises:
        TransportError: FH-SERVER-002 one failed.
    """
    if not commands:
        return []
    supervisor = os.getpid()
    done = subprocess.run(
        launch.module("fedhealth.flower.flwr_commands"),
        input=json.dumps(commands).encode(),
        env=dict(environment),
        capture_output=True,
        timeout=FLWR_S + FLWR_EACH_S * len(commands),
        check=False,
        preexec_fn=lambda: die_with_parent(supervisor),
    )
    answers = documents(done.stdout.decode(errors="replace"))
    refused = [answer for answer in answers if not answer.get("success")]
    if done.returncode != 0 or refused or len(answers) != len(commands):
        detail = str(refused[0].get("error-message", ""))[:300] if refused else ""
        raise TransportError(
            "FH-SERVER-002",
            f"`flwr {commands[0][0]} {commands[0][1]}` failed. {detail}",
            why="The SuperLink did not accept what the server asked for.",
            fix=f"Look at {logs / 'superlink.log'}.",
        )
    return answers
