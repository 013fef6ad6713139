"""A patient's volume, read when it is needed. Made by `reader`, called as `LazyVolume`."""

import gzip
import hashlib
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import VolumeModality
from fedhealth.data.grid import check_field_of_view, from_label_grid, to_grid
from fedhealth.data.nifti import MAX_VOXELS, not_readable, read_header, read_voxels
from fedhealth.data.volume_cache import VolumeCache
from fedhealth.errors import SiteDataError

Volume = NDArray[np.float32]

_MAX_FILE_BYTES = 8 * MAX_VOXELS + (1 << 24)
_Signature = tuple[int, int, int]


class NiftiVolume:
    """One NIfTI file as a `LazyVolume`.

    Args:
        path: a `.nii` or `.nii.gz` file.
        modality: the contract's grid.
        cache: where results are kept.
        row: the patient's row in `cohort.csv`, the only thing that messages tell about the patient.
    """

    __slots__ = ("_cache", "_digest", "_lock", "_modality", "_path", "_where")

    def __init__(
        self, path: Path, modality: VolumeModality, cache: VolumeCache, *, row: int
    ) -> None:
        self._path = path
        self._modality = modality
        self._cache = cache
        self._where = f"{modality.name} volume of row {row}"
        self._digest: tuple[_Signature, str] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"NiftiVolume(modality={self._modality.name!r})"

    def check_header(self) -> None:
        """Read the header only.

        Raises:
            SiteDataError: FH-DATA-020 to 023, 027 and 028, see `nifti` and `grid`.
        """
        header = read_header(self._path, where=self._where)
        check_field_of_view(header.shape, header.affine, self._modality, where=self._where)

    def load(self) -> Volume:
        """The volume on the contract's grid: (i, j, k) float32, z-scored, read-only.

        Raises:
            SiteDataError: FH-DATA-020 to 025, 027 and 028, see `nifti` and `grid`.
        """
        with self._lock:
            content, digest = self._identify()
        key = self._cache.key(digest, self._modality)
        volume = self._cache.load(key, self._modality.shape)
        if volume is None:
            volume = self._read(content if content is not None else self._read_file())
            self._cache.store(key, volume)
        volume.flags.writeable = False
        return volume

    def content_key(self) -> str:
        """SHA-256 in hex over the file's bytes, the grid and the version of the code that resamples.

        Raises:
            SiteDataError: FH-DATA-020 or 027 the file cannot be read.
        """
        with self._lock:
            _, digest = self._identify()
        return self._cache.key(digest, self._modality)

    def mask_on_source(self, codes: NDArray[np.uint8]) -> bytes:
        """A mask on the contract's grid as a NIfTI file with this file's own voxels and affine (gzip).

        Args:
            codes: (i, j, k) uint8 on the contract's grid.

        Raises:
            SiteDataError: FH-DATA-020 to 023, 027 and 028, see `nifti` and `grid`.
        """
        header = read_header(self._path, where=self._where)
        voxels = from_label_grid(codes, header.shape, header.affine, self._modality)
        image = nib.Nifti1Image(voxels, header.affine)  # type: ignore[no-untyped-call] # nibabel has no types here
        return gzip.compress(image.to_bytes(), mtime=0)

    def _identify(self) -> tuple[bytes | None, str]:
        """SHA-256 of the file. The file is read once, and again when it was touched in between."""
        signature = self._signature()
        if self._digest is not None and self._digest[0] == signature:
            return None, self._digest[1]
        content = self._read_file()
        digest = hashlib.sha256(content).hexdigest()
        self._digest = (signature, digest)
        return content, digest

    def _signature(self) -> _Signature:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise not_readable(self._where, type(error).__name__) from None
        if stat.st_size > _MAX_FILE_BYTES:
            raise SiteDataError(
                "FH-DATA-027",
                f"the file of the {self._where} is larger than {_MAX_FILE_BYTES} bytes.",
                why="No volume of a size that is accepted needs that much.",
                fix="Export the volume again.",
            )
        return stat.st_size, stat.st_mtime_ns, stat.st_ino

    def _read_file(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise not_readable(self._where, type(error).__name__) from None

    def _read(self, content: bytes) -> Volume:
        is_compressed = self._path.suffix == ".gz"
        voxels, header = read_voxels(content, is_compressed=is_compressed, where=self._where)
        return to_grid(voxels, header.affine, self._modality, where=self._where)
