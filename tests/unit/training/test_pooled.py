"""Pooled data: the same tuning as training alone, on everybody's patients; nobody's test patients are learnt from."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fedhealth.contracts.data import SplitName
from fedhealth.data.split import split_patients
from fedhealth.training.judging import held_out_ids, missing_shares
from fedhealth.training.pooled import POOL, train_pooled_tuned
from fedhealth.training.tuned_alone import train_alone_tuned

FROZEN = {
    "name": "multimodal",
    "options": {"image_widths": [4, 8], "embedding_size": 4, "freeze_image_encoder": True},
}


def test_a_pool_of_one_site_is_that_site_alone(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study(model=FROZEN)
    site = tiny.site(tmp_path, study, tiny.patients(24), site_id=POOL)
    run = study.run("heads")
    alone = train_alone_tuned(study, run, site).scores
    pooled = train_pooled_tuned(study, run, {"site-a": site})["site-a"]
    np.testing.assert_array_equal(pooled.probabilities, alone.probabilities)


def test_two_sites_with_the_same_ids_are_other_people_and_test_patients_stay_out(
    tmp_path: Path, tiny: Any
) -> None:
    study = tiny.study(model=FROZEN)
    patients = tiny.patients(20), tiny.patients(20, seed=1)

    def pooled(second: Any) -> Any:
        sites = {
            name: tiny.site(tmp_path / name, study, group)
            for name, group in (("site-a", patients[0]), ("site-b", second))
        }
        return train_pooled_tuned(study, study.run("plain"), sites)

    first = pooled(patients[1])
    site_b = tiny.site(tmp_path, study, patients[1])
    held_out = {p.patient_id for p in split_patients(site_b.load_cohort())[SplitName.TEST]}
    changed = tuple(
        dataclasses.replace(p, label=1 - p.label) if p.patient_id in held_out else p
        for p in patients[1]
    )
    again = pooled(changed)
    for name in ("site-a", "site-b"):
        np.testing.assert_array_equal(again[name].probabilities, first[name].probabilities)
    np.testing.assert_array_equal(again["site-b"].labels, 1 - first["site-b"].labels)


def test_owners_of_scores_are_the_test_patients_in_order(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study(model=FROZEN)
    patients = tiny.patients(30)
    site = tiny.site(tmp_path, study, patients)
    ids = held_out_ids(site)
    labels = {patient.patient_id: patient.label for patient in patients}
    scores = train_alone_tuned(study, study.run("plain"), site).scores
    assert [labels[ids[owner]] for owner in scores.owners] == scores.labels.tolist()
    shares = missing_shares(study, site)
    without = [p for p in patients if p.patient_id in ids and not p.volumes]
    assert shares == {"ehr": 0.0, "mri": len(without) / len(ids)}
