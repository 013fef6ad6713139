"""Where pretrained weights lie on this machine: files by name and SHA-256. Imports no torch.

The study pins a file by its digest, and every party has its own copy in a folder ``weights``: in a home, or beside the
study file. The commands that build a model say which folders those are (`weights_in`); wherever the file is found, its
bytes are the same, so that a model stays a pure function of its study. Called by commands and by `published_weights`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from fedhealth.config.base import OptionValue
from fedhealth.errors import ConfigError

FOLDER = "weights"
MAX_FILE_BYTES = 2 << 30
"""ViT-B in float32 has 0.35 GB; a file is read whole before it is believed."""

_folders: ContextVar[tuple[Path, ...]] = ContextVar("weights_folders", default=())
_replaced: ContextVar[bool] = ContextVar("weights_replaced", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedFile:
    """A file of the study: its name below a folder ``weights``, and its digest."""

    name: str
    sha256: str


def pinned_file(options: Mapping[str, OptionValue]) -> PinnedFile | None:
    """The file that a model's options pin, if they do; the options are checked elsewhere."""
    if options.get("image_weights") != "file":
        return None
    name, digest = (options.get(f"image_weights_{key}", "") for key in ("file", "sha256"))
    return PinnedFile(name=str(name), sha256=str(digest))


@contextmanager
def weights_in(*parents: Path) -> Iterator[None]:
    """Inside, pinned files are looked for in the folder ``weights`` of each of these, before those outside."""
    token = _folders.set((*(parent / FOLDER for parent in parents), *_folders.get()))
    try:
        yield
    finally:
        _folders.reset(token)


@contextmanager
def weights_replaced() -> Iterator[None]:
    """Inside, models are built without their file: the caller gives them all their weights afterwards."""
    token = _replaced.set(True)
    try:
        yield
    finally:
        _replaced.reset(token)


def are_weights_replaced() -> bool:
    """Whether a builder leaves the pinned file out."""
    return _replaced.get()


def find_file(pinned: PinnedFile) -> tuple[Path, bytes]:
    """Path and content of the file.

    Raises:
        ConfigError: FH-MODEL-032 it is in none of the folders or cannot be read, FH-MODEL-033 files of that name are
            others than the study's.
    """
    found = ""
    for folder in _folders.get():
        path = folder / pinned.name
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise _missing(pinned, f"The file there is larger than {MAX_FILE_BYTES} bytes.")
            payload = path.read_bytes()
        except OSError:
            continue
        digest = hashlib.sha256(payload).hexdigest()
        if digest == pinned.sha256:
            return path, payload
        found = digest
    if not found:
        raise _missing(pinned, "Weights do not come with the study: every party has its own copy.")
    raise ConfigError(
        "FH-MODEL-033",
        f"the weights file {pinned.name!r} here is not the study's.",
        why=f"Its SHA-256 is {found[:16]}..., the study pins {pinned.sha256[:16]}...; sites that start from "
        "different weights would average different models.",
        fix="Get the file that the coordinator names, or correct image_weights_sha256 before the study begins.",
    )


def _missing(pinned: PinnedFile, why: str) -> ConfigError:
    return ConfigError(
        "FH-MODEL-032",
        f"the weights file {pinned.name!r} is not here.",
        why=why,
        fix="Put it into the folder weights/ of the home (or, for study commands and `server init`, beside the "
        "study file).",
    )
