"""Laws that metrics of survival and of masks keep, whatever the patients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhealth.contracts.data import DataContract, MaskLabel, SplitPlan, VolumeModality
from fedhealth.models.segmentation import Segmentation
from fedhealth.models.survival_metrics import concordance, integrated_brier

GRID = VolumeModality(name="t1", shape=(2, 2, 2), spacing_mm=(1.0, 1.0, 1.0))
PATIENTS = st.lists(
    st.tuples(st.integers(-5, 5), st.integers(1, 9), st.booleans()), min_size=2, max_size=12
)
VOXELS = st.lists(st.integers(0, 2), min_size=8, max_size=8)


@given(PATIENTS)
def test_concordance_sees_order_only_and_turns_with_it(
    patients: list[tuple[int, int, bool]],
) -> None:
    risks, times, events = np.array(patients, dtype=np.float64).T
    once = np.ones((1, len(patients)))
    (found,) = concordance(risks, times, events, once)
    (stretched,) = concordance(np.exp(risks), 3 * times, events, once)
    (turned,) = concordance(-risks, times, events, once)
    assert stretched == pytest.approx(found, nan_ok=True)
    assert found + turned == pytest.approx(1, nan_ok=True) or np.isnan(found)
    assert np.isnan(found) or 0 <= found <= 1


@given(PATIENTS, st.floats(0, 1), st.floats(0, 1))
def test_the_integrated_brier_score_is_a_share(
    patients: list[tuple[int, int, bool]], early: float, late: float
) -> None:
    _, times, events = np.array(patients, dtype=np.float64).T
    curve = np.tile([max(early, late), min(early, late)], (len(patients), 1))
    found = integrated_brier(curve, np.array([2.5, 6.0]), times, events)
    assert found is None or -1e-12 <= found <= 1 + 1e-12


@given(VOXELS, VOXELS)
def test_dice_is_symmetric_and_one_only_for_the_mask_itself(
    one: list[int], other: list[int]
) -> None:
    contract = DataContract(
        patient_id_column="p",
        label_column="",
        label_codes=(),
        modalities=(GRID,),
        split=SplitPlan(train=0.6, validation=0.2, test=0.2, seed=0),
        target=MaskLabel(name="lesion", codes=(0, 1, 2), grid=GRID),
    )
    task = Segmentation(contract, {})
    a, b = (np.array(v, dtype=np.float32).reshape(1, 2, 2, 2) for v in (one, other))
    (found,) = task.record_values(a, b)["dice"]
    (turned,) = task.record_values(b, a)["dice"]
    assert found == turned
    assert 0 <= found <= 1
    assert (found == 1) == (one == other)
