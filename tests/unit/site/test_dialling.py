"""Whether a server answers is asked over TLS with the consortium's own authority, and believed of nothing else."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fedhealth.server.home import ServerHome
from fedhealth.site.dialling import server_answers
from fedhealth.supervision.ports import free_port


def handler(status: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    return Handler


@contextmanager
def serving(home: ServerHome, status: int) -> Iterator[str]:
    """A server with the consortium's own certificate on a port of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(status)) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home.keys / "server.crt", home.keys / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "answers"), [(200, True), (403, True), (404, True), (502, False), (503, False)]
)
def test_a_refusal_is_an_answer_and_a_proxy_without_its_server_is_none(
    new_consortium: Callable[..., Any], status: int, answers: bool
) -> None:
    home = new_consortium().server
    with serving(home, status) as address:
        assert server_answers(address, home.keys / "ca.crt") is answers


def test_a_server_of_another_authority_is_no_answer(new_consortium: Callable[..., Any]) -> None:
    ours, theirs = (new_consortium(name=name).server for name in ("ours", "theirs"))
    with serving(theirs, 200) as address:
        assert server_answers(address, theirs.keys / "ca.crt")
        assert not server_answers(address, ours.keys / "ca.crt")


def test_nobody_there_and_one_who_keeps_silent_are_no_answer(
    new_consortium: Callable[..., Any],
) -> None:
    authority = new_consortium().server.keys / "ca.crt"
    assert not server_answers(f"127.0.0.1:{free_port()}", authority)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert not server_answers(address, authority, timeout_s=0.1)
