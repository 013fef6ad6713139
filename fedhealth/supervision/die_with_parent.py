"""Ask Linux to end this process when its parent dies, so that kill -9 of a supervisor leaves nothing behind."""

import ctypes
import os
import signal
from typing import Final

PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def die_with_parent(expected_parent: int | None = None, *, sig: int = signal.SIGKILL) -> None:
    """Receive `sig` when the parent process ends; end at once if it is already gone.

    Args:
        expected_parent: pid that the parent must have, when the caller knows it.
        sig: the signal to receive.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, sig, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died between fork and prctl: then no signal would ever come.
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(1)
