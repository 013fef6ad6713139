"""Noised means of per-patient metrics: what may leave a site about its validation patients under privacy."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhealth.config.study import Study
from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.plan import SitePlan

LOG_LOSS_BOUND: Final = 3.0
"""Nats; public. A patient whose true class got less than 5 % counts as if it had got 5 %."""
METRIC_BOUNDS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "accuracy": 1.0,
        "brier": 1.0,
        "log_loss": LOG_LOSS_BOUND,
        "subset_accuracy": 1.0,
        "dice": 1.0,
    }
)
"""Metrics that are means of one bounded number per patient, and that bound. AUC and calibration error are not such
means, and `train_loss` is taken from training patients while they are trained on."""


def told_metrics(study: Study, kind: Literal["train", "evaluate"]) -> tuple[str, ...]:
    """Names of the metrics that an answer may carry: the study's, or under noise those that the noise covers.

    With distributed noise there are none: a metric beside a noised sum would be without noise.
    """
    masks = study.secure_aggregation
    if masks is not None and masks.distributed_privacy is not None:
        return ()
    if study.privacy is None:
        return study.release.metrics
    when = study.privacy.release_metrics
    if when == "never" or (when == "closing" and kind == "train"):
        return ()
    return tuple(name for name in study.release.metrics if name in METRIC_BOUNDS)


class Normals(Protocol):
    """The part of `fedhealth.privacy.randomness.Randomness` that is needed here."""

    def normals(self, count: int) -> NDArray[np.float64]:
        """(count,) float64 standard normals."""
        ...


def noisy_means(
    values: Mapping[str, NDArray[np.float64]],
    *,
    names: Sequence[str],
    plan: SitePlan,
    randomness: Normals,
) -> dict[str, float]:
    """One Gaussian release of the means of `names`, each in [0, its bound].

    Each value is clipped to [0, bound] and divided by the bound (a value that is not finite counts as the bound),
    so that one patient moves the vector of the k sums by at most sqrt(k); noise of standard deviation
    noise multiplier times sqrt(k) is added to every sum. Then only public numbers follow: the bound, the declared
    size (not the true one, so a mean is biased where they differ), and the range.

    Args:
        values: per-patient values by metric, each (n,), of the same n; n may be 0.
        names: metrics to release, each once.
        plan: gives the noise multiplier and the public denominator.
        randomness: where the noise comes from.

    Raises:
        PrivacyError: FH-PRIVACY-040 a metric that cannot be released, or twice the same, 041 values are missing
            or do not fit together, 029 the plan releases no metrics.
    """
    if not names:
        return {}
    _check_names(names)
    noise_multiplier = plan.metrics_event().noise_multiplier
    sums = np.array([_bounded_sum(values, name) for name in names], dtype=np.float64)
    _check_shapes(values, names)
    sensitivity = math.sqrt(len(names))
    noised = sums + noise_multiplier * sensitivity * randomness.normals(len(names))
    shares = np.clip(noised / plan.declared_validation_size, 0.0, 1.0)
    return {
        name: float(share) * METRIC_BOUNDS[name] for name, share in zip(names, shares, strict=True)
    }


def _check_names(names: Sequence[str]) -> None:
    wrong = sorted(set(names) - METRIC_BOUNDS.keys())
    if wrong or len(set(names)) != len(names):
        raise PrivacyError(
            "FH-PRIVACY-040",
            f"the metrics {list(names)} cannot be released with privacy.",
            why=f"Only {', '.join(METRIC_BOUNDS)} are means of one bounded number per patient, each once.",
            fix="Name only these in release.metrics.",
        )


def _bounded_sum(values: Mapping[str, NDArray[np.float64]], name: str) -> float:
    if name not in values:
        raise _misfit(f"there are no per-patient values of {name}.")
    bound = METRIC_BOUNDS[name]
    finite = np.where(np.isfinite(values[name]), values[name], bound)
    return float(np.sum(np.clip(finite, 0.0, bound) / bound))


def _check_shapes(values: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> None:
    shapes = {values[name].shape for name in names}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise _misfit("per-patient values are not one number for each patient and metric.")


def _misfit(what: str) -> PrivacyError:
    return PrivacyError(
        "FH-PRIVACY-041",
        what,
        why="The noise is sized for one number per patient and metric.",
        fix="Repair the training method's `patient_metrics`.",
    )
