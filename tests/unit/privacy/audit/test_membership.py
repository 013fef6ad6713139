"""Membership inference: the figures against scikit-learn, the attack against a leak of known size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from fedhealth.errors import UsageError
from fedhealth.privacy.audit.membership import (
    _means_without_pair,
    confidences,
    judge_attack,
    likelihood_ratios,
    paired_memberships,
)


@settings(deadline=None, max_examples=25)
@given(pairs=st.integers(4, 20), n=st.integers(4, 30), seed=st.integers(0, 2**31))
def test_every_patient_is_in_one_model_of_each_pair(pairs: int, n: int, seed: int) -> None:
    flags = paired_memberships(2 * pairs, n, np.random.default_rng(seed))
    assert flags.shape == (2 * pairs, n)
    assert (flags[0::2] ^ flags[1::2]).all()


def test_too_few_models_or_patients_are_refused() -> None:
    for k, n in ((6, 10), (9, 10), (8, 3)):
        with pytest.raises(UsageError, match="FH-AUDIT-003"):
            paired_memberships(k, n, np.random.default_rng(0))


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-5, 1 - 1e-5))
def test_confidence_is_the_logit(p: float) -> None:
    assert confidences(np.array([[p]]))[0, 0] == pytest.approx(np.log(p / (1 - p)), abs=1e-6)


def test_certain_models_have_a_finite_confidence() -> None:
    assert np.isfinite(confidences(np.array([[0.0, 1.0]]))).all()


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**31), digits=st.integers(0, 3))
def test_auc_and_rate_are_those_of_scikit_learn(seed: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    flags = paired_memberships(10, 40, rng)
    scores = np.round(rng.normal(size=flags.shape) + flags, digits)  # ties at few digits
    found = judge_attack(scores, flags, rng)
    assert found.auc.value == pytest.approx(roc_auc_score(flags.ravel(), scores.ravel()))
    false, true, _ = roc_curve(flags.ravel(), scores.ravel(), drop_intermediate=False)
    assert found.true_positive_rate.value == pytest.approx(true[false <= 0.01].max())
    assert found.auc.low <= found.auc.value <= found.auc.high


def test_ratios_reach_the_auc_of_the_optimal_test() -> None:
    """Patients of different difficulty, members one standard deviation more confident: AUC is Phi(1/sqrt 2)."""
    rng = np.random.default_rng(0)
    flags = paired_memberships(64, 100, rng)
    confidence = 4 * rng.normal(size=100) + rng.normal(size=flags.shape) + flags
    found = judge_attack(likelihood_ratios(confidence, flags), flags, rng)
    # Means over 32 models instead of the true ones cost about a hundredth.
    assert found.auc.value == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.02)
    assert (
        judge_attack(confidence, flags, rng).auc.value < 0.6
    )  # without shadow models: hardly anything


def test_no_leak_gives_an_auc_of_one_half() -> None:
    for models, patients, seed in ((32, 80, 5), (8, 300, 6)):  # few models: no bias either
        rng = np.random.default_rng(seed)
        flags = paired_memberships(models, patients, rng)
        confidence = 3 * rng.normal(size=patients) + rng.normal(size=flags.shape)
        found = judge_attack(likelihood_ratios(confidence, flags), flags, rng)
        assert found.auc.low < 0.5 < found.auc.high
        assert found.true_positive_rate.value < 0.03


def test_a_target_is_judged_by_the_other_pairs_only() -> None:
    """As many models on either side, and neither the target nor its partner among them."""
    rng = np.random.default_rng(2)
    flags = paired_memberships(8, 5, rng)
    confidence = rng.normal(size=flags.shape)
    moved = confidence.copy()
    moved[:2, 0] += 100.0
    for chosen in (flags, ~flags):
        others = chosen[2:, 0]
        assert others.sum() == 3
        expected = confidence[2:, 0][others].mean()
        assert _means_without_pair(moved, chosen)[0][0, 0] == pytest.approx(expected)
        assert _means_without_pair(moved, chosen)[0][1, 0] == pytest.approx(expected)
