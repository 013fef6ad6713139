"""Processes that the cells of `secure_aggregation.py` run in: one for a server, and beside it one for its sites.

A cell's figures are its own: nothing of another cell is in the server's memory, and no site's work is in its time.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Seconds = dict[str, float]
Row = dict[str, Any]
Serve = Callable[[Connection, Path, Any], None]
STOP_S = 60.0


def isolated(measure: Callable[[Any], Row], cell: object) -> Row:
    """The row of one cell, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, cell).result()


@contextmanager
def sites_process(serve: Serve, cell: object) -> Iterator[tuple[Connection, Path]]:
    """A process that plays all sites, a connection to it, and a folder for what is large."""
    context = get_context("spawn")
    with TemporaryDirectory(prefix="fedhealth-secagg-") as folder:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, Path(folder), cell))
        process.start()
        theirs.close()  # else a site process that died would be waited for
        try:
            yield ours, Path(folder)
        finally:
            ours.close()
            process.join(STOP_S)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def cpu(seconds: Seconds, name: str) -> Iterator[None]:
    """Add the block's processor time."""
    begin = time.process_time()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - begin


class Memory:
    """Resident memory of this process beyond what it had when this was made."""

    def __init__(self) -> None:
        # The high-water mark begins anew; where it cannot, one of the imports' may be reported: never less than true.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _field("VmRSS")

    def peak_bytes(self) -> int:
        """Highest until now."""
        return max(0, _field("VmHWM") - self._start)


def _field(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")
