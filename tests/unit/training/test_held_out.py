"""Paired differences of two models on the same patients, against formulas."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.models.metrics import auc, log_loss
from fedhealth.training.held_out import HeldOutScores, num_patients, paired_difference, result_of

RNG = np.random.default_rng(5)
LABELS = (RNG.random(300) < 0.4).astype(np.int64)
HIDDEN = RNG.normal(size=300) + LABELS


def scores(
    noise: float, *, labels: NDArray[np.int64] = LABELS, owners: NDArray[np.int64] | None = None
) -> HeldOutScores:
    logits = HIDDEN[: labels.size] + noise * np.random.default_rng(1).normal(size=labels.size)
    probabilities = 1 / (1 + np.exp(0.5 - logits))
    return HeldOutScores(
        probabilities=probabilities,
        labels=labels,
        owners=np.arange(labels.size) if owners is None else owners,
        metrics={"log_loss": log_loss(probabilities, labels)} if labels.size else {},
    )


def test_a_model_does_not_differ_from_itself() -> None:
    found = paired_difference(scores(0.5), scores(0.5), seed=1)
    for difference in (found.auc, found.log_loss):
        assert difference is not None
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_the_log_loss_interval_is_that_of_a_stratified_mean() -> None:
    one, other = scores(0.2), scores(1.5)
    found = paired_difference(one, other, seed=2).log_loss
    assert found is not None
    loss = [
        -np.log(np.where(LABELS == 1, s.probabilities, 1 - s.probabilities)) for s in (one, other)
    ]
    gap = loss[0] - loss[1]
    assert found.value == pytest.approx(gap.mean())
    variance = sum(gap[k == LABELS].var() * (k == LABELS).sum() for k in (0, 1)) / gap.size**2
    # 2000 resamples: a 2.5 % quantile is known to about 4 % of the standard error each.
    assert found.high - found.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.1)
    assert found.low < found.value < found.high


def test_the_auc_interval_is_delongs() -> None:
    one, other = scores(0.2), scores(1.5)
    found = paired_difference(one, other, seed=3).auc
    assert found is not None
    assert found.value == pytest.approx(
        (auc(one.probabilities, LABELS) or 0) - (auc(other.probabilities, LABELS) or 0)
    )
    # DeLong et al. 1988, from the placements of cases among controls and of controls among cases.
    wins = [
        (s.probabilities[LABELS == 1][:, None] > s.probabilities[LABELS == 0]).astype(float)
        for s in (one, other)
    ]
    gap = wins[0] - wins[1]
    variance = (
        gap.mean(axis=1).var(ddof=1) / gap.shape[0] + gap.mean(axis=0).var(ddof=1) / gap.shape[1]
    )
    assert found.high - found.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.12)


def test_records_of_a_patient_are_drawn_together() -> None:
    labels = np.repeat(LABELS[:100], 3)
    alone = [scores(noise, labels=LABELS[:100]) for noise in (0.2, 1.5)]
    tripled = [
        HeldOutScores(
            probabilities=np.repeat(s.probabilities, 3),
            labels=labels,
            owners=np.repeat(np.arange(100), 3),
            metrics={},
        )
        for s in alone
    ]
    # Three copies of each patient say no more than one.
    assert num_patients(tripled[0]) == 100
    once, thrice = (paired_difference(a, b, seed=4) for a, b in (alone, tripled))
    for name in ("auc", "log_loss"):
        first, second = getattr(once, name), getattr(thrice, name)
        assert (second.value, second.low, second.high) == pytest.approx(
            (first.value, first.low, first.high)
        )


def test_one_class_leaves_the_auc_open() -> None:
    ones = np.ones(20, dtype=np.int64)
    found = paired_difference(scores(0.2, labels=ones), scores(1.0, labels=ones), seed=5)
    assert found.auc is None
    assert found.log_loss is not None


def test_nobody_to_compare_on() -> None:
    nobody = scores(0.2, labels=np.empty(0, dtype=np.int64))
    assert paired_difference(nobody, nobody, seed=6).log_loss is None
    assert result_of(nobody, seed=6).num_patients == 0


def test_other_patients_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same records"):
        paired_difference(scores(0.2), scores(0.2, labels=1 - LABELS), seed=7)
