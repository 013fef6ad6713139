"""Volumes on the contract's grid, kept on disk so that each is resampled once.

Called by `volumes`. An entry is a `.npy` file (never pickled) with the SHA-256 of its bytes behind
it; its name is derived from the source file's content and the grid. A damaged entry is one that is
not there. Entries are images of patients: the folder belongs to the site's data zone, readable by
the site's account only.
"""

import hashlib
import io
import os
import tempfile
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import VolumeModality
from fedhealth.data.grid import GRID_VERSION

Volume = NDArray[np.float32]

_DIGEST_BYTES = 32
_logger = getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VolumeCache:
    """One folder of entries."""

    folder: Path = field(repr=False)

    def key(self, content_digest: str, modality: VolumeModality) -> str:
        """Name of the entry: same source bytes, same grid, same code, same entry."""
        spacing = ",".join(f"{side!r}" for side in modality.spacing_mm)
        grid = f"{GRID_VERSION}|{modality.shape}|{spacing}|{modality.orientation}"
        return hashlib.sha256(f"{grid}|{content_digest}".encode()).hexdigest()

    def load(self, key: str, shape: tuple[int, int, int]) -> Volume | None:
        """The entry, or None when it is not there, damaged, or of another shape."""
        try:
            stored = self._path(key).read_bytes()
        except OSError:
            return None
        payload, digest = stored[:-_DIGEST_BYTES], stored[-_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != digest:
            return None
        volume = np.load(io.BytesIO(payload), allow_pickle=False)
        if volume.dtype != np.float32 or volume.shape != shape:
            return None
        return np.asarray(volume, dtype=np.float32)

    def store(self, key: str, volume: Volume) -> None:
        """Write the entry whole or not at all. A full disk costs time later, nothing else."""
        buffer = io.BytesIO()
        np.save(buffer, volume, allow_pickle=False)
        payload = buffer.getvalue()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")  # mode 0600
        except OSError as error:
            _logger.warning("volume_cache_not_written error=%s", type(error).__name__)
            return
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload + hashlib.sha256(payload).digest())
            Path(temporary).replace(self._path(key))
        except OSError as error:
            Path(temporary).unlink(missing_ok=True)
            _logger.warning("volume_cache_not_written error=%s", type(error).__name__)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"
