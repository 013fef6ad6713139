"""Read one NIfTI file from bytes, believing nothing that its header says. Called by `volumes`.

nibabel parses headers and affines. The voxels are taken here, because the size that a header
declares must be held against the file before anything of that size is allocated, and because
reading a compressed file to its end is what checks its CRC.
"""

import gzip
import io
import zlib
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from fedhealth.errors import SiteDataError

MAX_VOXELS = 1 << 28
"""512 x 512 x 1024: a thin-slice CT of the whole trunk. 1 GiB as float32."""

_MAX_OFFSET_BYTES = 1 << 24
_MAX_DEFLATE_RATIO = 1032
"""DEFLATE compresses 1032:1 at best (zlib's technical notes): a header that needs more lies."""

_PADDING_BYTES = 1024
"""Some writers round files up to a block of 512 bytes."""

_HEADER_SIZES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiHeader:
    """What is needed of a header, checked.

    `affine` maps voxel indices to RAS+ millimetres, (4, 4) float64. `slope` and `inter` scale
    stored numbers.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64] = field(repr=False)
    dtype: np.dtype[np.generic]
    offset_bytes: int
    slope: float
    inter: float

    @property
    def num_bytes(self) -> int:
        """Uncompressed size that the header promises, with the header itself."""
        return self.offset_bytes + prod(self.shape) * self.dtype.itemsize


def read_header(path: Path, *, where: str) -> NiftiHeader:
    """Read and check a header, and hold the size that it promises against the file's.

    Args:
        path: a `.nii` or `.nii.gz` file.
        where: which volume this is, for messages, such as ``t1 volume of row 7``.

    Raises:
        SiteDataError: FH-DATA-020 not a readable NIfTI, FH-DATA-021 shorter than its header says,
            FH-DATA-022 a header that cannot be used, FH-DATA-027 too large.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = _read_start(file, is_compressed=path.suffix == ".gz")
    except (OSError, EOFError, zlib.error) as error:
        raise not_readable(where, type(error).__name__) from None
    header = parse_header(start, where=where)
    limit = _MAX_DEFLATE_RATIO * size if path.suffix == ".gz" else size
    if header.num_bytes > limit:
        raise _truncated(where)
    return header


def parse_header(start: bytes, *, where: str) -> NiftiHeader:
    """The header in the first bytes of an uncompressed NIfTI file. Raises as `read_header`."""
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    size = next((size for size in _HEADER_SIZES if size in sizes), None)
    if size is None:
        raise not_readable(where, "no NIfTI header")
    if len(start) < size:
        raise _truncated(where)
    try:
        raw = _HEADER_SIZES[size].from_fileobj(io.BytesIO(start), check=True)  # type: ignore[no-untyped-call] # nibabel
        slope, inter = raw.get_slope_inter()
        header = NiftiHeader(
            shape=_three(raw.get_data_shape(), where),
            affine=np.asarray(raw.get_best_affine(), dtype=np.float64),
            dtype=raw.get_data_dtype(),
            offset_bytes=int(raw.get_data_offset()),
            slope=1.0 if slope is None else float(slope),
            inter=0.0 if inter is None else float(inter),
        )
        has_orientation = int(raw["sform_code"]) > 0 or int(raw["qform_code"]) > 0
        is_single_file = bytes(raw["magic"].item()).startswith(b"n+")
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise _unusable(where, f"it is damaged ({type(error).__name__})") from None
    _check(header, where, has_orientation=has_orientation, is_single_file=is_single_file)
    return header


def read_voxels(
    content: bytes, *, is_compressed: bool, where: str
) -> tuple[NDArray[np.float32], NiftiHeader]:
    """All voxels of a NIfTI file.

    Args:
        content: the file's bytes.
        is_compressed: gzip around them.
        where: which volume this is, for messages.

    Returns:
        (i, j, k) float32, scaled as the header says, and the header.

    Raises:
        SiteDataError: as `read_header`.
    """
    try:
        start = _read_start(io.BytesIO(content), is_compressed=is_compressed)
        header = parse_header(start, where=where)
        limit = header.num_bytes + _PADDING_BYTES
        payload = _unpack(content, limit) if is_compressed else content[: limit + 1]
    except EOFError:
        raise _truncated(where) from None
    except (OSError, zlib.error) as error:
        raise not_readable(where, type(error).__name__) from None
    if len(payload) < header.num_bytes:
        raise _truncated(where)
    if len(payload) > limit:
        raise _unusable(where, "it describes fewer voxels than the file holds")
    stored = np.frombuffer(
        payload, dtype=header.dtype, count=prod(header.shape), offset=header.offset_bytes
    ).reshape(header.shape, order="F")
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what overflows is not finite, and refused later
        if (header.slope, header.inter) != (1.0, 0.0):
            stored = stored.astype(np.float64) * header.slope + header.inter
        return stored.astype(np.float32), header


def not_readable(where: str, reason: str) -> SiteDataError:
    """The refusal of a file that is no NIfTI or cannot be read."""
    return SiteDataError(
        "FH-DATA-020",
        f"the {where} cannot be read ({reason}).",
        why="Volumes are NIfTI files, .nii.gz or .nii, one for each patient.",
        fix="Convert the volume again, or remove its file: the modality then counts as missing.",
    )


def _read_start(file: BinaryIO, *, is_compressed: bool) -> bytes:
    if not is_compressed:
        return file.read(max(_HEADER_SIZES))
    with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
        return unpacked.read(max(_HEADER_SIZES))


def _unpack(content: bytes, limit_bytes: int) -> bytes:
    """At most `limit_bytes` + 1 bytes; reaching the end verifies the CRC, EOFError if it is cut off."""
    with gzip.GzipFile(fileobj=io.BytesIO(content), mode="rb") as unpacked:
        return unpacked.read(limit_bytes + 1)


def _three(shape: tuple[int, ...], where: str) -> tuple[int, int, int]:
    sides = tuple(int(side) for side in shape)
    if len(sides) == 2:  # noqa: PLR2004 - an image of one slice
        sides = (*sides, 1)
    if len(sides) < 3 or any(side != 1 for side in sides[3:]):  # noqa: PLR2004 - i, j, k
        raise _unusable(where, f"it has {len(sides)} dimensions instead of 3")
    return sides[0], sides[1], sides[2]


def _check(header: NiftiHeader, where: str, *, has_orientation: bool, is_single_file: bool) -> None:
    if min(header.shape) < 1:
        raise _unusable(where, "it has a side without voxels")
    if prod(header.shape) > MAX_VOXELS:
        raise SiteDataError(
            "FH-DATA-027",
            f"the {where} has more than {MAX_VOXELS} voxels.",
            why="It would not fit into the memory that a site is expected to have.",
            fix="Resample the volume before the export.",
        )
    if header.dtype.kind not in "iuf" or header.dtype.itemsize > 8:  # noqa: PLR2004 - float64
        raise _unusable(where, "its voxels are not plain numbers")
    if not 0 < header.offset_bytes <= _MAX_OFFSET_BYTES or not is_single_file:
        raise _unusable(where, "its voxels are not in the same file")
    if not has_orientation:
        raise _unusable(where, "it has no orientation, so left and right are unknown")
    if not np.isfinite([header.slope, header.inter]).all():
        raise _unusable(where, "its intensity scale is not finite")
    axes = header.affine[:3, :3]
    if not np.isfinite(header.affine).all() or abs(np.linalg.det(axes)) < 1e-9:  # noqa: PLR2004
        raise _unusable(where, "its voxel axes are degenerate")


def _unusable(where: str, reason: str) -> SiteDataError:
    return SiteDataError(
        "FH-DATA-022",
        f"the header of the {where} cannot be used: {reason}.",
        why="Without it voxels cannot be placed on the study's grid.",
        fix="Convert the volume again from its source, or remove its file.",
    )


def _truncated(where: str) -> SiteDataError:
    return SiteDataError(
        "FH-DATA-021",
        f"the {where} holds fewer voxels than its header says.",
        why="The file was probably cut off while it was copied.",
        fix="Copy or convert it again.",
    )
