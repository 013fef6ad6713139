"""The name of a split: events of one split have disjoint sides, events of two splits may not. Called by plans."""

import hashlib
import json

from fedhealth.config.study import Study


def split_id(study: Study) -> str:
    """First 16 hex digits of the SHA-256 of what decides a patient's side.

    That is the study's seed, the fractions, and the column that patients are told apart by: another column gives
    other ids, and with them other sides.
    """
    split = study.data.split
    plan = {
        "seed": study.seed,
        "train": split.train,
        "validation": split.validation,
        "test": split.test,
        "patient_id_column": study.data.patient_id_column,
    }
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
