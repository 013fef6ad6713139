"""Bring a volume to the contract's grid and intensity scale (MONAI). Called by `volumes`."""

from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import VolumeModality
from fedhealth.errors import SiteDataError

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor

GRID_VERSION = 1
"""Part of every cache key: raise it when the result of this module changes."""

_SPACING_TOLERANCE = 1e-3
"""Relative: headers store spacing as float32 and converters round to 1e-4 mm."""

_FIELD_OF_VIEW_RATIO = (0.5, 2.0)
"""A volume half or twice as wide as the grid is another body region or a wrong unit, not another scanner."""

_AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
_FWHM_PER_SIGMA = 2.3548
_MIN_STD = 1e-6
"""Relative to the largest magnitude: float32 resolves 1e-7."""

Volume = NDArray[np.float32]
Affine = NDArray[np.float64]


def to_grid(voxels: Volume, affine: Affine, modality: VolumeModality, *, where: str) -> Volume:
    """Reorient, resample, pad or crop, then z-score.

    Args:
        voxels: (i, j, k) float32, any shape.
        affine: (4, 4), voxel indices to RAS+ millimetres.
        modality: the target grid.
        where: which volume this is, for messages.

    Returns:
        (i, j, k) float32 of `modality.shape`; mean 0 and standard deviation 1 over all voxels.

    Raises:
        SiteDataError: FH-DATA-023 too far from the grid, FH-DATA-024 voxels that are not finite, FH-DATA-025
            all voxels alike, FH-DATA-028 several slices where the study has 2D images.
    """
    if not np.isfinite(voxels).all():
        raise SiteDataError(
            "FH-DATA-024",
            f"the {where} has {int((~np.isfinite(voxels)).sum())} voxels that are not finite.",
            why="One of them would turn the whole model into NaN.",
            fix="Replace them with the background value where the volume is exported.",
        )
    check_field_of_view(voxels.shape, affine, modality, where=where)
    if not _is_on_grid(voxels.shape, affine, modality):
        voxels = _resample(voxels, affine, modality)
    return _z_score(voxels, where)


def to_label_grid(
    voxels: Volume, affine: Affine, modality: VolumeModality, *, where: str
) -> NDArray[np.uint8]:
    """Reorient, resample to the nearest voxel, pad with 0 or crop: codes stay codes, where `to_grid` puts the image.

    Args:
        voxels: (i, j, k) float32 whole numbers of 0 to 255, any shape.
        affine: (4, 4), voxel indices to RAS+ millimetres.
        modality: the target grid.
        where: which volume this is, for messages.

    Raises:
        SiteDataError: as `check_field_of_view`.
    """
    check_field_of_view(voxels.shape, affine, modality, where=where)
    if not _is_on_grid(voxels.shape, affine, modality):
        voxels = _resample(voxels, affine, modality, is_label=True)
    return np.rint(voxels).astype(np.uint8)


def from_label_grid(
    codes: NDArray[np.uint8],
    shape: tuple[int, int, int],
    affine: Affine,
    modality: VolumeModality,
) -> NDArray[np.uint8]:
    """Back from the grid to a source's own voxels: each takes the code of the nearest voxel of the grid, 0 outside.

    Args:
        codes: (i, j, k) on the grid, as `to_label_grid` gives it.
        shape: of the source.
        affine: of the source, (4, 4), voxel indices to RAS+ millimetres.
        modality: the grid.

    Returns:
        uint8 codes of `shape`.
    """
    if _is_on_grid(shape, affine, modality):
        return codes.copy()
    to_grid_index = np.linalg.inv(_grid_affine(shape, affine, modality)) @ affine
    source = np.moveaxis(np.indices(shape, dtype=np.float64), 0, -1)
    place = np.rint(source @ to_grid_index[:3, :3].T + to_grid_index[:3, 3]).astype(np.int64)
    is_inside = ((place >= 0) & (place < np.asarray(codes.shape))).all(axis=-1)
    found = np.zeros(shape, dtype=np.uint8)
    found[is_inside] = codes[tuple(place[is_inside].T)]
    return found


def _grid_affine(shape: tuple[int, int, int], affine: Affine, modality: VolumeModality) -> Affine:
    """(4, 4): where the grid's voxels lie in a source's millimetres, as MONAI tells it of the very same steps."""
    empty = np.zeros(shape, dtype=np.float32)
    return np.asarray(_placed(empty, affine, modality, is_label=True).affine, dtype=np.float64)


def check_field_of_view(
    shape: tuple[int, ...], affine: Affine, modality: VolumeModality, *, where: str
) -> None:
    """Refuse a volume whose extent in mm has little to do with the grid's. Raises FH-DATA-023, FH-DATA-028."""
    if modality.spatial_dims == 2:  # noqa: PLR2004 - one slice
        _check_one_slice(shape, affine, modality, where=where)
    extent = _along(np.asarray(shape) * _spacing_mm(affine), _axis_codes(affine), "RAS")
    own = np.asarray(modality.shape) * _wanted_spacing_mm(affine, modality)
    wanted = _along(own, modality.orientation, "RAS")
    low, high = _FIELD_OF_VIEW_RATIO
    if ((extent < low * wanted) | (extent > high * wanted)).any():
        raise SiteDataError(
            "FH-DATA-023",
            f"the {where} covers {_mm(extent)} mm, the contract's grid {_mm(wanted)} mm "
            "(right-left, back-front, bottom-top).",
            why="More than a factor of two apart: probably another body region, or a wrong voxel size.",
            fix="Export the region that the study asks for, or correct the voxel size.",
        )


def _check_one_slice(
    shape: tuple[int, ...], affine: Affine, modality: VolumeModality, *, where: str
) -> None:
    num_slices = int(_along(np.asarray(shape), _axis_codes(affine), modality.orientation)[2])
    if num_slices != 1:
        raise SiteDataError(
            "FH-DATA-028",
            f"the {where} has {num_slices} slices, and the study has a 2D image there.",
            why="Which slice to take, or which projection to make, is not for a default to decide.",
            fix=f"Export one slice whose third axis is the {modality.orientation[2]} axis of the study's orientation.",
        )


def _wanted_spacing_mm(affine: Affine, modality: VolumeModality) -> Affine:
    """(3,) along the grid's axes; for a 2D image the source's own across the slice, which says nothing."""
    wanted = np.asarray(modality.spacing_mm, dtype=np.float64)
    if modality.spatial_dims == 2:  # noqa: PLR2004 - one slice
        own = _along(_spacing_mm(affine), _axis_codes(affine), modality.orientation)
        wanted[2] = own[2]
    return wanted


def _is_on_grid(shape: tuple[int, ...], affine: Affine, modality: VolumeModality) -> bool:
    return (
        tuple(shape) == modality.shape
        and _axis_codes(affine) == modality.orientation
        and bool(
            np.allclose(
                _spacing_mm(affine), _wanted_spacing_mm(affine, modality), rtol=_SPACING_TOLERANCE
            )
        )
    )


def _resample(
    voxels: Volume, affine: Affine, modality: VolumeModality, *, is_label: bool = False
) -> Volume:
    """The voxels on the grid, (i, j, k) float32."""
    result: Volume = np.asarray(
        _placed(voxels, affine, modality, is_label=is_label)[0], dtype=np.float32
    )
    return result


def _placed(
    voxels: Volume, affine: Affine, modality: VolumeModality, *, is_label: bool
) -> "MetaTensor":
    """Orientation, antialiasing, spacing, shape. Oblique axes stay oblique: only their order and sign change.

    MONAI is imported here: volumes that are on the grid already never pay for it.
    """
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.array import ResizeWithPadOrCrop
    from monai.transforms.intensity.array import GaussianSmooth
    from monai.transforms.spatial.array import Orientation, Spacing

    background = 0.0 if is_label else float(voxels.min())
    source = MetaTensor(torch.from_numpy(voxels[None]), affine=torch.from_numpy(affine))
    oriented = Orientation(axcodes=modality.orientation, labels=_AXIS_LABELS)(source)
    own_spacing = _along(_spacing_mm(affine), _axis_codes(affine), modality.orientation)
    spacing = _wanted_spacing_mm(affine, modality)
    ratio = spacing / own_spacing
    # A Gaussian as wide as the new voxel, less the old one: without it, small structures alias.
    sigma = np.sqrt(np.maximum(ratio**2 - 1.0, 0.0)) / _FWHM_PER_SIGMA
    mode = "nearest" if is_label else "bilinear"
    steps = Compose(
        [
            *([] if is_label else [GaussianSmooth(sigma=sigma.tolist())]),
            Spacing(pixdim=spacing.tolist(), mode=mode, padding_mode="border"),
            ResizeWithPadOrCrop(modality.shape, mode="constant", value=background),
        ]
    )
    placed: MetaTensor = steps(oriented)
    return placed


def _z_score(voxels: Volume, where: str) -> Volume:
    wide = voxels.astype(np.float64)
    mean, std = float(wide.mean()), float(wide.std())
    if std <= _MIN_STD * max(abs(float(wide.min())), abs(float(wide.max()))):
        raise SiteDataError(
            "FH-DATA-025",
            f"the {where} has the same value in all voxels.",
            why="There is nothing in it to learn from, and no scale to normalise with.",
            fix="Export the volume again, or remove its file: the modality then counts as missing.",
        )
    return ((wide - mean) / std).astype(np.float32)


def _axis_codes(affine: Affine) -> str:
    """Nearest orientation of the voxel axes, such as ``RAS``."""
    return "".join(nib.aff2axcodes(affine))  # type: ignore[no-untyped-call] # nibabel has no types here


def _spacing_mm(affine: Affine) -> Affine:
    """(3,) voxel size along each voxel axis."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0), dtype=np.float64)


def _along(values: Affine, codes: str, target: str) -> Affine:
    """(3,) values given along the axes of `codes`, put in the order of the axes of `target`."""
    order = [_axis_of(code) for code in codes]
    return values[[order.index(_axis_of(code)) for code in target]]


def _axis_of(code: str) -> int:
    return next(axis for axis, letters in enumerate(("RL", "AP", "SI")) if code in letters)


def _mm(extent: NDArray[np.float64]) -> str:
    return " x ".join(f"{side:.0f}" for side in extent)
