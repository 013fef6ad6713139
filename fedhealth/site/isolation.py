"""Take the network away from the worker: its own, empty network namespace, where the kernel allows it."""

import ctypes
import os
from pathlib import Path
from typing import Final, Literal

from fedhealth.errors import TransportError

CLONE_NEWUSER: Final = 0x10000000  # sched.h
CLONE_NEWNET: Final = 0x40000000

Isolation = Literal["network-namespace", "none"]


def leave_the_network(wanted: Literal["auto", "enforce", "off"]) -> Isolation:
    """Move this (single-threaded) process into a network namespace that has no interface up.

    Returns:
        What is in force; it goes into the site's status.

    Raises:
        TransportError: FH-ISOLATION-001 `enforce` was asked for and the kernel refuses.
    """
    if wanted == "off":
        return "none"
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNET) == 0:  # privileged
        return "network-namespace"
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        # Keep the same ids inside, so that files and peer credentials look the same.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        return "network-namespace"
    if wanted == "enforce":
        raise TransportError(
            "FH-ISOLATION-001",
            "this kernel does not let fedhealth take the network away from the worker.",
            why="site.yaml says isolation: enforce.",
            fix="Allow unprivileged user namespaces, run the worker in a container without network, "
            "or set isolation: auto.",
        )
    return "none"
