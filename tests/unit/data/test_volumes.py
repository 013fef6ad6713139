import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedhealth.contracts.data import VolumeModality
from fedhealth.data import nifti
from fedhealth.data.volume_cache import VolumeCache
from fedhealth.data.volumes import NiftiVolume
from fedhealth.errors import SiteDataError

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def cache(tmp_path: Path) -> VolumeCache:
    return VolumeCache(tmp_path / "cache")


def voxels(shape: tuple[int, ...] = (8, 10, 12), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, size=shape).astype(np.float32)


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


def volume(path: Path, modality: VolumeModality, cache: VolumeCache) -> NiftiVolume:
    return NiftiVolume(path, modality, cache, row=7)


def load(path: Path, modality: VolumeModality, cache: VolumeCache) -> np.ndarray:
    lazy = volume(path, modality, cache)
    lazy.check_header()
    return lazy.load()


def refused(path: Path, modality: VolumeModality, cache: VolumeCache) -> str:
    with pytest.raises(SiteDataError) as caught:
        load(path, modality, cache)
    text = str(caught.value)
    assert "row 7" in text
    assert str(path.parent) not in text
    assert path.name not in text
    assert not list(cache.folder.glob("*")) if cache.folder.exists() else True
    return caught.value.code


def z_score(data: np.ndarray) -> np.ndarray:
    wide = data.astype(np.float64)
    return (wide - wide.mean()) / wide.std()


@pytest.mark.parametrize("name", ["v.nii.gz", "v.nii"])
def test_a_volume_on_the_grid_is_only_z_scored(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache, name: str
) -> None:
    data = voxels()
    result = load(write(tmp_path / name, data), volume_modality, cache)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, z_score(data), atol=1e-5)


def test_scaled_integers_and_both_byte_orders_are_read(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    stored = np.random.default_rng(1).integers(0, 4000, size=(8, 10, 12)).astype(np.int16)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(stored, AFFINE, header=header)
    image.header.set_slope_inter(0.5, -1000)
    image.to_filename(tmp_path / "v.nii.gz")
    assert nib.load(tmp_path / "v.nii.gz").header.endianness == ">"
    expected = z_score(np.asarray(nib.load(tmp_path / "v.nii.gz").dataobj))
    result = load(tmp_path / "v.nii.gz", volume_modality, cache)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_nifti_2_and_a_fourth_axis_of_one_are_read(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    data = voxels((8, 10, 12, 1))
    nib.Nifti2Image(data, AFFINE).to_filename(tmp_path / "v.nii.gz")
    result = load(tmp_path / "v.nii.gz", volume_modality, cache)
    np.testing.assert_allclose(result, z_score(data[..., 0]), atol=1e-5)


@pytest.mark.parametrize("axes", ["LPS", "PIR", "SLA"])
def test_another_orientation_is_brought_to_the_contract_as_nibabel_does(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache, axes: str
) -> None:
    data = voxels()
    canonical = nib.Nifti1Image(data, AFFINE)
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
    )
    turned = canonical.as_reoriented(change)
    assert nib.aff2axcodes(turned.affine) == tuple(axes)
    turned.to_filename(tmp_path / "v.nii.gz")
    result = load(tmp_path / "v.nii.gz", volume_modality, cache)
    np.testing.assert_allclose(result, z_score(data), atol=1e-5)


def test_another_spacing_is_resampled_to_the_same_anatomy(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    """A smooth ramp along i, sampled twice as densely, gives the ramp again (antialiasing bends the ends)."""
    fine = np.broadcast_to(np.arange(16.0)[:, None, None], (16, 20, 24)).astype(np.float32)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    result = load(write(tmp_path / "v.nii.gz", fine, affine), volume_modality, cache)
    profile = result.mean(axis=(1, 2))
    assert (np.diff(profile) > 0).all()
    steps = np.diff(profile)[1:-1]
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.05)


def test_a_smaller_field_of_view_is_padded_with_background(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    data = voxels((6, 8, 10)) + 500
    result = load(write(tmp_path / "v.nii.gz", data), volume_modality, cache)
    padded = np.full((8, 10, 12), data.min())
    padded[1:7, 1:9, 1:11] = data
    np.testing.assert_allclose(result, z_score(padded), atol=1e-4)


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_another_body_region_or_unit_is_refused(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache, factor: float
) -> None:
    path = write(tmp_path / "v.nii.gz", voxels(), np.diag([2 * factor, 2.0, 2.0, 1.0]))
    assert refused(path, volume_modality, cache) == "FH-DATA-023"


def test_a_truncated_volume_is_refused_with_its_code(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    path = write(tmp_path / "v.nii.gz", voxels())
    path.write_bytes(path.read_bytes()[:-2000])
    assert refused(path, volume_modality, cache) == "FH-DATA-021"


def test_an_uncompressed_truncated_volume_is_refused_before_it_is_loaded(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    path = write(tmp_path / "v.nii", voxels())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SiteDataError, match="FH-DATA-021"):
        volume(path, volume_modality, cache).check_header()


def test_a_flipped_bit_in_a_compressed_volume_is_refused(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    path = write(tmp_path / "v.nii.gz", voxels())
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the CRC itself: the voxels still unpack
    path.write_bytes(content)
    assert refused(path, volume_modality, cache) == "FH-DATA-020"


@pytest.mark.parametrize(
    "content", [b"", b"not a volume", gzip.compress(b"x" * 1000)], ids=["empty", "text", "gzip"]
)
def test_what_is_no_nifti_is_refused(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache, content: bytes
) -> None:
    (tmp_path / "v.nii.gz").write_bytes(content)
    assert refused(tmp_path / "v.nii.gz", volume_modality, cache) == "FH-DATA-020"


def with_header(path: Path, **fields: object) -> Path:
    """The file with header fields overwritten behind nibabel's back."""
    content = bytearray(gzip.decompress(write(path, voxels()).read_bytes()))
    header = np.frombuffer(content[:348], dtype=nib.nifti1.header_dtype).copy()
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    return path


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("FH-DATA-021", {"dim": [3, 16, 10, 12, 1, 1, 1, 1]}),  # twice as many as there are
        ("FH-DATA-021", {"dim": [3, 600, 600, 600, 1, 1, 1, 1]}),  # no gzip could hold that
        ("FH-DATA-027", {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}),
        ("FH-DATA-022", {"dim": [3, 4, 5, 6, 1, 1, 1, 1]}),
        ("FH-DATA-022", {"dim": [3, -8, 10, 12, 1, 1, 1, 1]}),
        ("FH-DATA-022", {"dim": [4, 8, 10, 3, 4, 1, 1, 1]}),
        ("FH-DATA-022", {"dim": [1, 960, 1, 1, 1, 1, 1, 1]}),
        ("FH-DATA-023", {"dim": [2, 8, 120, 1, 1, 1, 1, 1]}),  # one slice of a volume
        ("FH-DATA-022", {"sform_code": 0, "qform_code": 0}),
        ("FH-DATA-022", {"srow_x": [0, 0, 0, 0]}),
        ("FH-DATA-022", {"srow_x": [np.nan, 0, 0, 0]}),
        ("FH-DATA-022", {"vox_offset": 1e9}),
        ("FH-DATA-022", {"datatype": 32, "bitpix": 64}),  # complex
        ("FH-DATA-022", {"datatype": 128, "bitpix": 24}),  # RGB
        ("FH-DATA-022", {"magic": b"ni1"}),
    ],
    ids=str,
)
def test_a_header_that_lies_or_cannot_be_used_is_refused_with_its_code(
    tmp_path: Path,
    volume_modality: VolumeModality,
    cache: VolumeCache,
    code: str,
    fields: dict[str, object],
) -> None:
    path = with_header(tmp_path / "v.nii.gz", **fields)
    assert refused(path, volume_modality, cache) == code


def test_a_lying_header_is_refused_before_its_size_is_allocated(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    path = with_header(tmp_path / "v.nii.gz", dim=[3, 600, 600, 600, 1, 1, 1, 1])
    with pytest.raises(SiteDataError, match="FH-DATA-021"):
        volume(path, volume_modality, cache).check_header()


def test_a_compressed_bomb_is_read_no_further_than_its_header_says(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    content = gzip.decompress(write(tmp_path / "v.nii.gz", voxels()).read_bytes())
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(content + bytes(50_000_000)))
    assert refused(tmp_path / "v.nii.gz", volume_modality, cache) == "FH-DATA-022"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_not_finite_is_refused(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache, bad: float
) -> None:
    data = voxels()
    data[3, 4, 5] = bad
    assert refused(write(tmp_path / "v.nii", data), volume_modality, cache) == "FH-DATA-024"


@pytest.mark.parametrize("value", [0.0, 7.0, 1e30])
def test_a_volume_of_one_value_is_refused(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache, value: float
) -> None:
    data = np.full((8, 10, 12), value, dtype=np.float32)
    assert refused(write(tmp_path / "v.nii.gz", data), volume_modality, cache) == "FH-DATA-025"


def test_more_voxels_than_the_limit_are_refused(
    tmp_path: Path,
    volume_modality: VolumeModality,
    cache: VolumeCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nifti, "MAX_VOXELS", 100)
    assert refused(write(tmp_path / "v.nii", voxels()), volume_modality, cache) == "FH-DATA-027"


def test_a_file_that_went_away_is_refused_without_its_path(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    assert refused(tmp_path / "DOE-JOHN.nii.gz", volume_modality, cache) == "FH-DATA-020"


def test_a_second_load_comes_from_the_cache_and_is_the_same(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    path = write(tmp_path / "v.nii.gz", voxels())
    first = load(path, volume_modality, cache)
    (entry,) = cache.folder.iterdir()
    written = entry.stat().st_mtime_ns
    np.testing.assert_array_equal(load(path, volume_modality, cache), first)
    assert entry.stat().st_mtime_ns == written


def test_cache_entries_are_private_and_named_without_the_patient(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    load(write(tmp_path / "DOE-JOHN.nii.gz", voxels()), volume_modality, cache)
    (entry,) = cache.folder.iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert "DOE" not in entry.name
    assert b"DOE" not in entry.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "pickle"])
def test_a_corrupted_cache_entry_is_rebuilt(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache, damage: str
) -> None:
    path = write(tmp_path / "v.nii.gz", voxels())
    first = load(path, volume_modality, cache)
    (entry,) = cache.folder.iterdir()
    good = entry.read_bytes()
    flipped = bytearray(good)
    flipped[500] ^= 4
    bad = {"cut": good[:300], "flip": bytes(flipped), "empty": b"", "pickle": b"\x80\x04N."}
    entry.write_bytes(bad[damage])
    np.testing.assert_array_equal(load(path, volume_modality, cache), first)
    assert entry.read_bytes() == good


def test_a_changed_file_and_another_grid_have_their_own_cache_entries(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    path = write(tmp_path / "v.nii.gz", voxels())
    lazy = volume(path, volume_modality, cache)
    first = lazy.load()
    write(path, voxels(seed=5))
    assert not np.array_equal(lazy.load(), first)
    other = VolumeModality(name="mri", shape=(8, 8, 8), spacing_mm=(2.0, 2.5, 3.0))
    assert load(path, other, cache).shape == (8, 8, 8)
    assert len(list(cache.folder.iterdir())) == 3


def test_a_cache_that_cannot_be_written_changes_nothing(
    tmp_path: Path, volume_modality: VolumeModality
) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    data = voxels()
    path = write(tmp_path / "v.nii.gz", data)
    result = load(path, volume_modality, VolumeCache(tmp_path / "file" / "cache"))
    np.testing.assert_allclose(result, z_score(data), atol=1e-5)


def test_a_loaded_volume_cannot_be_changed_by_accident(
    tmp_path: Path, volume_modality: VolumeModality, cache: VolumeCache
) -> None:
    result = load(write(tmp_path / "v.nii.gz", voxels()), volume_modality, cache)
    with pytest.raises(ValueError, match="read-only"):
        result[0, 0, 0] = 1.0
