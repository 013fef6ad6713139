"""Tensors of a modality, and where they lie in the flat vector."""

import numpy as np
import pytest

from fedhealth.contracts.blocks import ModalityBlock, blocks_of, ranges_of
from fedhealth.contracts.tensors import TensorSpec

SHAPES = {"enc.mri.w": 6, "enc.mri.b": 2, "fusion.w": 5, "enc.ehr.w": 3, "control.enc.mri.w": 6}
SPEC = TensorSpec.of({name: np.zeros(size, dtype=np.float32) for name, size in SHAPES.items()})
PREFIXES = {"mri": ("enc.mri.",), "ehr": ("enc.ehr.",)}


def test_a_block_holds_its_modalitys_tensors_and_what_shadows_them() -> None:
    assert blocks_of(SPEC, PREFIXES) == (
        ModalityBlock(modality="mri", tensors=("enc.mri.w", "enc.mri.b", "control.enc.mri.w")),
        ModalityBlock(modality="ehr", tensors=("enc.ehr.w",)),
    )


def test_a_modality_of_which_nothing_travels_has_no_block() -> None:
    assert blocks_of(SPEC, {"pet": ("enc.pet.",), "labs": ()}) == ()


def test_a_tensor_of_two_modalities_is_refused() -> None:
    with pytest.raises(ValueError, match="two modalities"):
        blocks_of(SPEC, {"mri": ("enc.",), "ehr": ("enc.ehr.",)})


def test_ranges_cover_exactly_the_named_tensors() -> None:
    marked = np.zeros(SPEC.num_elements, dtype=np.float32)
    tensors = blocks_of(SPEC, PREFIXES)[0].tensors
    parts = list(ranges_of(SPEC, tensors))
    assert parts == [slice(0, 8), slice(16, 22)]
    for part in parts:
        marked[part] += 1
    for name, values in SPEC.views(marked):
        assert (values == (1 if name in tensors else 0)).all()
    assert list(ranges_of(SPEC, ())) == []
