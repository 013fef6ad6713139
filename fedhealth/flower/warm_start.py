"""A fork server for `flwr-clientapp`: one process that has imported Flower, and forks for each message.

Flower starts a new Python process for every message, which costs about two seconds of CPU in imports. With
`fast_transport` on, a `flwr-clientapp` found first on PATH hands its arguments to this server
(docs/adr/0007). Run as `python -m fedhealth.flower.warm_start SOCKET`.
"""

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedhealth.supervision.die_with_parent import die_with_parent

MAX_REQUEST_BYTES: Final = 65_536


def main() -> None:
    """Import once, then fork for each request until the supervisor ends."""
    die_with_parent()
    path = Path(sys.argv[1])
    from flwr.supernode.cli import flwr_clientapp

    from fedhealth.flower.clientapp_process import pin_relay
    from fedhealth.flower.prompt_pulls import pull_promptly

    pull_promptly()
    pin_relay()  # imports the relay, before the forks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    listener.bind(str(path))
    os.umask(previous)
    listener.listen(8)
    while True:
        connection, _ = listener.accept()
        with connection:
            _serve(connection, listener, flwr_clientapp)


def _serve(connection: socket.socket, listener: socket.socket, run: Callable[[], None]) -> None:
    request = b""
    while not request.endswith(b"\n") and len(request) < MAX_REQUEST_BYTES:
        part = connection.recv(MAX_REQUEST_BYTES)
        if not part:
            return
        request += part
    arguments = json.loads(request)
    server = os.getpid()
    if os.fork() == 0:
        _become_clientapp(arguments, listener, run, server)
    connection.sendall(b"forked\n")


def _become_clientapp(
    arguments: list[str], listener: socket.socket, run: Callable[[], None], server: int
) -> None:
    """The child: Flower's own entry point, with the arguments that SuperExec gave. Never returns."""
    status = 1
    try:
        die_with_parent(server)
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = ["flwr-clientapp", *arguments]
        run()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - a fork must never return into the server's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
