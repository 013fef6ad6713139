"""Private behaviour of Flower 1.41 that our transport relies on or guards against: an upgrade must fail here."""

import inspect
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from flwr.common import constant as common_constant
from flwr.server.superlink.linkstate import sql_linkstate
from flwr.supercore import constant
from flwr.supercore.error.base import ApiErrorCode
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.superlink.routers.fleet import node_auth
from flwr.supernode import node_auth_http_interceptor, start_client_internal

from fedhealth.flower import launch, run_site, supernode_process
from fedhealth.server import gateway


def test_the_pinned_version() -> None:
    assert version("flwr").startswith("1.41.")


def test_a_supernode_sleeps_three_seconds_when_idle_and_half_a_second_for_a_reply() -> None:
    """`supernode_process.EagerTime` replaces the module's `time` and tells the two apart by their length."""
    source = inspect.getsource(start_client_internal)
    lengths = [float(found) for found in re.findall(r"time\.sleep\(([0-9.]+)\)", source)]
    assert sorted(lengths) == [0.5, 0.5, 3.0]
    assert max(lengths) == supernode_process.IDLE_SLEEP_S
    assert vars(start_client_internal)["time"].__name__ == "time"


def test_superexec_starts_the_clientapp_by_its_bare_name() -> None:
    """So that `launch.write_site_commands` on PATH stands for it, and refuses every other task."""
    others = set(constant.TASK_TYPE_TO_COMMAND.values()) - {"flwr-clientapp"}
    assert others <= set(launch.REFUSED_TASKS)
    assert constant.TASK_TYPE_TO_COMMAND[constant.TaskType.CLIENT_APP] == "flwr-clientapp"
    assert constant.TASK_TYPE_TO_COMMAND[constant.TaskType.SERVER_APP] == "flwr-serverapp"
    source = inspect.getsource(SubprocessExecutor.launch)
    assert "TASK_TYPE_TO_COMMAND[spec.task_type]" in source
    assert "subprocess.Popen(" in source
    assert "env=" not in source, "the environment, PATH and our socket's name, is inherited"


def test_the_poll_interval_of_superexec_is_an_environment_variable() -> None:
    assert run_superexec._TASK_POLL_INTERVAL_ENV == launch.POLL_VARIABLE
    least = run_superexec._MIN_TASK_POLL_INTERVAL_SECONDS
    site, server = float(launch.SITE_POLL_S), float(launch.SERVER_POLL_S)
    assert least <= site < server < run_superexec._DEFAULT_TASK_POLL_INTERVAL_SECONDS


def test_names_of_the_environment() -> None:
    assert constant.FLWR_DISABLE_UPDATE_CHECK == "FLWR_DISABLE_UPDATE_CHECK"
    name = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
    assert name == common_constant.FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION
    made = launch.flower_environment(Path("/nonexistent").with_name("tmp"))
    assert made[name] == "1"


def test_a_node_names_itself_by_its_public_key_in_base64_pem() -> None:
    """The gateway counts bytes by this header, and names refused keys by its digest."""
    assert constant.FLEET_HTTP_PUBLIC_KEY_HEADER == gateway.PUBLIC_KEY_HEADER
    assert "b64encode" in inspect.getsource(node_auth_http_interceptor)
    pem = inspect.getsource(sys.modules["flwr.supercore.primitives.asymmetric"].public_key_to_bytes)
    assert "Encoding.PEM" in pem
    assert "SubjectPublicKeyInfo" in pem
    assert constant.FLEET_HTTP_SIGNATURE_HEADER.startswith("flwr-"), "the gateway passes flwr-* on"
    assert common_constant.TIMESTAMP_HEADER.startswith("flwr-")


def test_a_node_signs_the_time_only() -> None:
    """Not the body: what is in it is believed because of our own signatures."""
    source = inspect.getsource(node_auth.authenticate_node)
    assert 'timestamp.encode("ascii"), signature' in source
    assert "get_node_id_by_public_key" in source


@pytest.mark.parametrize(
    ("code", "number", "text"),
    [
        (
            ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED,
            2001,
            "SuperNode authentication is enabled. All SuperNodes must be registered via the CLI.",
        ),
        (ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, 2004, "Failed to activate SuperNode."),
    ],
)
def test_numbers_and_texts_of_the_superlinks_refusals(
    code: ApiErrorCode, number: int, text: str
) -> None:
    assert code == number
    said = API_ERROR_MAP[code]
    assert said.public_message == text
    assert said.http_status_code == 412
    is_waiting = run_site._STILL_COUNTED.search(f"[code: {number}] {text}")
    assert bool(is_waiting) is (number == 2004)
    assert not run_site._REFUSED.search(f"[code: {number}] {text}")


def test_a_refused_signature_is_401() -> None:
    source = inspect.getsource(node_auth.authenticate_node)
    assert "HTTP_401_UNAUTHORIZED" in source


def test_the_gateways_refusal_is_told_by_httpx_as_a_site_looks_for_it() -> None:
    request = httpx.Request("POST", "https://x/v1/fleet/activate-node")
    answer = httpx.Response(gateway.NOT_ADMITTED_STATUS, request=request)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        answer.raise_for_status()
    assert run_site._REFUSED.search(str(refused.value))


def test_a_reply_is_taken_from_the_node_that_was_asked_only() -> None:
    """So that one site cannot answer a message that went to another."""
    source = inspect.getsource(sql_linkstate.SqlLinkState.store_message_res)
    assert "!= res_metadata.src_node_id" in source


def flags(name: str) -> str:
    command = [str(launch.script(name)), "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def options_of(command: launch.Command) -> list[str]:
    return [part for part in map(str, command) if part.startswith("--") and part != "--eager"]


def test_every_flag_that_we_give_exists(tmp_path: Path) -> None:
    place = launch.SuperLinkPlace(
        port=1,
        ca_certificate=tmp_path,
        certificate=tmp_path,
        key=tmp_path,
        secret=tmp_path,
    )
    node = launch.supernode("h:1", tmp_path, tmp_path, 1, tmp_path, fast=True)
    superexec = [*launch.server_superexec(place), *launch.site_superexec(1, tmp_path)]
    for name, command in (
        ("flower-superlink", launch.superlink(place)),
        ("flower-supernode", node),
        ("flower-superexec", superexec),
    ):
        known = flags(name)
        for option in options_of(command):
            assert re.search(rf"{option}\b", known), (name, option)


def test_console_scripts_are_in_this_environment() -> None:
    for name in (
        "flwr",
        "flower-superlink",
        "flower-supernode",
        "flower-superexec",
        "flwr-clientapp",
    ):
        assert shutil.which(str(launch.script(name))), name
