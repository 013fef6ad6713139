"""`flwr-clientapp` at a hospital: Flower's own entry point, with the *installed* relay in place of shipped code.

The server ships an app bundle with every run; Flower would unpack and import it. Here nothing of it is
unpacked, and the ClientApp is always `fedhealth.flower.client_app:app` of this installation: what a server
ships never runs at a hospital. This replaces two private names of Flower 1.41, pinned by
`tests/flower_contract`; if they are gone, the process refuses to start.
"""

from collections.abc import Callable
from typing import Any, Final

from fedhealth.supervision.die_with_parent import die_with_parent

REPLACED: Final = ("install_from_fab", "get_load_client_app_fn")


def pin_relay() -> None:
    """Make Flower's ClientApp runner use the installed relay, whatever bundle came with the run.

    Raises:
        RuntimeError: Flower has other names than those of 1.41.
    """
    from flwr.supernode.runtime import run_clientapp

    from fedhealth.flower.client_app import app

    def load(*_: object) -> Any:  # noqa: ANN401 - Flower's ClientApp, whatever its class is called
        return app

    def get_load(**_: object) -> Callable[..., Any]:
        return load

    def install(*_: object, **__: object) -> None:
        return None

    names = vars(run_clientapp)
    if not all(name in names for name in REPLACED):
        raise RuntimeError("this Flower version cannot be pinned to the installed relay")
    names["install_from_fab"] = install
    names["get_load_client_app_fn"] = get_load


def main() -> None:
    """One message, in a process of its own (`fast_transport: false`)."""
    die_with_parent()
    from flwr.supernode.cli import flwr_clientapp

    pin_relay()
    flwr_clientapp()


if __name__ == "__main__":
    main()
