"""The methods of the registered protocol, each giving every hospital's predictions for its test patients."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from joining_cells.cohorts import pooled, with_study
from joining_cells.protocol import CohortName, Setting, make_study
from numpy.typing import NDArray
from privacy_utility import Hospital, context, train

from fedhealth.config.study import Study
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import RoundTask
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.split import split_patients
from fedhealth.privacy.accounting.plan import plan_site
from fedhealth.training.evaluation import scores_on_test
from fedhealth.training.held_out import HeldOutScores
from fedhealth.training.supervised import SupervisedTraining
from fedhealth.training.tuned_alone import train_alone_tuned

FEDERATED: Final = ("fedavg", "private_head", "mr_mtl")
Predictions = dict[str, HeldOutScores]


def federated(
    cohort: CohortName,
    method: str,
    setting: Setting,
    hospitals: Sequence[Hospital],
    *,
    seed: int,
    epsilon: float | None,
    modalities: tuple[str, ...] | None = None,
) -> tuple[Predictions, NDArray[np.float32]]:
    """All rounds, then each hospital's test patients with the model that predicts there; and the last shared vector."""
    study = make_study(
        cohort,
        setting,
        seed=seed,
        epsilon=epsilon,
        personalisation="none" if method == "fedavg" else method,
        modalities=modalities,
    )
    return _run(study, [with_study(hospital, study) for hospital in hospitals])


def local(
    cohort: CohortName,
    setting: Setting,
    hospitals: Sequence[Hospital],
    *,
    seed: int,
    epsilon: float | None,
) -> Predictions:
    """Each hospital by itself, with the same settings and the same privacy."""
    study = make_study(cohort, setting, seed=seed, epsilon=epsilon)
    found: Predictions = {}
    for hospital in hospitals:
        found |= _run(study, [hospital])[0]
    return found


def tuned(
    cohort: CohortName,
    setting: Setting,
    hospitals: Sequence[Hospital],
    *,
    seed: int,
    modalities: tuple[str, ...] | None = None,
) -> Predictions:
    """Each hospital by itself, without noise, with the best of 24 settings for it. `setting` plays no part."""
    study = make_study(cohort, setting, seed=seed, epsilon=None, modalities=modalities)
    with tempfile.TemporaryDirectory() as folder:
        return {
            hospital.name: train_alone_tuned(
                study, study.runs[0], context(with_study(hospital, study), Path(folder))
            ).scores
            for hospital in hospitals
        }


def pooled_tuned(
    cohort: CohortName,
    setting: Setting,
    hospitals: Sequence[Hospital],
    *,
    seed: int,
    modalities: tuple[str, ...] | None = None,
) -> Predictions:
    """Everybody in one place, tuned as a hospital is; judged hospital by hospital."""
    together = tuned(cohort, setting, [pooled(hospitals)], seed=seed, modalities=modalities)
    whole, found, start = together["pooled"], {}, 0
    for hospital in hospitals:
        num = len(split_patients(hospital.cohort)[SplitName.TEST])
        rows = slice(start, start + num)
        found[hospital.name] = replace(
            whole,
            probabilities=whole.probabilities[rows],
            labels=whole.labels[rows],
            owners=whole.owners[rows] - start,
        )
        start += num
    return found


def _run(study: Study, hospitals: Sequence[Hospital]) -> tuple[Predictions, NDArray[np.float32]]:
    method, run = SupervisedTraining(), study.runs[0]
    tensors = method.initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    with tempfile.TemporaryDirectory() as folder:
        contexts = [context(hospital, Path(folder)) for hospital in hospitals]
        sessions = [method.open_session(study, run, spec, site) for site in contexts]
        plans = [plan_site(study, hospital.train_size) for hospital in hospitals]
        mechanisms = [plan.mechanism(run.name) if plan else None for plan in plans]
        weights = np.array([h.train_size for h in hospitals], dtype=np.float64)
        vector = spec.flatten(tensors)
        for number in range(1, run.num_rounds + 1):
            updates = [
                train(session, spec, vector, _task(run.name, number, mechanism))
                for session, mechanism in zip(sessions, mechanisms, strict=True)
            ]
            vector = np.average(updates, axis=0, weights=weights).astype(np.float32)
        found = {site.site_id: scores_on_test(study, run, vector, site) for site in contexts}
    return found, vector


def _task(run_name: str, number: int, mechanism: object) -> RoundTask:
    return RoundTask(
        run_name=run_name,
        round_number=number,
        attempt=1,
        strategy_config={},
        is_cancelled=lambda: False,
        mechanism=mechanism,  # type: ignore[arg-type]
    )
