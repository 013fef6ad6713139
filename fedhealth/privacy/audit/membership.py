"""Who was in the training? Likelihood ratios over shadow models, and how well they tell. Called by the site's audit.

Carlini et al. 2022, "Membership Inference Attacks From First Principles" (LiRA), arXiv 2112.03570, sections V and VI:
many models are trained on random halves of the patients; each in turn is the target and the others tell how
confident a model is about a patient that it has seen, or has not. Shape legend: K models, N patients.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import UsageError

Matrix = NDArray[np.float64]
Flags = NDArray[np.bool_]

MIN_MODELS = 8
"""So that a patient is in three of the models that judge a target, and out of three."""
FALSE_POSITIVE_RATE = 0.01
"""Where the paper asks that an attack be judged: who accuses one innocent in a hundred."""
NUM_RESAMPLES = 1000
_TINY = 1e-6
"""Least variance of a confidence, and least distance of a probability from 0 and 1 (float32 has 6e-8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval: percentile bootstrap over patients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipResult:
    """How well the attack tells members from others: AUC (0.5: not at all) and true positives at 1 % false ones."""

    auc: Estimate
    true_positive_rate: Estimate
    num_models: int
    num_patients: int


def paired_memberships(num_models: int, num_patients: int, rng: np.random.Generator) -> Flags:
    """(K, N) bool: models 2j and 2j + 1 share the patients out between them, each to one by a fair coin.

    So each patient is in half of the models; and when a target is left out together with its partner, as many
    models that have seen a patient are left as ones that have not, whichever the target is.

    Raises:
        UsageError: FH-AUDIT-003 fewer than 8 models or an odd number, or fewer than 4 patients.
    """
    if num_models < MIN_MODELS or num_models % 2 or num_patients < 4:  # noqa: PLR2004 - two halves of two
        raise UsageError(
            "FH-AUDIT-003",
            f"{num_models} shadow models of {num_patients} patients do not do for membership inference.",
            why="Each patient must be in some models and out of as many others to tell them apart.",
            fix=f"Use an even number of models, at least {MIN_MODELS}, and at least 4 training patients.",
        )
    first = rng.random((num_models // 2, num_patients)) < 0.5  # noqa: PLR2004 - a fair coin
    flags: Flags = np.stack([first, ~first], axis=1).reshape(num_models, num_patients)
    return flags


def confidences(probabilities_of_truth: Matrix) -> Matrix:
    """log(p / (1 - p)) of the probability that a model gives the true label (section V-B): nearly Gaussian."""
    p = np.clip(probabilities_of_truth, _TINY, 1 - _TINY)
    scaled: Matrix = np.log(p) - np.log1p(-p)
    return scaled


def likelihood_ratios(confidence_KN: Matrix, is_member_KN: Flags) -> Matrix:  # noqa: N803 - shape suffix
    """(K, N) log-likelihood ratio "in" over "out" of each model's confidence, judged by the other pairs of models.

    Means are per patient; variances are shared by all patients, as the paper does with few shadow models (section
    VI-B). Leaving out the target alone would leave one model less on its own side, and the noisier mean would
    push the ratio of members down: without any leak the AUC of 8 models is then 0.43.

    Args:
        confidence_KN: see `confidences`.
        is_member_KN: as `paired_memberships` makes it.
    """
    mean_in, variance_in = _means_without_pair(confidence_KN, is_member_KN)
    mean_out, variance_out = _means_without_pair(confidence_KN, ~is_member_KN)
    ratios: Matrix = (
        (confidence_KN - mean_out) ** 2 / variance_out
        - (confidence_KN - mean_in) ** 2 / variance_in
        + np.log(variance_out / variance_in)
    ) / 2
    return ratios


def judge_attack(
    score_KN: Matrix,  # noqa: N803
    is_member_KN: Flags,  # noqa: N803
    rng: np.random.Generator,
) -> MembershipResult:
    """AUC and true positive rate at 1 % false positives, over all models and patients together.

    The interval resamples patients, whose K scores stay together: they are what the result varies with.
    """
    num_models, num_patients = score_KN.shape
    order = np.argsort(-score_KN, axis=None, kind="stable")
    is_member, scores = is_member_KN.reshape(-1)[order], score_KN.reshape(-1)[order]
    patient = np.broadcast_to(np.arange(num_patients), score_KN.shape).reshape(-1)[order]
    last_of_ties = np.append(np.diff(scores) != 0, True)
    whole = _curve_figures(is_member, np.ones(len(order)), last_of_ties)
    resampled = [
        _curve_figures(is_member, weights[patient].astype(np.float64), last_of_ties)
        for weights in rng.multinomial(
            num_patients, np.full(num_patients, 1 / num_patients), size=NUM_RESAMPLES
        )
    ]
    low, high = np.quantile(np.array(resampled), [0.025, 0.975], axis=0)
    auc, rate = (Estimate(value=whole[i], low=float(low[i]), high=float(high[i])) for i in range(2))
    return MembershipResult(
        auc=auc, true_positive_rate=rate, num_models=num_models, num_patients=num_patients
    )


def _means_without_pair(values_KN: Matrix, chosen_KN: Flags) -> tuple[Matrix, float]:  # noqa: N803
    """(K, N) means over the chosen models outside of the row's pair, and the variance of a value around them."""
    num_models, num_patients = values_KN.shape
    chosen_values = values_KN * chosen_KN
    of_pair = chosen_values.reshape(num_models // 2, 2, num_patients).sum(axis=1).repeat(2, axis=0)
    others = num_models // 2 - 1
    means = (chosen_values.sum(axis=0) - of_pair) / others
    spread = (values_KN - means)[chosen_KN]
    # The distance of a value from a mean of c others has variance 1 + 1/c times a value's own.
    variance = float(np.mean(spread**2)) / (1.0 + 1.0 / others)
    return means, max(variance, _TINY)


def _curve_figures(is_member: Flags, weights: Matrix, last_of_ties: Flags) -> tuple[float, float]:
    """Area under the ROC curve (ties count half) and its height at 1 % false positives, of sorted scores."""
    true = np.concatenate([[0.0], np.cumsum(weights * is_member)[last_of_ties]])
    false = np.concatenate([[0.0], np.cumsum(weights * ~is_member)[last_of_ties]])
    true, false = true / true[-1], false / false[-1]
    area = float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))
    reachable = false <= FALSE_POSITIVE_RATE
    return area, float(true[reachable].max())
