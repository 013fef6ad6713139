"""What intervals allow to say, by rule; and that nothing more is ever said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhealth.models.metrics import resampled_auc
from fedhealth.statistics.bootstrap import compare
from fedhealth.statistics.holm import holm
from fedhealth.statistics.judged import Weighted
from fedhealth.statistics.verdicts import (
    ALPHA,
    Gain,
    Verdict,
    gain_of,
    judge_all,
    judge_sites,
)

from .conftest import Maker, make_judged

WEIGHTED_AUC = Weighted(resampled_auc)


def gain(low: float, high: float, p_value: float) -> Gain:
    return Gain(
        value=(low + high) / 2, low=low, high=high, p_value=p_value, standard_error=(high - low) / 4
    )


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (gain(0.01, 0.05, 0.001), Verdict.WORTH_IT),
        (gain(-0.05, -0.01, 0.001), Verdict.WORSE),
        (gain(-0.010, -0.005, 0.001), Verdict.WORSE),  # also within the margin: worse is worse
        (gain(-0.01, 0.01, 0.9), Verdict.EQUIVALENT),
        (gain(-0.01, 0.05, 0.2), Verdict.NO_LOSS),
        (gain(-0.03, 0.05, 0.4), Verdict.UNDECIDED),
        (None, Verdict.TOO_FEW),
    ],
)
def test_one_site_is_judged_by_its_interval(found: Gain | None, verdict: Verdict) -> None:
    assert judge_sites({"a": found}, margin=0.02)["a"].verdict is verdict


def test_a_gain_that_holm_does_not_confirm_is_no_claim() -> None:
    lone = {"a": gain(0.001, 0.05, 0.03)}
    assert judge_sites(lone, margin=0.02)["a"].verdict is Verdict.WORTH_IT
    among = {**lone, "b": gain(-0.01, 0.03, 0.5), "c": gain(-0.01, 0.03, 0.5)}
    found = judge_sites(among, margin=0.02)["a"]
    assert found.verdict is Verdict.NO_LOSS
    assert found.adjusted_p == pytest.approx(0.09)


def test_better_everywhere_needs_every_site() -> None:
    gains: dict[str, Gain | None] = {"a": gain(0.01, 0.05, 0.001), "b": gain(0.001, 0.02, 0.04)}
    overall = judge_all(gains, judge_sites(gains, margin=0.02), margin=0.02)
    assert overall.is_better_everywhere
    assert overall.worst_site == "b"
    gains["c"] = None
    overall = judge_all(gains, judge_sites(gains, margin=0.02), margin=0.02)
    assert not overall.is_better_everywhere
    assert overall.is_non_inferior_everywhere
    assert overall.left_out == ("c",)
    gains["c"] = gain(-0.001, 0.05, 0.06)
    assert not judge_all(gains, judge_sites(gains, margin=0.02), margin=0.02).is_better_everywhere


def test_nothing_is_claimed_of_no_site() -> None:
    overall = judge_all({}, {}, margin=0.02)
    assert not overall.is_better_everywhere
    assert not overall.is_non_inferior_everywhere
    assert overall.worst_site is None


def test_what_could_have_been_shown_is_what_power_says(judged: Maker) -> None:
    """With a true difference of `detectable`, an estimate with that error is significant in 80 % of cases."""
    found = gain(-0.02, 0.02, 1.0)
    draws = np.random.default_rng(1).normal(found.detectable, found.standard_error, 100_000)
    assert (draws > 1.96 * found.standard_error).mean() == pytest.approx(0.8, abs=0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_is_monotone_and_does_not_depend_on_order(values: list[float], random) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - hypothesis gives a random.Random
    adjusted = holm(values)
    assert all(v <= a <= 1 for v, a in zip(values, adjusted, strict=True))
    assert [a for _, a in sorted(zip(values, adjusted, strict=True))] == sorted(adjusted)
    order = list(range(len(values)))
    random.shuffle(order)
    assert holm([values[k] for k in order]) == pytest.approx([adjusted[k] for k in order])


@given(seed=st.integers(0, 1000), noise=st.floats(0, 2), count=st.integers(10, 60))
def test_swapping_the_models_flips_every_sign(seed: int, noise: float, count: int) -> None:
    one, other = make_judged(count, seed=seed), make_judged(count, seed=seed, noise=noise)
    ahead = compare([one], [other], WEIGHTED_AUC, seed=seed, num_resamples=60)
    behind = compare([other], [one], WEIGHTED_AUC, seed=seed, num_resamples=60)
    assert ahead is not None
    assert behind is not None
    assert ahead.value == pytest.approx(-behind.value, abs=1e-12)
    assert (ahead.low, ahead.high) == pytest.approx((-behind.high, -behind.low), abs=1e-12)
    assert ahead.p_value == pytest.approx(behind.p_value)
    assert gain_of(ahead, larger_is_better=True).low == pytest.approx(
        gain_of(behind, larger_is_better=False).low, abs=1e-12
    )


@given(seed=st.integers(0, 1000), seeds=st.integers(1, 4))
def test_a_model_is_never_better_than_itself(seed: int, seeds: int) -> None:
    same = [make_judged(30, seed=seed + k) for k in range(seeds)]
    found = compare(same, same, WEIGHTED_AUC, seed=seed, num_resamples=60)
    assert found is not None
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    gains: dict[str, Gain | None] = {"a": gain_of(found, larger_is_better=True)}
    verdicts = judge_sites(gains, margin=0.02)
    assert verdicts["a"].verdict is Verdict.EQUIVALENT
    assert not judge_all(gains, verdicts, margin=0.02).is_better_everywhere


intervals = st.tuples(st.floats(-0.2, 0.2), st.floats(0, 0.2), st.floats(0, 1)).map(
    lambda t: gain(t[0], t[0] + t[1], t[2])
)


@given(st.dictionaries(st.sampled_from("abcdef"), st.none() | intervals, min_size=1))
def test_no_verdict_says_more_than_its_interval(gains: dict[str, Gain | None]) -> None:
    verdicts = judge_sites(gains, margin=0.02)
    overall = judge_all(gains, verdicts, margin=0.02)
    for site, found in gains.items():
        verdict, adjusted = verdicts[site].verdict, verdicts[site].adjusted_p
        if found is None:
            assert verdict is Verdict.TOO_FEW
            continue
        assert adjusted is not None
        assert adjusted >= found.p_value
        if verdict is Verdict.WORTH_IT:
            assert found.low > 0
            assert adjusted <= ALPHA
        if verdict in {Verdict.EQUIVALENT, Verdict.NO_LOSS}:
            assert found.low > -0.02
        if overall.is_better_everywhere:
            assert found.low > 0
        if overall.is_non_inferior_everywhere:
            assert found.low > -0.02
