"""What fewer bytes cost in AUC: whole simulated federations, paired by seed. No noise, no masks."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from fedhealth.config.load import load_study
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.config.template import template_path
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.contracts.update_encoding import encoded_size, encoding_of
from fedhealth.data.split import split_patients
from fedhealth.simulation import Simulation, simulate
from fedhealth.site.sessions import load_training_method
from fedhealth.training.evaluation import scores_on_test

CohortName = Literal["heart", "generated"]
HEART: Final = {"cleveland": 180, "hungarian": 180, "switzerland": 70, "va": 120}
NO_AUC: Final = frozenset({"switzerland"})
"""Eight of its patients are healthy: an AUC over two or three of them says nothing (benchmarks/protocol.yaml)."""
RUN: Final = "main"
NUM_GENERATED: Final = 300
"""Patients of each of three generated hospitals: 120 to learn from, 150 held out."""
PHANTOM: Final = {"image_weights": "phantom"}
"""The image model begins with the shipped encoder: low-rank changes and a head of its own want one that was trained."""
WHOLE: Final = "float32"
FORMS: Final[dict[str, dict[str, Any]]] = {WHOLE: {}, "8 bits": {"bits": 8}}
PARTS: Final[dict[str, dict[str, Any]]] = {
    "lora": {"model": {"trainable": "lora"}},
    "lora_parts all": {"model": {"trainable": "lora", "lora_parts": "all"}},
    "lora_parts all, 8 bits": {"model": {"trainable": "lora", "lora_parts": "all"}, "bits": 8},
    "head_only": {"model": {"trainable": "head_only"}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way on one cohort: bytes of an update, and for each seed the mean AUC over hospitals."""

    cohort: CohortName
    way: str
    num_values: int
    update_bytes: int
    aucs: tuple[float, ...]
    untrained: tuple[float, ...]


def cells(
    cohort: CohortName, ways: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]
) -> list[Cell]:
    """Every way on the same cohorts, hospital for hospital and seed for seed."""
    found: dict[str, list[tuple[TensorSpec, int, float, float]]] = {name: [] for name in ways}
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="fedhealth-bytes-") as name:
            folder = Path(name)
            sites = _hospitals(cohort, seed, folder / "data")
            for way, settings in ways.items():
                study = _study(cohort, seed, **settings)
                done = simulate(study, sites, folder / way.replace(" ", "-"))
                record = done.runs[RUN].records[0]
                found[way].append(
                    (
                        done.runs[RUN].spec,
                        max(site.update_bytes for site in record.sites),
                        _mean_auc(done, study, done.runs[RUN].vector),
                        _mean_auc(done, study, None),
                    )
                )
    return [
        Cell(
            cohort=cohort,
            way=way,
            num_values=rows[0][0].num_elements,
            update_bytes=_checked(rows[0][0], rows[0][1], dict(ways[way])),
            aucs=tuple(row[2] for row in rows),
            untrained=tuple(row[3] for row in rows),
        )
        for way, rows in found.items()
    ]


def loss(without: Cell, with_it: Cell) -> tuple[float, float, float]:
    """Mean of the paired differences in AUC (lost points are positive), with the ends of a 95 % t interval."""
    lost = np.subtract(without.aucs, with_it.aucs)
    if lost.size < 2:  # noqa: PLR2004 - one difference has no spread
        return float(lost.mean()), float("nan"), float("nan")
    half = scipy.stats.t.ppf(0.975, lost.size - 1) * lost.std(ddof=1) / np.sqrt(lost.size)
    return float(lost.mean()), float(lost.mean() - half), float(lost.mean() + half)


def _checked(spec: TensorSpec, update_bytes: int, settings: dict[str, Any]) -> int:
    """The record's bytes are those that the form takes."""
    expected = encoded_size(spec, encoding_of(settings.get("bits", 32)))
    if update_bytes != expected:
        raise RuntimeError(f"an update had {update_bytes} bytes, {expected} were expected")
    return update_bytes


def _study(
    cohort: CohortName, seed: int, *, bits: int = 32, model: Mapping[str, Any] | None = None
) -> Study:
    """The shipped study without masks and noise, as one run; the generated one with the image model."""
    shipped = load_study(
        template_path("heart")
        if cohort == "heart"
        else template_path("synthetic").with_name("study-tests.yaml")
    )
    said = shipped.model_dump(mode="json")
    said |= {"seed": seed, "privacy": None, "secure_aggregation": None}
    said["federation"]["update_bits"] = bits
    said["release"]["metrics"] = []
    said["runs"] = [{"name": RUN, "num_rounds": 10, "strategy": {"name": "fedavg"}}]
    if cohort == "generated":
        said["model"]["options"] = PHANTOM | dict(model or {})
        said["training"] |= {
            "optimizer": {"name": "adam", "learning_rate": 0.005},
            "batch_size": 16,
            "local_steps": 15,
        }
        said["data"]["split"] = {"train": 0.4, "validation": 0.1, "test": 0.5}
    return Study.model_validate(said)


def _hospitals(cohort: CohortName, seed: int, folder: Path) -> list[SiteConfig]:
    if cohort == "heart":
        chosen = {
            name: ({"name": "heart", "options": {"hospital": name}}, size)
            for name, size in HEART.items()
        }
    else:
        options = {"num_sites": 3, "num_patients": NUM_GENERATED, "size": 16, "seed": seed}
        chosen = {
            f"hospital-{i + 1}": (
                {"name": "synthetic", "options": options | {"site_index": i}},
                120,
            )
            for i in range(3)
        }
    return [
        SiteConfig.model_validate(
            {
                "schema_version": 1,
                "site_id": name,
                "package": package,
                "data_dir": folder / name,
                "declared_train_size": size,
                "isolation": "off",
                "device": "cpu",
            }
        )
        for name, (package, size) in chosen.items()
    ]


def _mean_auc(done: Simulation, study: Study, vector: NDArray[np.float32] | None) -> float:
    """Mean over hospitals of the AUC on held-out patients; `vector` None: of the model that round 1 began with."""
    run, aucs = study.runs[0], []
    for site_id in done.site_ids:
        if site_id in NO_AUC:
            continue
        context = done.context(site_id, RUN)
        held_out = split_patients(context.load_cohort())[SplitName.TEST]
        if not held_out:
            raise RuntimeError("a hospital has no held-out patient")
        chosen = _first(study) if vector is None else vector
        aucs.append(scores_on_test(study, run, chosen, context).metrics["auc"])
    return float(np.mean(aucs))


def _first(study: Study) -> NDArray[np.float32]:
    tensors = load_training_method("supervised").initial_tensors(study, study.runs[0])
    return TensorSpec.of(tensors).flatten(tensors)
