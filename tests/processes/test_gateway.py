"""What the one port of a running server answers, and what it does not."""

import base64
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from fedhealth.durable import write_atomically
from fedhealth.server.roster import read_roster
from fedhealth.site.enrolment import SiteSettings, init_site, node_key
from fedhealth.site.home import SiteHome

from .conftest import Federation, factory, processes_of, study_content, wait, wait_until

MEGABYTE = 1_000_000
TIMEOUT_S = 3
PROTOBUF = {"content-type": "application/protobuf"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server that waits for sites, with small limits."""
    for make in factory(tmp_path_factory.mktemp("gateway")):
        made = make(study_content({}, cohort_wait_s=600), num_sites=2)
        settings = yaml.safe_load(made.server.config.read_text())
        settings |= {"max_body_mb": 1, "request_timeout_s": TIMEOUT_S}
        write_atomically(made.server.config, yaml.safe_dump(settings).encode())
        server = made.start_server()
        wait_listening(made)
        yield made
        server.send_signal(signal.SIGTERM)
        assert wait(server, 40) == 0


def wait_listening(federation: Federation) -> None:
    wait_until(lambda: "listening" in federation.output("server"), 90, "the server listens")


@pytest.fixture
def client(federation: Federation) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=str(federation.server.keys / "ca.crt"))
    url = f"https://127.0.0.1:{port_of(federation)}"
    with httpx.Client(base_url=url, verify=context, trust_env=False, timeout=30) as made:
        yield made


def port_of(federation: Federation) -> int:
    return federation.server.require()[1].port


def dial(federation: Federation) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(federation.server.keys / "ca.crt"))
    plain = socket.create_connection(("127.0.0.1", port_of(federation)), timeout=40)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def status_of(federation: Federation, method: str, target: str) -> int:
    """The status of a request whose target reaches the gateway byte for byte."""
    with dial(federation) as connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        return int(connection.recv(4096).split(b" ", 2)[1])


def admitted_key_header(federation: Federation) -> dict[str, str]:
    """What an admitted site's node claims, without its signature."""
    line = read_roster(federation.server.roster).admitted[0]
    public = load_ssh_public_key(line.node_key.encode())
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {"flwr-public-key": base64.b64encode(pem).decode()}


def events(federation: Federation) -> list[dict[str, object]]:
    return [json.loads(x) for x in federation.server.gateway_events.read_text().splitlines()]


def test_health_is_answered(client: httpx.Client) -> None:
    answer = client.get("/health")
    assert (answer.status_code, answer.text) == (200, "ok")


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/redoc",
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-task-input",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/%2E%2E%2Fcontrol%2Fstart-run",
        "/v1/fleet/..%2fruntime/acquire-task",
        "/v1/fleet/x/../../control/start-run",
        "/v1//control/start-run",
        "//v1/control/start-run",
        "//v1/fleet/activate-node",
        "/v1/fleet//activate-node",
        "/v1/fleet/activate-node/",
        "/v1/fleet/activate-node?redirect=/v1/control/start-run",
        "/v1/fleet/activate-node%3fx=1",
        "/v1/fleet/activate-node%00",
        "/v1/fleet/activate-node%0d%0ax:%20y",
        "/v1/fleet/activate-node;/../../control/start-run",
        "/v1/fleet/.",
        "/V1/FLEET/activate-node",
        "/v1\\control\\start-run",
        "/health/../v1/control/start-run",
        "/health",
        "http://127.0.0.1/v1/control/start-run",
    ],
)
def test_every_other_target_is_forbidden(federation: Federation, target: str) -> None:
    assert status_of(federation, "POST", target) == 403


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_fleet_calls_are_posts_only(federation: Federation, method: str) -> None:
    assert status_of(federation, method, "/v1/fleet/activate-node") == 403
    assert status_of(federation, method, "/v1/control/start-run") == 403


def test_no_answer_redirects(client: httpx.Client) -> None:
    for path in ("/v1/fleet/no-such-call", "/v1/fleet/activate-node", "/docs", "/health/"):
        answer = client.post(path)
        assert not answer.is_redirect
        assert "location" not in answer.headers


def flwr(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = [str(Path(sys.executable).parent / "flwr"), *arguments, "--format", "json"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_flowers_own_command_line_is_refused_at_the_gateway(
    federation: Federation, tmp_path: Path
) -> None:
    """The same commands work on the SuperLink's own port, so it is the gateway that refuses them."""
    inside = federation.server.flower / "home"
    config = (inside / "config.toml").read_text()
    direct = next(line for line in config.splitlines() if line.startswith("address"))
    outside = tmp_path / "flwr-home"
    outside.mkdir()
    gateway = f'address = "127.0.0.1:{port_of(federation)}"'
    (outside / "config.toml").write_text(config.replace(direct, gateway))
    app = federation.server.flower / "app"
    before = json.loads(flwr(inside, "ls", "consortium").stdout)
    assert before["success"]
    for arguments in (
        ("run", str(app), "consortium"),
        ("ls", "consortium"),
        ("supernode", "list", "consortium"),
    ):
        refused = flwr(outside, *arguments)
        assert '"success": true' not in refused.stdout, arguments
        assert "403" in refused.stdout + refused.stderr, refused.stdout + refused.stderr
    after = json.loads(flwr(inside, "ls", "consortium").stdout)
    assert len(after["runs"]) == len(before["runs"])


def test_a_body_above_the_cap_is_refused_when_it_is_announced(
    federation: Federation, client: httpx.Client
) -> None:
    for size, is_refused in ((MEGABYTE + 1, True), (MEGABYTE - 1, False)):
        answer = client.post(
            "/v1/fleet/push-object", content=bytes(size), headers=admitted_key_header(federation)
        )
        assert (answer.status_code == 413) is is_refused


def test_a_body_above_the_cap_is_refused_when_its_length_is_not_announced(
    federation: Federation, client: httpx.Client
) -> None:
    for chunks, is_refused in ((11, True), (9, False)):
        body = (bytes(100_000) for _ in range(chunks))
        answer = client.post(
            "/v1/fleet/push-object", content=body, headers=admitted_key_header(federation)
        )
        assert (answer.status_code == 413) is is_refused


def test_the_body_of_a_key_that_is_not_admitted_is_not_even_read(federation: Federation) -> None:
    with dial(federation) as connection:
        head = "POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 410 " in connection.recv(4096).splitlines()[0]


def test_a_key_header_that_comes_twice_passes_as_it_was_checked(
    federation: Federation, client: httpx.Client
) -> None:
    """Otherwise one key could be checked here, and another one authenticated behind."""
    key = generate_private_key(SECP384R1()).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    stranger = ("flwr-public-key", base64.b64encode(pem).decode())
    admitted = ("flwr-public-key", admitted_key_header(federation)["flwr-public-key"])
    media = ("content-type", PROTOBUF["content-type"])
    for headers, status in (([stranger, admitted, media], 410), ([admitted, stranger, media], 401)):
        assert client.post("/v1/fleet/activate-node", headers=headers).status_code == status


def test_a_slow_body_is_cut_off(federation: Federation) -> None:
    with dial(federation) as connection:
        head = "POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        key = admitted_key_header(federation)["flwr-public-key"]
        connection.sendall(f"{head}flwr-public-key: {key}\r\n\r\nx".encode())
        answer = connection.recv(4096)
    assert b" 504 " in answer.splitlines()[0]
    assert "timeout" in {event["event"] for event in events(federation)}


def test_slow_headers_are_cut_off(federation: Federation) -> None:
    """Byte by byte, so that the connection is never idle."""
    with dial(federation) as connection:
        connection.settimeout(0.5)
        connection.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\n")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                connection.sendall(b"a: b\r\n")
                if connection.recv(4096) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    pytest.fail("the connection stayed open")


def test_an_unknown_key_is_told_to_the_coordinator_by_its_digest(
    federation: Federation, client: httpx.Client
) -> None:
    key = generate_private_key(SECP384R1()).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    answer = client.post(
        "/v1/fleet/activate-node",
        headers=PROTOBUF | {"flwr-public-key": base64.b64encode(pem).decode()},
    )
    assert answer.status_code == 410
    digest = hashlib.sha256(pem).hexdigest()
    said = next(event for event in events(federation) if event["node_key_id"] == digest)
    assert (said["event"], said["site_id"], said["state"]) == ("site_not_admitted", None, "unknown")
    wait_until(lambda: digest[:16] in federation.output("server"), 20, "the server tells")


def test_a_site_that_is_not_admitted_is_refused_with_the_cause_on_both_sides(
    federation: Federation, tmp_path: Path
) -> None:
    stranger = SiteHome(tmp_path / "stranger")
    settings = SiteSettings(
        site_id="stranger-9",
        package="synthetic",
        package_options={},
        data_dir=tmp_path / "data",
        train_size=10,
    )
    init_site(stranger, federation.server.invitation, settings)
    # Its own admission is missing, so it borrows another site's: only the node key tells who it is.
    admission = federation.sites["hospital-1"].study("scripted").admission
    stranger.study("scripted").admission.write_bytes(admission.read_bytes())
    out = federation.root / "stranger-9.out"
    start = ("site", "start", "--home", str(stranger.root))
    assert wait(federation.command(*start, out=out.name), 90) == 7
    assert "FH-IDENTITY-020" in out.read_text()
    public = node_key(stranger).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(pem).hexdigest()
    wait_until(lambda: digest[:16] in federation.output("server"), 10, "the server tells")
    assert processes_of(stranger.root) == {}


def test_an_admitted_key_without_its_signature_gets_nothing(
    federation: Federation, client: httpx.Client
) -> None:
    for call in ("activate-node", "pull-messages", "push-messages", "send-node-heartbeat"):
        answer = client.post(
            f"/v1/fleet/{call}", headers=PROTOBUF | admitted_key_header(federation)
        )
        assert answer.status_code == 401, call


def test_events_cannot_fill_the_disk(federation: Federation, client: httpx.Client) -> None:
    for _ in range(80):
        client.post("/v1/fleet/activate-node", headers=PROTOBUF)
    assert len(events(federation)) <= 120, "sixty a minute; this test takes less than two"
