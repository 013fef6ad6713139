"""TCP ports: pick a free one, or refuse a taken one with words."""

import socket

from fedhealth.errors import TransportError


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def require_free_port(host: str, port: int) -> None:
    """Check that a configured port can be bound.

    Raises:
        TransportError: FH-PORT-001 it is in use or not allowed.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TransportError(
                "FH-PORT-001",
                f"cannot listen on {host}:{port} ({error.strerror}).",
                why="Sites dial this address; it is written in their invitation.",
                fix=f"Stop what uses the port (`ss -ltnp 'sport = :{port}'`), or change `port` in "
                "server.yaml and send sites the new address.",
            ) from None
