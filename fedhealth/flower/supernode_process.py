"""The SuperNode process; with `--eager`, one that asks for messages more often while a round is near (docs/adr/0007).

Flower 1.41 sleeps three seconds between two questions, and half a second while it waits for a reply. Here the
module's `time` is replaced by one whose `sleep` begins short and grows to a second when nothing happens. This
is private behaviour: `tests/flower_contract` fails when it changes, and `fast_transport: false` is the way back.
"""

import os
import sys
import time
import traceback
from types import ModuleType
from typing import Any, Final

from fedhealth.supervision.die_with_parent import die_with_parent

EAGER: Final = "--eager"
IDLE_SLEEP_S: Final = 3.0  # flwr/supernode/start_client_internal.py, main loop
FIRST_SLEEP_S: Final = 0.1
LONGEST_SLEEP_S: Final = 1.0
REPLY_SLEEP_S: Final = 0.05


class EagerTime:
    """Stands for the `time` module inside one Flower module."""

    def __init__(self, real: ModuleType) -> None:
        self._real = real
        self._idle = FIRST_SLEEP_S

    def sleep(self, seconds: float) -> None:
        """The idle sleep grows by a twentieth each time; every other sleep is a wait for a reply."""
        if seconds < IDLE_SLEEP_S:
            self._idle = FIRST_SLEEP_S
            self._real.sleep(min(seconds, REPLY_SLEEP_S))
            return
        self._real.sleep(self._idle)
        self._idle = min(LONGEST_SLEEP_S, self._idle * 1.05)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the rest of the time module
        return getattr(self._real, name)


def main() -> None:
    """Flower's own entry point, which must also *end* this process.

    A SuperNode that lost its server leaves its main thread, but its local HTTP server keeps the process
    alive for ever: the supervisor would wait for a node that no longer asks for messages.
    """
    die_with_parent()
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    if sys.argv[1:2] == [EAGER]:
        del sys.argv[1]
        vars(start_client_internal)["time"] = EagerTime(time)
    status = 1
    try:
        flower_supernode()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - its text is for the site's own log, where the supervisor reads it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
