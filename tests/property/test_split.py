"""Who is on which side of a split, for any cohort."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import Column, DataContract, SplitName, SplitPlan, TableModality
from fedhealth.data.split import side_of, split_patients
from fedhealth.errors import SiteDataError

ids = st.lists(st.text("abcdef0123456789-", min_size=1, max_size=12), unique=True, max_size=40)
seeds = st.integers(0, 2**31 - 1)
PLAN = SplitPlan(train=0.7, validation=0.1, test=0.2, seed=0)


def cohort(patient_ids: Iterable[str], seed: int = 0) -> Cohort:
    column = Column(name="x", dtype="float", minimum=0, maximum=1)
    contract = DataContract(
        patient_id_column="patient_id",
        label_column="label",
        label_codes=(0, 1),
        modalities=(TableModality(name="t", columns=(column,)),),
        split=SplitPlan(train=0.7, validation=0.1, test=0.2, seed=seed),
    )
    patients = tuple(
        Patient(patient_id=i, label=len(i) % 2, tables={"t": np.zeros(1)}, volumes={})
        for i in patient_ids
    )
    return Cohort(contract=contract, patients=patients)


def sides(split: dict[SplitName, tuple[Patient, ...]]) -> dict[str, SplitName]:
    return {patient.patient_id: name for name, group in split.items() for patient in group}


@given(ids, seeds)
def test_every_patient_is_on_exactly_one_side(patient_ids: list[str], seed: int) -> None:
    split = split_patients(cohort(patient_ids, seed))
    together = [patient.patient_id for group in split.values() for patient in group]
    assert sorted(together) == sorted(patient_ids)
    assert set(split) == set(SplitName)


@given(ids, seeds, st.randoms())
def test_the_order_of_patients_moves_nobody(patient_ids: list[str], seed: int, random) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    shuffled = random.sample(patient_ids, len(patient_ids))
    assert sides(split_patients(cohort(patient_ids, seed))) == sides(
        split_patients(cohort(shuffled, seed))
    )


@given(ids, seeds, st.integers(0, 39))
def test_adding_or_removing_a_patient_moves_nobody_else(
    patient_ids: list[str], seed: int, which: int
) -> None:
    fewer = [i for position, i in enumerate(patient_ids) if position != which]
    all_sides = sides(split_patients(cohort(patient_ids, seed)))
    assert sides(split_patients(cohort(fewer, seed))) == {i: all_sides[i] for i in fewer}


def test_sides_are_as_large_as_planned_on_average() -> None:
    drawn = [side_of(f"p{i}", PLAN) for i in range(20_000)]
    for name, share in ((SplitName.TRAIN, 0.7), (SplitName.VALIDATION, 0.1), (SplitName.TEST, 0.2)):
        # Four standard deviations of a binomial share of 20 000.
        assert abs(drawn.count(name) / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


def test_another_seed_gives_another_split() -> None:
    people = [f"p{i}" for i in range(200)]
    assert sides(split_patients(cohort(people, 1))) != sides(split_patients(cohort(people, 2)))


def test_a_split_never_changes_between_versions() -> None:
    """A side that moved with an upgrade would put test patients into training."""
    drawn = [side_of(f"p{i}", PLAN).value[:2] for i in range(12)]
    assert drawn == ["va", "va", "tr", "tr", "tr", "tr", "tr", "tr", "va", "va", "te", "tr"]


def test_a_fixed_split_replaces_the_seeded_one() -> None:
    people = ["a", "b", "c"]
    fixed = dict(zip(people, (SplitName.TEST, SplitName.TEST, SplitName.TRAIN), strict=True))
    base = cohort(people)
    split = split_patients(
        Cohort(contract=base.contract, patients=base.patients, fixed_split=fixed)
    )
    assert sides(split) == fixed


def test_a_fixed_split_that_leaves_a_patient_out_is_refused() -> None:
    base = cohort(["a", "DOE-JOHN"])
    partial = Cohort(
        contract=base.contract, patients=base.patients, fixed_split={"a": SplitName.TRAIN}
    )
    with pytest.raises(SiteDataError, match="FH-DATA-040") as caught:
        split_patients(partial)
    assert "DOE" not in str(caught.value)
