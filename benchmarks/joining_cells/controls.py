"""Changed cohorts of the protocol: permuted labels, identical hospitals, no product, no imaging, concept shift."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from joining_cells import judge, methods
from joining_cells.cohorts import REGISTERED, Variant, load
from joining_cells.protocol import make_study, read_protocol, settings_of

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.training.supervised import SupervisedTraining

Name = Literal[
    "permuted", "permuted_everywhere", "identical", "additive", "no_imaging", "concept_shift"
]
NUM_SEEDS: Final = 3
LACKING: Final = 3
"""Hospital 4, with 80 patients, has no image, or the flipped marker."""
VARIANTS: Final[dict[Name, Variant]] = {
    "permuted": Variant(has_permuted_labels=True),
    "permuted_everywhere": Variant(has_permuted_labels=True, has_permuted_test=True),
    "identical": Variant(is_one_population=True),
    "additive": Variant(is_additive=True),
    "no_imaging": Variant(without_volumes=frozenset({LACKING})),
    "concept_shift": Variant(flipped=frozenset({LACKING})),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlJob:
    """One changed cohort with one seed."""

    name: Name
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlResult:
    """By method and hospital; and the norm of the product weights, with the product in the labels and without."""

    name: Name
    seed: int
    scores: Mapping[str, Mapping[str, judge.Scores]]
    product_norms: tuple[float, float] | None = None


def jobs() -> list[ControlJob]:
    seeds = read_protocol()["cohorts"]["generated"]["judged_seeds"][:NUM_SEEDS]
    return [ControlJob(name=name, seed=seed) for name in VARIANTS for seed in seeds]


def run(job: ControlJob) -> ControlResult:
    torch.set_num_threads(1)
    protocol = read_protocol()
    personal = protocol["personalised"]["generated"]
    chosen = protocol["chosen"]["generated"]["none"]
    grid = settings_of(protocol)
    with tempfile.TemporaryDirectory() as folder:
        hospitals = load("generated", job.seed, Path(folder), VARIANTS[job.name])
        scores: dict[str, methods.Predictions] = {}
        vectors = {}
        for method in dict.fromkeys(("fedavg", personal, "mr_mtl")):
            scores[method], vectors[method] = methods.federated(
                "generated", method, grid[chosen[method]], hospitals, seed=job.seed, epsilon=None
            )
        setting = grid[chosen[personal]]
        if job.name in {"no_imaging", "concept_shift"}:
            scores["tuned"] = methods.tuned("generated", setting, hospitals, seed=job.seed)
        if job.name == "identical":
            scores["pooled"] = methods.pooled_tuned("generated", setting, hospitals, seed=job.seed)
        norms = None
        if job.name == "additive":
            registered = load("generated", job.seed, Path(folder) / "registered", REGISTERED)
            _, with_product = methods.federated(
                "generated", personal, setting, registered, seed=job.seed, epsilon=None
            )
            norms = (_norm(with_product, personal), _norm(vectors[personal], personal))
    return ControlResult(
        name=job.name,
        seed=job.seed,
        scores={
            method: {
                hospital.name: judge.Scores.of(found[hospital.name], hospital, seed=job.seed)
                for hospital in hospitals
            }
            for method, found in scores.items()
        },
        product_norms=norms,
    )


def _norm(vector: np.ndarray[Any, Any], personalisation: str) -> float:
    """L2 norm of the shared weights of products."""
    setting = next(iter(settings_of(read_protocol()).values()))
    study = make_study("generated", setting, seed=0, epsilon=None, personalisation=personalisation)
    spec = TensorSpec.of(SupervisedTraining().initial_tensors(study, study.runs[0]))
    products = [values for name, values in spec.views(vector) if "_x_" in name]
    return float(np.linalg.norm(np.concatenate([values.ravel() for values in products])))


def summarise(
    results: Sequence[ControlResult], protocol: Mapping[str, Any]
) -> list[dict[str, Any]]:
    wanted, personal = protocol["bars"], protocol["personalised"]["generated"]
    by_name: dict[str, list[ControlResult]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    lacking = f"hospital-{LACKING + 1}"
    permuted = judge.mean_auc(by_name["permuted"], personal)
    low, high = wanted["controls"]["permuted_auc"]
    everywhere = judge.mean_auc(by_name["permuted_everywhere"], personal)
    areas = [judge.mean_auc(by_name["identical"], m) for m in ("fedavg", personal, "pooled")]
    norms = np.mean([r.product_norms for r in by_name["additive"] if r.product_norms], axis=0)
    imaging = judge.gain_at(lacking, by_name["no_imaging"], of=personal, over="tuned")
    shift = judge.gain_at(lacking, by_name["concept_shift"], of="mr_mtl", over="fedavg")
    return [
        judge.bar("permuted labels: AUC, lower limit", permuted, ">=", low),
        judge.bar("permuted labels: AUC, upper limit", permuted, "<=", high),
        judge.bar("permuted labels, held-out ones too (added later): lower", everywhere, ">=", low),
        judge.bar(
            "permuted labels, held-out ones too (added later): upper", everywhere, "<=", high
        ),
        judge.bar(
            "identical hospitals: largest difference of mean AUC between FedAvg, personalised and pooled",
            max(areas) - min(areas),
            "<=",
            wanted["controls"]["identical_sites_within"],
        ),
        judge.bar(
            "no product in the labels: norm of the product weights, as a share of the norm with it",
            float(norms[1] / norms[0]),
            "<=",
            wanted["controls"]["product_share_without_interaction"],
        ),
        judge.bar(
            f"{lacking} without images: lower limit of the AUC gain over tuned local ({imaging[0]:+.4f})",
            imaging[1],
            ">",
            wanted["generated"]["no_imaging_site_gains"],
        ),
        judge.bar(
            f"{lacking} with a flipped marker: lower limit of MR-MTL's AUC gain over FedAvg ({shift[0]:+.4f})",
            shift[1],
            ">",
            wanted["generated"]["concept_shift_personal_wins"],
        ),
    ]
