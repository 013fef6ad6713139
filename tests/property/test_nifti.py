"""No header, however damaged, makes the volume reader do anything but read or refuse."""

import io

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.data.nifti import read_voxels
from fedhealth.errors import SiteDataError

SHAPE = (4, 5, 6)


def valid_file(kind: type[nib.Nifti1Image]) -> bytes:
    image = kind(np.arange(120, dtype=np.int16).reshape(SHAPE), np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header.set_slope_inter(0.5, 1.0)
    buffer = io.BytesIO()
    image.to_stream(buffer)
    return buffer.getvalue()


FILES = (valid_file(nib.Nifti1Image), valid_file(nib.Nifti2Image))
changes = st.lists(st.tuples(st.integers(0, 560), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=400)
@given(st.sampled_from(FILES), changes)
def test_a_damaged_header_is_read_or_refused(content: bytes, damage: list[tuple[int, int]]) -> None:
    damaged = bytearray(content)
    for position, value in damage:
        damaged[position] = value
    try:
        voxels, header = read_voxels(bytes(damaged), is_compressed=False, where="volume")
    except SiteDataError:
        return
    assert voxels.shape == header.shape
    assert voxels.nbytes <= 4 * len(content)


@given(st.sampled_from(FILES), st.integers(0, 800))
def test_a_cut_file_is_refused(content: bytes, length: int) -> None:
    kept = min(length, len(content) - 1)
    with pytest.raises(SiteDataError, match=r"FH-DATA-02[01]"):
        read_voxels(content[:kept], is_compressed=False, where="volume")
