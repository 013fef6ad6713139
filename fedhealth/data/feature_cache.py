"""What a frozen encoder made of volumes, kept on disk so that a restart does not compute it again.

Called by `batch`. One file holds the features of one encoder on one grid, found by the content of each volume, with the
SHA-256 of its bytes behind it. A damaged file is one that is not there. Features tell something about the images they
were made of: like the volumes, they belong to the site's data zone, readable by the site's account only.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.cohort import LazyVolume
from fedhealth.durable import write_atomically

Features = NDArray[np.float32]

FORMAT = 1
MAX_FOLDER_BYTES = 256 << 20
"""A million patients of the default encoder (16 numbers and a key); 120 thousand of a ResNet's 512 features."""
_DIGEST_BYTES = 32
_SUFFIX = ".features"
_logger = getLogger(__name__)


@runtime_checkable
class IdentifiedVolume(Protocol):
    """A volume that knows its content without being resampled."""

    def content_key(self) -> str:
        """SHA-256 in hex: same source bytes, same grid, same code, same key. Raises SiteDataError."""
        ...


def content_key(volume: LazyVolume) -> bytes:
    """32 bytes that change with a volume's voxels.

    Raises:
        SiteDataError: the volume cannot be read.
    """
    if isinstance(volume, IdentifiedVolume):
        return bytes.fromhex(volume.content_key())
    voxels = np.ascontiguousarray(volume.load())
    shape = f"{voxels.dtype.str}|{voxels.shape}|".encode()
    return hashlib.sha256(shape + voxels.tobytes()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCache:
    """The features of one encoder.

    Attributes:
        folder: of all encoders' files.
        encoder_digest: SHA-256 in hex of everything that decides what the encoder makes of a volume.
        limit_bytes: most that the folder keeps; files that were not used for longest go first.
    """

    folder: Path = field(repr=False)
    encoder_digest: str
    limit_bytes: int = MAX_FOLDER_BYTES

    def load(self) -> dict[bytes, Features]:
        """(F,) features by content key; none when there is no file or it is damaged."""
        path = self._path
        try:
            stored = path.read_bytes()
            os.utime(path)  # used just now
        except OSError:
            return {}
        payload, digest = stored[:-_DIGEST_BYTES], stored[-_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != digest:
            _logger.warning("feature_cache_damaged: features are computed again")
            return {}
        buffer = io.BytesIO(payload)
        keys, features = (np.load(buffer, allow_pickle=False) for _ in range(2))
        return {key.tobytes(): row for key, row in zip(keys, features, strict=True)}

    def store(self, entries: Mapping[bytes, Features], *, used: Iterable[bytes]) -> None:
        """Write all entries, or those in use where they would be too many.

        A full disk costs time later, nothing else.
        """
        payload = _packed(entries)
        if len(payload) > self.limit_bytes:
            payload = _packed({key: entries[key] for key in used})
        if len(payload) > self.limit_bytes:
            _logger.warning("feature_cache_not_written error=limit")
            return
        try:
            write_atomically(self._path, payload + hashlib.sha256(payload).digest())
            self._make_room()
        except OSError as error:
            _logger.warning("feature_cache_not_written error=%s", type(error).__name__)

    @property
    def _path(self) -> Path:
        name = hashlib.sha256(f"{FORMAT}|{self.encoder_digest}".encode()).hexdigest()
        return self.folder / f"{name}{_SUFFIX}"

    def _make_room(self) -> None:
        others = [path for path in self.folder.glob(f"*{_SUFFIX}") if path != self._path]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        total = self._path.stat().st_size
        for path in others:
            total += path.stat().st_size
            if total > self.limit_bytes + _DIGEST_BYTES:
                path.unlink(missing_ok=True)


def _packed(entries: Mapping[bytes, Features]) -> bytes:
    buffer = io.BytesIO()
    keys = np.frombuffer(b"".join(entries), dtype=np.uint8).reshape(len(entries), _DIGEST_BYTES)
    np.save(buffer, keys, allow_pickle=False)
    np.save(buffer, np.stack(list(entries.values())), allow_pickle=False)
    return buffer.getvalue()
