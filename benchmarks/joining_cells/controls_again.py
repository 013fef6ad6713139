"""Controls of the protocol's second registration: other seeds, measures that can tell, one shift that matters."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from fedhealth_site_synthetic.records import MARKER_COLUMNS, MARKER_WEIGHTS
from joining_cells import judge, methods
from joining_cells.cohorts import REGISTERED, Variant, load
from joining_cells.protocol import Setting, make_study, read_protocol, settings_of
from numpy.typing import NDArray

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.tables import table_encoders
from fedhealth.training.supervised import SupervisedTraining

Name = Literal["permuted_everywhere", "identical", "additive", "no_imaging", "concept_shift"]
PERSONAL: Final = "private_head"
SHIFTED: Final = "mr_mtl"
"""The method that has a model of its own at each hospital: an own intercept cannot turn a marker round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One changed cohort with one seed."""

    name: Name
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Scores by method and hospital; of `additive` only the signed product weights.

    Attributes:
        along_markers: with the product in the labels, and without.
    """

    name: Name
    seed: int
    scores: Mapping[str, Mapping[str, judge.Scores]]
    along_markers: tuple[float, float] | None = None


def jobs() -> list[Job]:
    rules = read_protocol()["controls_again"]
    names: tuple[Name, ...] = ("permuted_everywhere", "identical", "additive")
    compared: tuple[Name, ...] = ("no_imaging", "concept_shift")
    return [Job(name=name, seed=seed) for name in names for seed in rules["seeds"]] + [
        Job(name=name, seed=seed)
        for name in compared
        for seed in (*rules["seeds"], *rules["more_seeds"])
    ]


def run(job: Job) -> Result:
    torch.set_num_threads(1)
    protocol = read_protocol()
    setting = settings_of(protocol)[protocol["controls_again"]["setting"]]
    with tempfile.TemporaryDirectory() as folder:
        hospitals = load("generated", job.seed, Path(folder), _variant(job.name, protocol))

        def scores_of(found: methods.Predictions) -> dict[str, judge.Scores]:
            return {
                hospital.name: judge.Scores.of(found[hospital.name], hospital, seed=job.seed)
                for hospital in hospitals
                if hospital.name in found
            }

        def federated(method: str) -> methods.Predictions:
            return methods.federated(
                "generated", method, setting, hospitals, seed=job.seed, epsilon=None
            )[0]

        if job.name == "additive":
            registered = load("generated", job.seed, Path(folder) / "registered", REGISTERED)
            both = (registered, hospitals)
            with_product, without = (
                _along_markers(
                    methods.federated(
                        "generated", PERSONAL, setting, each, seed=job.seed, epsilon=None
                    )[1],
                    setting,
                )
                for each in both
            )
            return Result(
                name=job.name, seed=job.seed, scores={}, along_markers=(with_product, without)
            )
        scores = {"fedavg": federated("fedavg"), PERSONAL: federated(PERSONAL)}
        if job.name == "identical":
            scores["pooled"] = methods.pooled_tuned("generated", setting, hospitals, seed=job.seed)
        if job.name == "no_imaging":
            one = [hospitals[protocol["controls_again"]["no_imaging"]["hospital"]]]
            scores["tuned"] = methods.tuned("generated", setting, one, seed=job.seed)
        if job.name == "concept_shift":
            scores[SHIFTED] = federated(SHIFTED)
        judged = {method: scores_of(found) for method, found in scores.items()}
    return Result(name=job.name, seed=job.seed, scores=judged)


def _variant(name: Name, protocol: Mapping[str, Any]) -> Variant:
    rules = protocol["controls_again"]
    shift = rules["concept_shift"]
    variants: dict[Name, Variant] = {
        "permuted_everywhere": Variant(has_permuted_labels=True, has_permuted_test=True),
        "identical": Variant(is_one_population=True),
        "additive": Variant(is_additive=True),
        "no_imaging": Variant(without_volumes=frozenset({rules["no_imaging"]["hospital"]})),
        "concept_shift": Variant(mirrored=frozenset({(shift["hospital"], shift["marker"])})),
    }
    return variants[name]


def _along_markers(vector: NDArray[np.float32], setting: Setting) -> float:
    """Product weights in the direction in which the markers tell the risk, unit length, signed."""
    study = make_study("generated", setting, seed=0, epsilon=None, personalisation=PERSONAL)
    contract = study.data.to_contract(seed=study.seed)
    ((_, encoder),) = table_encoders(contract).items()
    tensors = SupervisedTraining().initial_tensors(study, study.runs[0])
    (weights,) = (
        values.ravel() for name, values in TensorSpec.of(tensors).views(vector) if "_x_" in name
    )
    by_feature = dict(zip(encoder.feature_names, weights, strict=True))
    direction = np.array(MARKER_WEIGHTS) / np.linalg.norm(MARKER_WEIGHTS)
    return float(direction @ np.array([by_feature[name] for name in MARKER_COLUMNS]))


def summarise(results: Sequence[Result], protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    rules = protocol["controls_again"]
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    low, high = rules["permuted_everywhere"]["auc"]
    permuted = judge.mean_auc(by_name["permuted_everywhere"], PERSONAL)
    areas = [judge.mean_auc(by_name["identical"], m) for m in ("fedavg", PERSONAL, "pooled")]
    with_product, without = np.mean(
        [r.along_markers for r in by_name["additive"] if r.along_markers], axis=0
    )
    lacking = f"hospital-{rules['no_imaging']['hospital'] + 1}"
    shifted = f"hospital-{rules['concept_shift']['hospital'] + 1}"
    marker = rules["concept_shift"]["marker"]
    imaging = judge.gain_at(lacking, by_name["no_imaging"], of=PERSONAL, over="tuned")
    shift = judge.gain_at(shifted, by_name["concept_shift"], of=SHIFTED, over="fedavg")
    return [
        judge.bar("again, permuted labels everywhere: AUC, lower limit", permuted, ">=", low),
        judge.bar("again, permuted labels everywhere: AUC, upper limit", permuted, "<=", high),
        judge.bar(
            "again, identical hospitals: largest difference of mean AUC between FedAvg, personalised and pooled",
            max(areas) - min(areas),
            "<=",
            rules["identical"]["within"],
        ),
        judge.bar(
            "again, no product in the labels: product weights along the markers, as a share of those with it",
            abs(float(without / with_product)),
            "<=",
            rules["additive"]["share_along_markers"],
        ),
        judge.bar(
            f"again, {lacking} without images: lower limit of the AUC gain over tuned local ({imaging[0]:+.4f})",
            imaging[1],
            ">",
            rules["no_imaging"]["gain_over_tuned"],
        ),
        judge.bar(
            f"again, {shifted} with {marker} flipped: lower limit of MR-MTL's AUC gain over FedAvg ({shift[0]:+.4f})",
            shift[1],
            ">",
            rules["concept_shift"]["gain_over_fedavg"],
        ),
    ]
