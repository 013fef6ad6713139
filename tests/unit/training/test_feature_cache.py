"""Features of frozen encoders outlive the process: found by content, never trusted when damaged, bounded."""

import logging
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from fedhealth.contracts.data import SplitName, VolumeModality
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import PatientDataset
from fedhealth.data.feature_cache import FeatureCache, content_key
from fedhealth.data.split import split_patients
from fedhealth.data.volume_cache import VolumeCache
from fedhealth.data.volumes import NiftiVolume
from fedhealth.training.frozen_encoders import apply_frozen_encoders, encoder_digest
from fedhealth.training.learner import Learner
from fedhealth.training.supervised import SupervisedTraining

FROZEN = {
    "name": "multimodal",
    "options": {"image_widths": [4, 8], "embedding_size": 4, "freeze_image_encoder": True},
}


class _Counting:
    """An encoder that counts the volumes that it sees."""

    def __init__(self) -> None:
        self.num_seen = 0

    def __call__(self, volumes: Tensor) -> Tensor:
        self.num_seen += len(volumes)
        return volumes.flatten(1)[:, :3] * 2


def _encode(
    tiny: Any, patients: Any, cache: FeatureCache | None, *, batch_size: int = 4
) -> tuple[int, Tensor]:
    study = tiny.study()
    dataset = PatientDataset(patients, study.data.to_contract(seed=study.seed))
    encoder = _Counting()
    caches = None if cache is None else {"mri": cache}
    dataset.encode_volumes({"mri": encoder}, batch_size=batch_size, caches=caches)
    return encoder.num_seen, dataset.batch(range(len(patients))).volumes["mri"]


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(folder=tmp_path / "features", encoder_digest="a" * 64)


def _num_volumes(patients: Any) -> int:
    return sum("mri" in patient.volumes for patient in patients)


def test_a_second_start_encodes_nothing_and_gives_the_same_bits(
    tiny: Any, cache: FeatureCache
) -> None:
    patients = tiny.patients(20)
    _, expected = _encode(tiny, patients, None)
    first, cold = _encode(tiny, patients, cache)
    second, warm = _encode(tiny, patients, cache)
    assert (first, second) == (_num_volumes(patients), 1)  # one made-up volume tells the width
    assert torch.equal(cold, expected)
    assert torch.equal(warm, expected)


def test_only_volumes_that_are_new_or_changed_are_encoded(tiny: Any, cache: FeatureCache) -> None:
    patients = [patient for patient in tiny.patients(20) if patient.volumes]
    _encode(tiny, patients[:-2], cache)
    changed = patients[0].volumes["mri"].values.copy()
    changed[0, 0, 0] += 1
    volume = type(patients[0].volumes["mri"])(changed)
    patients[0] = replace(patients[0], volumes={"mri": volume})
    seen, found = _encode(tiny, patients, cache)
    assert seen == 3
    assert torch.equal(found, _encode(tiny, patients, None)[1])
    assert _encode(tiny, patients, cache)[0] == 1


def test_both_sides_of_a_split_share_one_file(tiny: Any, cache: FeatureCache) -> None:
    patients = tiny.patients(20)
    _encode(tiny, patients[:10], cache)
    _encode(tiny, patients[10:], cache)
    assert _encode(tiny, patients, cache)[0] == 1
    assert len(list(cache.folder.iterdir())) == 1


def test_the_file_is_the_account_s_only(tiny: Any, cache: FeatureCache) -> None:
    _encode(tiny, tiny.patients(5), cache)
    (path,) = cache.folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("position", [0, 200, -1])
def test_a_damaged_file_is_noticed_and_computed_again(
    tiny: Any, cache: FeatureCache, caplog: pytest.LogCaptureFixture, position: int
) -> None:
    patients = tiny.patients(20)
    _, expected = _encode(tiny, patients, cache)
    (path,) = cache.folder.iterdir()
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        seen, found = _encode(tiny, patients, cache)
    assert seen == _num_volumes(patients)
    assert torch.equal(found, expected)
    assert "feature_cache_damaged" in caplog.text
    assert _encode(tiny, patients, cache)[0] == 1


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100])
def test_a_cut_off_file_is_no_file(cache: FeatureCache, content: bytes) -> None:
    cache.folder.mkdir()
    cache._path.write_bytes(content)
    assert cache.load() == {}


def test_a_folder_that_cannot_be_written_costs_time_only(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = FeatureCache(folder=tmp_path / "file" / "features", encoder_digest="a" * 64)
    with caplog.at_level(logging.WARNING):
        seen, _ = _encode(tiny, tiny.patients(5), cache)
    assert seen == _num_volumes(tiny.patients(5))
    assert "feature_cache_not_written" in caplog.text


def _entries(count: int, first: int = 0) -> dict[bytes, Any]:
    return {
        number.to_bytes(32, "big"): np.full(8, number, dtype=np.float32)
        for number in range(first, first + count)
    }


def test_the_folder_is_bounded_and_the_longest_unused_file_goes_first(tmp_path: Path) -> None:
    caches = [
        FeatureCache(folder=tmp_path, encoder_digest=letter * 64, limit_bytes=4000)
        for letter in "abc"
    ]
    for age, cache in enumerate(caches[:2]):
        cache.store(_entries(20), used=())
        os.utime(cache._path, (age, age))
    assert len(caches[0].load()) == 20  # used just now
    caches[2].store(_entries(20), used=())
    assert [len(cache.load()) for cache in caches] == [20, 0, 20]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000 + 32


def test_a_file_that_grows_too_large_keeps_what_is_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(folder=tmp_path, encoder_digest="a" * 64, limit_bytes=2000)
    used = _entries(10, first=95)
    cache.store(_entries(105), used=used)
    assert set(cache.load()) == set(used)
    cache.store(_entries(200), used=_entries(200))
    assert set(cache.load()) == set(used)
    assert "feature_cache_not_written error=limit" in caplog.text


def test_a_digest_changes_with_weights_layers_and_device() -> None:
    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3))

    cpu = torch.device("cpu")
    first, other, strided = make(), make(), make()
    assert encoder_digest(first, cpu) == encoder_digest(other, cpu)
    with torch.no_grad():
        next(other.parameters())[0, 0, 0, 0, 0] += 1e-6
    strided[0].stride = (2, 2, 2)  # type: ignore[index]  # torch types Sequential loosely
    digests = {encoder_digest(encoder, cpu) for encoder in (first, other, strided)}
    assert len({*digests, encoder_digest(first, torch.device("cuda"))}) == 4


def test_a_nifti_volume_s_key_follows_its_file_and_its_grid(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"

    def write(value: float) -> None:
        data = np.zeros((8, 8, 8), dtype=np.float32)
        data[0] = value
        nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])).to_filename(path)

    def key(spacing: float) -> bytes:
        grid = VolumeModality(name="mri", shape=(8, 8, 8), spacing_mm=(spacing,) * 3)
        return content_key(NiftiVolume(path, grid, VolumeCache(tmp_path / "cache"), row=1))

    write(1)
    first = key(2.0)
    assert first == key(2.0)
    assert first != key(2.5)
    write(2)
    assert first != key(2.0)
    assert not (tmp_path / "cache").exists()


def test_a_session_reads_what_an_earlier_process_has_computed(tiny: Any, tmp_path: Path) -> None:
    study = tiny.study(model=FROZEN)
    run, method, patients = study.run("plain"), SupervisedTraining(), tiny.patients(30)
    site = tiny.site(tmp_path, study, patients)
    spec = TensorSpec.of(method.initial_tensors(study, run))
    method.open_session(study, run, spec, site)
    (file,) = (site.cache_dir / "features").iterdir()
    content = file.read_bytes()
    dataset = PatientDataset(patients, study.data.to_contract(seed=study.seed))
    # Another process: the encoder comes from the study again, and so does its digest.
    learner, fresh = Learner(study, run), Learner(study, run)
    apply_frozen_encoders(learner, [dataset], batch_size=8, cache_dir=site.cache_dir)
    plain = PatientDataset(patients, learner.contract)
    apply_frozen_encoders(fresh, [plain], batch_size=64)
    found, expected = (one.batch(range(30)).volumes["mri"] for one in (dataset, plain))
    torch.testing.assert_close(found, expected)
    sides = split_patients(site.load_cohort())
    in_session = {p.patient_id for s in (SplitName.TRAIN, SplitName.VALIDATION) for p in sides[s]}
    more = {p.patient_id for p in patients if p.volumes} - in_session
    added = len(file.read_bytes()) - len(content)
    assert added == len(more) * (
        32 + 4 * 4
    )  # a key and four float32 each; nothing was written twice
