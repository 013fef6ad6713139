"""The few calls by which the ledger changes a disk. One class, so that tests can record and cut their order.

Reading needs no seam: what matters is what was written, and what was made durable before what.
"""

import os
from pathlib import Path
from typing import Final, Protocol

from fedhealth.durable import sync

PRIVATE_FILE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700


class Storage(Protocol):
    """Changes to files, as the operating system names them. Every method may raise OSError."""

    def make_folder(self, folder: Path) -> None:
        """Create one folder; its parent exists. Nothing happens when it is there."""
        ...

    def open_file(self, path: Path) -> int:
        """Open for reading and writing, created empty when absent; never through a symbolic link."""
        ...

    def close(self, descriptor: int) -> None:
        """Close a descriptor of `open_file`."""
        ...

    def write_at(self, descriptor: int, data: bytes, offset: int) -> int:
        """Write at that offset; returns how many bytes were taken, which may be fewer."""
        ...

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        ...

    def fsync(self, descriptor: int) -> None:
        """Return when the file's content is durable."""
        ...

    def replace(self, source: Path, target: Path) -> None:
        """Rename in one step."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's entries (files created, renamed, removed) are durable."""
        ...


class OsStorage:
    """The real one."""

    def make_folder(self, folder: Path) -> None:
        """`Storage.make_folder`."""
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)

    def open_file(self, path: Path) -> int:
        """`Storage.open_file`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)

    def close(self, descriptor: int) -> None:
        """`Storage.close`."""
        os.close(descriptor)

    def write_at(self, descriptor: int, data: bytes, offset: int) -> int:
        """`Storage.write_at`."""
        return os.pwrite(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        """`Storage.truncate`."""
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        """`Storage.fsync`."""
        sync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """`Storage.replace`."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """`Storage.unlink`."""
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """`Storage.sync_folder`."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(storage: Storage, descriptor: int, data: bytes, offset: int) -> None:
    """Write all of it; a disk that takes a part is asked for the rest, and then says why it does not.

    Raises:
        OSError: the disk is full or failed; a part may be written.
    """
    rest = memoryview(data)
    while rest:
        written = storage.write_at(descriptor, bytes(rest), offset)
        rest, offset = rest[written:], offset + written


def make_durable_folder(storage: Storage, folder: Path) -> None:
    """Create a folder with its parents, and make every one of them durable.

    The parents are synced also when they are there: who made them may have been killed before it could.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        storage.make_folder(path)
    device = folder.stat().st_dev
    for path in (folder, *folder.parents):
        if path.stat().st_dev != device or not os.access(path, os.R_OK):
            return
        storage.sync_folder(path)
