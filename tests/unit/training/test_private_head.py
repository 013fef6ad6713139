import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import TrainingError
from fedhealth.training.private_head import KEPT_ROUNDS, HeadStore, Tensors, kept_files


def _head(value: float) -> Tensors:
    return {
        "head.weight": np.full((1, 3), value, dtype=np.float32),
        "head.bias": np.full(1, value, dtype=np.float32),
    }


def _store(folder: Path) -> HeadStore:
    return HeadStore(folder, TensorSpec.of(_head(0)))


def _value(found: tuple[int, Tensors] | None) -> tuple[int, float] | None:
    return None if found is None else (found[0], float(found[1]["head.bias"][0]))


def test_an_empty_store_has_no_head_and_makes_no_folder(tmp_path: Path) -> None:
    assert _store(tmp_path / "heads").newest() is None
    assert not (tmp_path / "heads").exists()


def test_heads_come_back_by_round(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for number in (1, 2, 3):
        store.save(number, _head(number))
    assert _value(_store(tmp_path).newest()) == (3, 3.0)
    assert _value(store.newest(before_round=3)) == (2, 2.0)
    assert store.newest(before_round=1) is None


def test_a_repeated_round_removes_the_heads_after_it(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for number in (1, 2, 3):
        store.save(number, _head(number))
    store.save(2, _head(20))
    assert _value(store.newest()) == (2, 20.0)


def test_old_heads_are_removed(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for number in range(1, KEPT_ROUNDS + 6):
        store.save(number, _head(number))
    assert len(list(tmp_path.iterdir())) == KEPT_ROUNDS


def test_a_leftover_of_a_crash_is_not_a_head(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.save(1, _head(1))
    (tmp_path / "head_00002.tmp").write_bytes(b"half")
    assert _value(store.newest()) == (1, 1.0)


def test_files_are_private(tmp_path: Path) -> None:
    _store(tmp_path / "heads").save(1, _head(1))
    (file,) = (tmp_path / "heads").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["truncate", "flip a bit", "other model"])
def test_a_damaged_head_is_refused(tmp_path: Path, damage: str) -> None:
    _store(tmp_path).save(1, _head(1))
    (file,) = tmp_path.iterdir()
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:20])
        store = _store(tmp_path)
    elif damage == "flip a bit":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        store = _store(tmp_path)
    else:
        store = HeadStore(tmp_path, TensorSpec.of({"head.weight": np.zeros(2, dtype=np.float32)}))
    with pytest.raises(TrainingError, match="FH-TRAIN-006"):
        store.newest()


def test_a_file_of_before_there_was_a_digest_is_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file(_head(3), tmp_path / "head_00002.safetensors")
    assert _value(_store(tmp_path).newest()) == (2, 3.0)
    assert _store(tmp_path).trained_from(2) is None


def test_kept_files_are_listed_by_round_and_damaged_ones_are_told_apart(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for number in (1, 2):
        store.save(number, _head(number), model_sha256="a" * 64)
    path = tmp_path / "head_00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "head_00003.tmp").write_bytes(b"half")
    found = kept_files(tmp_path)
    assert [(k.round_number, k.is_readable) for k in found] == [(1, False), (2, True)]
    assert [k.model_sha256 for k in found] == [None, "a" * 64]
    assert found[1].size_bytes == (tmp_path / "head_00002.safetensors").stat().st_size
    assert kept_files(tmp_path / "nothing") == []
