"""How a running server shows where it is: a bar on a terminal, a line per change elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any, Final

from fedhealth.cli.output import say
from fedhealth.config.study import RunPlan

WATCH_S: Final = 2.0
BAR_WIDTH: Final = 24


class LineProgress:
    """`Progress` of `run_server`: one line for each round, redrawn on a terminal."""

    def __init__(self) -> None:
        self._last = ""
        self._is_open = False

    def note(self, text: str) -> None:
        """One line of its own."""
        self._close()
        say(text)

    def run_status(self, run: RunPlan, status: dict[str, Any]) -> None:
        """Show a change of a run's status."""
        text = describe(run, status)
        if text and text != self._last:
            self._last = text
            self._show(text)

    def _show(self, text: str) -> None:
        if not sys.stderr.isatty():
            say(text)
            return
        print(f"\r\033[2K{text}", end="", file=sys.stderr, flush=True)
        self._is_open = True

    def _close(self) -> None:
        if self._is_open:
            print(file=sys.stderr)
            self._is_open = False


def describe(run: RunPlan, status: dict[str, Any]) -> str:
    """One line about a run, empty before it has begun."""
    if not status:
        return ""
    done, total = int(status["rounds_done"]), run.num_rounds
    filled = BAR_WIDTH * done // total
    bar = "#" * filled + "." * (BAR_WIDTH - filled)
    return f"{run.name} [{bar}] {done}/{total} rounds, {status['doing']}"


def repeat(show: Callable[[], None], *, forever: bool) -> None:
    """Call once, or every two seconds until Ctrl-C."""
    show()
    while forever:
        time.sleep(WATCH_S)
        show()
