"""Who trains, who validates, who tests: one side for each patient, for ever.

Called by training and by `check`. A patient's side depends on the study's seed and the patient's
own id, on nothing else. Adding, removing or reordering patients therefore moves nobody, which also
keeps the promise of add-or-remove-one differential privacy: without this, one more patient could
push another one into the training side. The price is that the sides have their planned sizes only
on average and are not stratified; `check` shows what came out.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable

from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import SplitName, SplitPlan
from fedhealth.errors import SiteDataError

_HASH_BITS = 256


def split_patients(cohort: Cohort) -> dict[SplitName, tuple[Patient, ...]]:
    """The three sides, each in the cohort's order; together they are the cohort.

    All records of a patient are on one side: it depends on the id.

    `cohort.fixed_split` replaces the seeded split where the site package gives one.

    Raises:
        SiteDataError: FH-DATA-010 a patient has more records than the contract allows, FH-DATA-040 the
            fixed split leaves a patient out.
    """
    limit = cohort.contract.records_per_patient
    records = Counter(patient.patient_id for patient in cohort.patients)
    too_many = sum(count > limit for count in records.values())
    if too_many:
        raise SiteDataError(
            "FH-DATA-010",
            f"{too_many} patients are in the cohort more than {'once' if limit == 1 else f'{limit} times'}.",
            why="The study's data contract says how many records one patient may have.",
            fix=f"Return at most {limit} for each patient, or raise data.records_per_patient in study.yaml.",
        )
    sides = _fixed_sides(cohort) if cohort.fixed_split is not None else _seeded_sides(cohort)
    groups: dict[SplitName, list[Patient]] = {name: [] for name in SplitName}
    for patient, side in zip(cohort.patients, sides, strict=True):
        groups[side].append(patient)
    return {name: tuple(patients) for name, patients in groups.items()}


def side_of(patient_id: str, plan: SplitPlan) -> SplitName:
    """The side of one patient: a keyed hash of the id against the plan's fractions.

    HMAC-SHA-256, uniform on [0, 1), keyed with the seed: who knows the study can compute the side
    of an id that they know, so the split is not a secret, and nothing about a patient can be told
    from it.
    """
    key = f"fedhealth-split-v1:{plan.seed}".encode()
    digest = hmac.new(key, patient_id.encode(), hashlib.sha256).digest()
    position = int.from_bytes(digest, "big") / 2**_HASH_BITS
    if position < plan.train:
        return SplitName.TRAIN
    if position < plan.train + plan.validation:
        return SplitName.VALIDATION
    return SplitName.TEST


def _seeded_sides(cohort: Cohort) -> Iterable[SplitName]:
    return [side_of(patient.patient_id, cohort.contract.split) for patient in cohort.patients]


def _fixed_sides(cohort: Cohort) -> Iterable[SplitName]:
    fixed = cohort.fixed_split or {}
    left_out = sum(patient.patient_id not in fixed for patient in cohort.patients)
    if left_out:
        raise SiteDataError(
            "FH-DATA-040",
            f"the site's fixed split leaves {left_out} patients without a side.",
            why="A patient without a side would be neither trained on nor tested on, unnoticed.",
            fix="Give every patient of the cohort a side, or no fixed split at all.",
        )
    return [SplitName(fixed[patient.patient_id]) for patient in cohort.patients]
