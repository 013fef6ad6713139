"""What nobody can exceed on the generated hospitals: the best AUC from what a model is shown there.

The generator's law is known, so the chance of disease given a patient's measured markers and image score can be
integrated: the posterior of the risk given the markers that were measured is normal, and so is that of the burden given
a score of known correlation. No method, no sample size and no tuning gives a better AUC than ordering patients by it.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from fedhealth_site_synthetic.latents import disease_logit
from fedhealth_site_synthetic.options import SyntheticOptions
from fedhealth_site_synthetic.records import (
    MARKER_CENTRE,
    MARKER_COLUMNS,
    MARKER_NOISE_STD,
    MARKER_SCALE,
    MARKER_WEIGHTS,
)
from joining_cells.protocol import read_protocol
from numpy.typing import NDArray

from fedhealth.models.metrics import auc
from fedhealth.models.pretrained import PhantomLoad

NUM_IMAGED: Final = 150
"""Patients of a hospital whose images are read, to see how well the shipped score tells the burden."""
NUM_DRAWN: Final = 3000
"""Patients of a hospital, never rendered, over whom the ceiling is taken: a standard error of 0.009 each."""
_NODES: Final = 25

Floats = NDArray[np.float64]
_generate = importlib.import_module("fedhealth_site_synthetic.generate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Of one hospital.

    Attributes:
        seed: of the cohort.
        hospital: hospital-1 ..
        correlation: of the shipped image score and the true lesion burden, among those with an image.
        auc: the best possible with that score.
        auc_perfect_image: the best possible if every image that exists told its burden exactly.
    """

    seed: int
    hospital: str
    correlation: float
    auc: float
    auc_perfect_image: float


def ceilings(seed: int) -> list[Ceiling]:
    """Of all hospitals of one seed."""
    torch.set_num_threads(1)
    rules = read_protocol()["cohorts"]["generated"]
    found = []
    for index in range(len(rules["train"])):
        options = SyntheticOptions(
            site_index=index,
            num_sites=len(rules["train"]),
            num_patients=NUM_DRAWN,
            size=rules["size"],
            seed=seed,
        )
        correlation = _score_correlation(options)
        found.append(
            Ceiling(
                seed=seed,
                hospital=f"hospital-{index + 1}",
                correlation=correlation,
                auc=_best_auc(options, correlation),
                auc_perfect_image=_best_auc(options, 1.0),
            )
        )
    return found


def summarise(found: Sequence[Ceiling]) -> dict[str, Any]:
    """Means over seeds: for all hospitals, the worst of them, and each."""
    names = list(dict.fromkeys(c.hospital for c in found))

    def mean(hospital: str, field: str) -> float:
        return round(
            float(np.mean([getattr(c, field) for c in found if c.hospital == hospital])), 4
        )

    record: dict[str, Any] = {}
    for field in ("correlation", "auc", "auc_perfect_image"):
        by_hospital = {name: mean(name, field) for name in names}
        record[field] = {
            "mean": round(float(np.mean(list(by_hospital.values()))), 4),
            "worst": min(by_hospital.values()),
            "by_hospital": by_hospital,
        }
    return record


def _score_correlation(options: SyntheticOptions) -> float:
    hospital = _generate.make_hospital(options)
    burdens, images = [], []
    number = 0
    while len(burdens) < NUM_IMAGED:
        patient = _generate.make_patient(options, hospital, number)
        number += 1
        if patient.image is not None:
            burdens.append(patient.burden)
            images.append((patient.image - patient.image.mean()) / patient.image.std())
    with torch.inference_mode():
        scores = PhantomLoad()(torch.from_numpy(np.stack(images)[:, None])).squeeze(1).numpy()
    return float(np.corrcoef(burdens, scores)[0, 1])


def _best_auc(options: SyntheticOptions, correlation: float) -> float:
    hospital = _generate.make_hospital(options)
    without_images = options.model_copy(update={"imaging": False})
    patients = [
        _generate.make_patient(without_images, hospital, n) for n in range(options.num_patients)
    ]
    # Rendering is left out, so who has an image is drawn here at the hospital's own rate; it depends on nothing else.
    rng = np.random.default_rng([options.seed, 9, options.site_index])
    has_image = rng.random(len(patients)) >= hospital.image_missing_rate
    burden = np.array([patient.burden for patient in patients])
    score = correlation * burden + np.sqrt(1 - correlation**2) * rng.standard_normal(len(patients))
    markers = np.array(
        [[_standard(patient.record[name]) for name in MARKER_COLUMNS] for patient in patients]
    )
    risk_mean, risk_std = _posterior_risk(markers)
    chance = _chance(
        np.where(has_image, correlation * score, 0.0),
        np.where(has_image, np.sqrt(1 - correlation**2), 1.0),
        risk_mean,
        risk_std,
        bias=hospital.bias,
    )
    area = auc(chance, np.array([patient.label for patient in patients]))
    if area is None:
        raise SystemExit("a generated hospital has patients of one class only")
    return float(area)


def _standard(value: float | None) -> float:
    return np.nan if value is None else (value - MARKER_CENTRE) / MARKER_SCALE


def _posterior_risk(markers: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of a standard normal risk given the markers that are not NaN."""
    weights = np.array(MARKER_WEIGHTS)
    measured = ~np.isnan(markers)
    precision = 1.0 + (measured * weights**2).sum(axis=1) / MARKER_NOISE_STD**2
    mean = (np.nan_to_num(markers) * weights).sum(axis=1) / MARKER_NOISE_STD**2 / precision
    return mean, 1 / np.sqrt(precision)


def _chance(
    burden_mean: Floats, burden_std: Floats, risk_mean: Floats, risk_std: Floats, *, bias: float
) -> Floats:
    """(n,) mean chance of disease over normal burdens and risks, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    burden = (burden_mean[:, None] + burden_std[:, None] * nodes)[:, :, None]
    risk = (risk_mean[:, None] + risk_std[:, None] * nodes)[:, None, :]
    ill = 1 / (1 + np.exp(-disease_logit(burden, risk, bias)))
    return np.asarray(np.einsum("nij,i,j->n", ill, weights, weights))
