"""2D images: a grid whose k side is 1."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.config.data import VolumeConfig
from fedhealth.contracts.data import VolumeModality
from fedhealth.data.volume_cache import VolumeCache
from fedhealth.data.volumes import NiftiVolume
from fedhealth.errors import SiteDataError

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
XRAY = VolumeModality(name="xray", shape=(16, 24, 1), spacing_mm=(2.0, 2.0, 1.0))


def _pixels(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(100, 20, size=shape).astype(np.float32)


def _load(
    folder: Path, data: NDArray[np.float32], affine: NDArray[np.float64], modality: VolumeModality
) -> NDArray[np.float32]:
    nib.Nifti1Image(data, affine).to_filename(folder / "image.nii.gz")
    volume = NiftiVolume(folder / "image.nii.gz", modality, VolumeCache(folder / "cache"), row=7)
    volume.check_header()
    return volume.load()


def _z_score(data: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = data.astype(np.float64)
    return (wide - wide.mean()) / wide.std()


@pytest.mark.parametrize("shape", [(16, 24, 1), (16, 24)])
def test_an_image_on_the_grid_is_only_z_scored_whatever_its_thickness(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    data = _pixels(shape)
    found = _load(tmp_path, data, AFFINE, XRAY)
    np.testing.assert_allclose(found, _z_score(data).reshape(16, 24, 1), atol=1e-5)


def test_an_image_is_turned_to_the_study_s_orientation(tmp_path: Path) -> None:
    data = _pixels((16, 24, 1))
    flipped = np.diag([-2.0, -2.0, 5.0, 1.0])
    found = _load(tmp_path, data, flipped, XRAY)
    np.testing.assert_allclose(found, _z_score(data[::-1, ::-1]), atol=1e-5)


def test_an_image_is_resampled_as_each_slice_of_a_volume_of_copies(tmp_path: Path) -> None:
    plane = _pixels((32, 48, 1)).cumsum(0).cumsum(1)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    (tmp_path / "3d").mkdir()
    stacked = VolumeModality(name="xray", shape=(16, 24, 8), spacing_mm=(2.0, 2.0, 1.0))
    whole = _load(tmp_path / "3d", np.repeat(plane, 8, axis=2), affine, stacked)
    found = _load(tmp_path, plane, affine, XRAY)
    assert found.shape == (16, 24, 1)
    # Repeated slices differ at float32 rounding; the z-score is over eight copies of the same values.
    np.testing.assert_allclose(found[..., 0], whole[..., 4], atol=1e-3)


def test_several_slices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteDataError, match=r"FH-DATA-028.*row 7 has 3 slices"):
        _load(tmp_path, _pixels((16, 24, 3)), AFFINE, XRAY)


def test_another_field_of_view_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteDataError, match="FH-DATA-023"):
        _load(tmp_path, _pixels((64, 24, 1)), AFFINE, XRAY)


@pytest.mark.parametrize(
    ("shape", "is_known"),
    [((8, 512, 1), True), ((7, 8, 1), False), ((8, 1, 8), False), ((8, 8, 2), False)],
)
def test_only_the_last_side_may_be_one(shape: tuple[int, int, int], *, is_known: bool) -> None:
    config = {"kind": "volume", "name": "xray", "shape": shape, "spacing_mm": (1, 1, 1)}
    if is_known:
        assert VolumeConfig.model_validate(config).shape == shape
    else:
        with pytest.raises(ValueError, match="or the last one 1 for 2D images"):
            VolumeConfig.model_validate(config)
