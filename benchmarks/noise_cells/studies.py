"""Studies, hospitals and central noise of the benchmark `distributed_privacy`."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from privacy_utility import NO_AUC, Hospital, Job, context, load_hospitals

from fedhealth.config.study import Study
from fedhealth.config.template import template_path
from fedhealth.contracts.local_training import Vector
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.split import split_patients
from fedhealth.privacy.accounting.calibration import least_noise
from fedhealth.privacy.accounting.events import GaussianRelease, Unit
from fedhealth.secagg.round_settings import distributed_plan
from fedhealth.training.evaluation import scores_on_test
from fedhealth.training.supervised import SupervisedTraining

PARTS: Final = 5
"""Of each of the four hospitals, where there are 20 sites."""
NEXT_TO_NONE: Final = 1e-3
"""Noise multiplier where there is no epsilon: mechanisms have some noise. What then shows is the rounding."""
MOST_PATIENTS: Final = 256
"""Largest size that a site may declare, and so have room for in a sum: one hospital has up to about 200 here."""


COLLUDING: Final = 1
"""Sites whose noise is not counted on, as by default: of 4 sites with 3 survivors 2 are, of 20 with 15 it is 14."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all methods of one table have in common. `divisor` of the sum is public: patients, or sites."""

    name: str
    unit: Unit
    num_rounds: int
    clipping_norm: float
    delta: float
    num_sites: int
    min_survivors: int
    divisor: int
    optimizer: str
    learning_rate: float


PATIENTS: Final = Setting(
    name="one patient of 550 in 4 hospitals, delta 1e-4",
    unit="patient",
    num_rounds=10,
    clipping_norm=0.5,
    delta=1e-4,
    num_sites=4,
    min_survivors=3,
    divisor=550,
    optimizer="sgd",
    learning_rate=4.0,
)
PATIENTS_OF_MANY: Final = replace(
    PATIENTS,
    name="one patient of 550 in 20 hospitals, delta 1e-4",
    num_sites=4 * PARTS,
    min_survivors=3 * PARTS,
)
SITES: Final = Setting(
    name="one hospital of 20, delta 1e-3",
    unit="site",
    num_rounds=8,
    clipping_norm=0.5,
    delta=1e-3,
    num_sites=4 * PARTS,
    min_survivors=3 * PARTS,
    divisor=4 * PARTS,
    optimizer="adam",
    learning_rate=0.01,
)
SETTINGS: Final = (PATIENTS, PATIENTS_OF_MANY, SITES)


def heart_study(seed: int, num_rounds: int, *, masks: dict[str, Any] | None) -> Study:
    """The shipped study with one run, without noise; `masks` change its secure aggregation, None takes it away."""
    content = _content(seed, num_rounds)
    if masks is None:
        del content["secure_aggregation"]
    else:
        content["secure_aggregation"] |= masks
    return Study.model_validate(content)


def noised_study(setting: Setting, epsilon: float | None, seed: int, method: str) -> Study:
    """The study of one method: noise shares under masks, the strategy dp-fedavg, or DP-SGD."""
    content = _content(seed, setting.num_rounds)
    length = {"local_epochs": 4} if setting.unit == "site" else {"local_steps": 1}
    content["training"] = {
        "optimizer": {"name": setting.optimizer, "learning_rate": setting.learning_rate},
        "batch_size": 32 if setting.unit == "site" else 512,
        "modality_dropout": 0.1,
    } | length
    content["federation"]["min_cohort"] = setting.min_survivors
    del content["secure_aggregation"]
    if method == "distributed":
        content["secure_aggregation"] = _noise_under_masks(setting, epsilon)
    elif setting.unit == "site":
        options = {
            "num_sites": setting.num_sites,
            "noise_multiplier": central_multiplier(setting, epsilon),
            "clipping_norm": setting.clipping_norm,
        }
        content["runs"][0]["strategy"] = {"name": "dp-fedavg", "options": options}
    else:  # DP-SGD takes its noise from the task; the section says that it may
        content["privacy"] = {
            "noise_multiplier": central_multiplier(setting, epsilon),
            "clipping_norm": setting.clipping_norm,
        }
    return Study.model_validate(content)


@lru_cache
def central_multiplier(setting: Setting, epsilon: float | None) -> float:
    """Of one party's Gaussian noise, by the product's accountant."""
    if epsilon is None:
        return NEXT_TO_NONE

    def events(multiplier: float) -> tuple[GaussianRelease]:
        return (
            GaussianRelease(
                unit=setting.unit,
                noise_multiplier=multiplier,
                steps=setting.num_rounds,
                population="train" if setting.unit == "patient" else "all",
                split_id="plan",
            ),
        )

    return least_noise(events, target_epsilon=epsilon, delta=setting.delta)


def noise_std(setting: Setting, epsilon: float | None, method: str) -> float:
    """Standard deviation of the noise on a coordinate of the mean gradient, or update, when all sites are there."""
    one_party = central_multiplier(setting, epsilon) * setting.clipping_norm
    total = one_party * math.sqrt(setting.num_sites if method == "local" else 1)
    if method == "distributed":
        study = noised_study(setting, epsilon, 0, method)
        tensors = SupervisedTraining().initial_tensors(study, study.runs[0])
        plan = distributed_plan(study, TensorSpec.of(tensors).num_elements)
        if plan is None:
            raise SystemExit("a study with noise under masks has no plan")
        total = plan.noise_std * math.sqrt(plan.num_sites / plan.num_honest)
    return total / setting.divisor


def load(seed: int, folder: Path) -> list[Hospital]:
    """The four hospitals, with the split of that seed."""
    job = Job(study="heart", seed=seed, epsilons=(), is_small=False)
    return load_hospitals(job, heart_study(seed, 1, masks=None), folder)


def with_its_split(hospital: Hospital) -> Hospital:
    """The same patients on the same sides under every seed of a study."""
    sides = split_patients(hospital.cohort)
    fixed = {patient.patient_id: side for side, group in sides.items() for patient in group}
    return replace(hospital, cohort=replace(hospital.cohort, fixed_split=fixed))


def sites_of(setting: Setting, hospitals: list[Hospital]) -> list[Hospital]:
    """The hospitals, or where the setting has more sites `PARTS` of each of them."""
    if setting.num_sites == len(hospitals):
        return hospitals
    return [
        Hospital(
            name=f"{one.name}-{part}",
            train_size=one.train_size // PARTS,
            cohort=replace(one.cohort, patients=one.cohort.patients[part::PARTS]),
        )
        for one in hospitals
        for part in range(PARTS)
    ]


def pooled(hospitals: list[Hospital], train_size: int) -> Hospital:
    """One party that has all patients, on the sides that they have at their hospitals."""
    patients, fixed = [], {}
    for one in map(with_its_split, hospitals):
        for patient in one.cohort.patients:
            name = f"{one.name}-{patient.patient_id}"
            patients.append(replace(patient, patient_id=name))
            fixed[name] = (one.cohort.fixed_split or {})[patient.patient_id]
    cohort = replace(hospitals[0].cohort, patients=tuple(patients), fixed_split=fixed)
    return Hospital(name="everybody", train_size=train_size, cohort=cohort)


def held_out(
    study: Study, vector: Vector, hospitals: list[Hospital], state: Path
) -> tuple[float, float]:
    """AUC and log loss on test patients, means over the hospitals where they mean something."""
    scores = {
        one.name: scores_on_test(study, study.runs[0], vector, context(one, state)).metrics
        for one in hospitals
    }
    areas = [found["auc"] for name, found in scores.items() if name not in NO_AUC]
    return float(np.mean(areas)), float(np.mean([found["log_loss"] for found in scores.values()]))


def earlier_heart_study() -> dict[str, Any]:
    """The heart study with the model, settings and scaling that these benchmarks were written for, without `privacy`.

    The shipped study has a smaller model since, and all patients in every step: every figure would be about something
    else, and a sampling rate of 1 cannot be doubled by a bug.
    """
    content: dict[str, Any] = yaml.safe_load(template_path("heart").read_text())
    del content["privacy"]
    for modality in content["data"]["modalities"]:
        for column in modality["columns"]:
            column.pop("reference", None)
    content["model"] = {
        "name": "multimodal",
        "options": {"embedding_size": 8, "table_hidden_size": 16},
    }
    content["training"] = {
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "batch_size": 32,
        "local_epochs": 4,
        "modality_dropout": 0.1,
    }
    content["secure_aggregation"]["value_range"] = 1.0
    return content


def _content(seed: int, num_rounds: int) -> dict[str, Any]:
    content = earlier_heart_study()
    run = content["runs"][0] | {"num_rounds": num_rounds}
    return content | {"seed": seed, "runs": [run]}


def _noise_under_masks(setting: Setting, epsilon: float | None) -> dict[str, Any]:
    noise: dict[str, Any] = {
        "unit": setting.unit,
        "num_sites": setting.num_sites,
        "clipping_norm": setting.clipping_norm,
    }
    if setting.unit == "patient":
        noise["num_patients"] = setting.divisor
    if epsilon is None:
        noise["noise_multiplier"] = NEXT_TO_NONE
    else:
        noise |= {"target_epsilon": epsilon, "delta": setting.delta}
    return {
        "min_survivors": setting.min_survivors,
        "colluding": COLLUDING,
        "max_train_size": MOST_PATIENTS,
        "distributed_privacy": noise,
    }
