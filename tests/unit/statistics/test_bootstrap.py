"""Hierarchical paired bootstrap: against the plain one, closed forms, and how often its interval holds the truth."""

from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedhealth.models.metrics import log_losses, resampled_auc
from fedhealth.statistics.bootstrap import compare, patient_weights
from fedhealth.statistics.delong import delong
from fedhealth.statistics.judged import Judged, MeanOf, Weighted
from fedhealth.training.held_out import HeldOutScores, paired_difference

from .conftest import Maker

LOG_LOSS = MeanOf(log_losses)
WEIGHTED_AUC = Weighted(resampled_auc)


def test_the_weighted_auc_is_that_of_the_repeated_records(judged: Maker) -> None:
    scores = judged(60, seed=1)
    rounded = Judged(
        predictions=np.round(scores.predictions, 1),  # ties
        labels=scores.labels,
        patients=scores.patients,
        strata=scores.strata,
    )
    weights = np.random.default_rng(2).integers(0, 4, size=(20, 60)).astype(float)
    found = WEIGHTED_AUC(rounded, weights)
    for value, row in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(60), row.astype(int))
        truth = roc_auc_score(rounded.labels[rows], rounded.predictions[rows])
        assert value == pytest.approx(truth, abs=1e-12)


def test_an_auc_of_one_class_is_no_number(judged: Maker) -> None:
    scores = judged(10, seed=1)
    assert np.isnan(WEIGHTED_AUC(scores, (scores.labels == 1).astype(float)[None]))[0]


def test_with_one_seed_it_is_the_interval_of_site_evaluate(judged: Maker) -> None:
    one, other = judged(80, seed=5), judged(80, seed=5, noise=1)
    plain = paired_difference(
        *(
            HeldOutScores(
                probabilities=j.predictions, labels=j.labels, owners=j.patients, metrics={}
            )
            for j in (one, other)
        ),
        seed=6,
    )
    for statistic, known in ((WEIGHTED_AUC, plain.auc), (LOG_LOSS, plain.log_loss)):
        found = compare([one], [other], statistic, seed=6)
        assert found is not None
        assert known is not None
        assert (found.value, found.low, found.high) == pytest.approx(
            (known.value, known.low, known.high), abs=1e-12
        )


def test_its_standard_error_is_delongs_with_one_seed(judged: Maker) -> None:
    one, other = judged(400, seed=7), judged(400, seed=7, noise=1)
    found = compare([one], [other], WEIGHTED_AUC, seed=8)
    closed = delong(one.predictions, other.predictions, one.labels)
    assert found is not None
    assert closed is not None
    assert found.value == pytest.approx(closed.difference, abs=1e-12)
    # 2000 resamples know a standard deviation to 1.6 %.
    assert found.standard_error == pytest.approx(closed.standard_error, rel=0.06)


def test_the_same_patients_in_ten_resplits_are_not_ten_times_the_patients(judged: Maker) -> None:
    one, other = judged(100, seed=9), judged(100, seed=9, noise=1)
    once = compare([one], [other], WEIGHTED_AUC, seed=10)
    same = compare([one] * 10, [other] * 10, WEIGHTED_AUC, seed=10)
    others = [
        [judged(100, seed=20 + k, noise=noise, first_patient=100 * k) for k in range(10)]
        for noise in (0.0, 1.0)
    ]
    many = compare(*others, WEIGHTED_AUC, seed=10)
    assert once is not None
    assert same is not None
    assert many is not None
    assert (same.num_patients, many.num_patients) == (100, 1000)
    assert same.standard_error == pytest.approx(once.standard_error, rel=0.05)
    assert many.standard_error < 0.6 * once.standard_error


def test_seeds_that_disagree_widen_the_interval(judged: Maker) -> None:
    good, bad = judged(200, seed=11), judged(200, seed=11, noise=2)
    agree = compare([good] * 6, [good] * 6, WEIGHTED_AUC, seed=12)
    disagree = compare([good, bad] * 3, [bad, good] * 3, WEIGHTED_AUC, seed=12)
    assert agree is not None
    assert disagree is not None
    assert (agree.low, agree.high, agree.p_value) == (0, 0, 1)
    assert disagree.low < -0.02 < 0.02 < disagree.high


def test_a_resplit_without_a_case_does_not_count(judged: Maker) -> None:
    scores, worse = judged(40, seed=13), judged(40, seed=13, noise=1)
    empty = Judged(
        predictions=np.full(3, 0.5),
        labels=np.zeros(3, dtype=np.int64),
        patients=np.arange(100, 103),
        strata=np.zeros(3, dtype=np.int64),
    )
    found = compare([scores, empty], [worse, empty], WEIGHTED_AUC, seed=1)
    alone = compare([scores], [worse], WEIGHTED_AUC, seed=1)
    assert found is not None
    assert alone is not None
    assert (found.value, found.num_seeds, found.num_patients) == (alone.value, 1, 40)
    assert compare([empty], [empty], WEIGHTED_AUC, seed=1) is None


def test_patients_are_drawn_whole_and_within_their_class(judged: Maker) -> None:
    scores = judged(30, seed=14)
    doubled = Judged(
        predictions=np.repeat(scores.predictions, 2),
        labels=np.repeat(scores.labels, 2),
        patients=np.repeat(scores.patients, 2),
        strata=np.repeat(scores.strata, 2),
    )
    (drawn,) = patient_weights([doubled], num_resamples=50, rng=np.random.default_rng(1))
    assert np.array_equal(drawn[:, ::2], drawn[:, 1::2])
    for label in (0, 1):
        assert (drawn[:, doubled.labels == label].sum(axis=1) == 30).all()


def test_other_patients_are_refused(judged: Maker) -> None:
    with pytest.raises(ValueError, match="same records"):
        compare([judged(10, seed=1)], [judged(10, seed=1, first_patient=5)], WEIGHTED_AUC, seed=1)


def test_the_interval_holds_the_truth_about_as_often_as_it_says(judged: Maker) -> None:
    """Nominal 95 %; 200 cohorts of 80 patients give the coverage to 1.5 %, the percentile method loses a little."""
    normal = (
        NormalDist()
    )  # scores of the classes are one standard deviation apart; noise doubles the variance
    truth = normal.cdf(1 / 2**0.5) - normal.cdf(1 / 4**0.5)
    hits = 0
    for repeat in range(200):
        pair = [[judged(80, seed=1000 + repeat, noise=noise)] for noise in (0.0, 1.0)]
        found = compare(*pair, WEIGHTED_AUC, seed=repeat, num_resamples=400)
        assert found is not None
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_permuted_labels_leave_nothing_to_find() -> None:
    """Negative control: the AUC of predictions for permuted labels is 0.5 within 0.03."""
    rng = np.random.default_rng(15)
    count = 4000
    labels = (rng.random(count) < 0.4).astype(np.int64)
    predictions = 1 / (1 + np.exp(-(2 * labels + rng.normal(size=count))))
    scores = Judged(
        predictions=predictions,
        labels=rng.permutation(labels),
        patients=np.arange(count),
        strata=labels,
    )
    assert WEIGHTED_AUC(scores, np.ones((1, count)))[0] == pytest.approx(0.5, abs=0.03)


def without_a_mistake(count: int, *, seed: int) -> Judged:
    """`count` patients of each class, all cases above all controls, in an order of this model's own."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], count)
    predictions = (labels + rng.random(2 * count)) / 2
    return Judged(
        predictions=predictions, labels=labels, patients=np.arange(2 * count), strata=labels
    )


def test_two_models_without_a_mistake_on_few_patients_are_not_shown_to_be_alike() -> None:
    """The bootstrap sees no variance there: what eight patients of a class did not show is what 37 % of all could."""
    one, other = (without_a_mistake(8, seed=seed) for seed in (1, 2))
    found = compare([one], [other], WEIGHTED_AUC, seed=1)
    assert found is not None
    assert found.value == 0
    rule_of_three = 1 - 0.025 ** (1 / 8)
    assert (found.low, found.high) == pytest.approx((-rule_of_three, rule_of_three))
    assert found.high == pytest.approx(1.959964 * found.standard_error, abs=1e-6)
    many = compare(
        [without_a_mistake(2000, seed=1)],
        [without_a_mistake(2000, seed=2)],
        WEIGHTED_AUC,
        seed=1,
        num_resamples=20,
    )
    assert many is not None
    assert many.high < 0.002


def test_models_that_rank_everybody_alike_are_the_same_to_the_auc() -> None:
    one = without_a_mistake(8, seed=1)
    bolder = Judged(
        predictions=one.predictions**3,
        labels=one.labels,
        patients=one.patients,
        strata=one.strata,
    )
    found = compare([bolder], [one], WEIGHTED_AUC, seed=1)
    assert found is not None
    assert (found.low, found.high, found.standard_error) == (0, 0, 0)
