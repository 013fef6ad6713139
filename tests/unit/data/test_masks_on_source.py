"""A predicted mask comes back to the voxels of its image."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.contracts.data import VolumeModality
from fedhealth.data.grid import from_label_grid, to_label_grid
from fedhealth.data.volume_cache import VolumeCache
from fedhealth.data.volumes import NiftiVolume

GRID = VolumeModality(name="t1", shape=(16, 16, 16), spacing_mm=(2.0, 2.0, 2.0))


def affine_of(spacing: tuple[float, float, float], *, angle: float = 0.0) -> NDArray[np.float64]:
    """Voxels of this size, first axis to the left, turned about the third axis."""
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing[0], spacing[1], spacing[2]])
    affine[:3, 3] = (11.0, -7.0, 3.0)
    return affine


def ball(shape: tuple[int, int, int], affine: NDArray[np.float64], mm: float) -> NDArray[np.uint8]:
    """Code 3 within `mm` of a point beside the middle, so that a flip or a shift is seen."""
    centre = affine @ np.array([*(np.asarray(shape) / 2 - 0.5), 1.0]) + np.array([3.0, 2.0, 4.0, 0])
    index = np.moveaxis(np.indices(shape, dtype=float), 0, -1)
    place = index @ affine[:3, :3].T + affine[:3, 3]
    near = ((place - centre[:3]) ** 2).sum(axis=-1) <= mm**2
    return np.where(near, 3, 0).astype(np.uint8)


def dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    both = ((one == 3) & (other == 3)).sum()
    return float(2 * both / ((one == 3).sum() + (other == 3).sum()))


@pytest.mark.parametrize(
    ("shape", "spacing", "angle"),
    [
        ((16, 16, 16), (2.0, 2.0, 2.0), 0.0),
        ((20, 18, 22), (2.0, 2.0, 2.0), 0.0),
        ((30, 28, 16), (1.0, 1.1, 2.0), 0.0),
        ((32, 32, 32), (1.0, 1.0, 1.0), 0.2),
    ],
    ids=["flipped", "cropped", "anisotropic", "oblique and finer"],
)
def test_a_mask_to_the_grid_and_back_lies_where_it_was(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], angle: float
) -> None:
    affine = affine_of(spacing, angle=angle)
    drawn = ball(shape, affine, 8.0)
    on_grid = to_label_grid(drawn.astype(np.float32), affine, GRID, where="mask")
    back = from_label_grid(on_grid, shape, affine, GRID)
    assert back.shape == shape
    assert set(np.unique(back)) == {0, 3}
    # Twice to the nearest voxel of 2 mm: a ball of 8 mm loses and gains voxels at its surface, its middle stays.
    assert dice(back, drawn) > 0.85
    middles = [np.argwhere(mask == 3).mean(axis=0) * spacing for mask in (back, drawn)]
    assert np.linalg.norm(middles[0] - middles[1]) < 1.0


def test_a_flip_loses_nothing() -> None:
    affine = affine_of((2.0, 2.0, 2.0))
    drawn = ball(GRID.shape, affine, 8.0)
    on_grid = to_label_grid(drawn.astype(np.float32), affine, GRID, where="mask")
    assert not np.array_equal(on_grid, drawn)
    assert np.array_equal(from_label_grid(on_grid, GRID.shape, affine, GRID), drawn)


def test_the_file_has_the_images_affine_and_the_same_bytes_again(tmp_path: Path) -> None:
    affine = affine_of((1.5, 2.0, 2.5))
    image = np.random.default_rng(0).normal(size=(20, 16, 14)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "a.nii.gz")
    volume = NiftiVolume(tmp_path / "a.nii.gz", GRID, VolumeCache(tmp_path / "cache"), row=2)
    codes = np.zeros(GRID.shape, dtype=np.uint8)
    codes[6:10, 6:10, 6:10] = 5
    payload = volume.mask_on_source(codes)
    assert payload == volume.mask_on_source(codes)
    found = nib.Nifti1Image.from_bytes(gzip.decompress(payload))
    assert np.allclose(found.affine, affine)
    assert found.shape == image.shape
    assert found.get_data_dtype() == np.uint8
    assert set(np.unique(np.asarray(found.dataobj))) == {0, 5}
