"""A server that adds nothing up wrongly and tries to take a sum apart again, by the arithmetic of its weights.

Sums of `weight * whole number` fall apart: modulo one weight only the other term is left. So nothing that a site
weighs may be a multiple of its weight. Each attack here is given all that helps it, the weights too.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.fixed_point import SumInput, encode, signed
from fedhealth.secagg.layout import METRIC_FRACTION_BITS, MaskedLayout, TailLayout
from fedhealth.secagg.mask_stream import reduce_words
from fedhealth.secagg.metric_blur import blur_metrics

WEIGHTS = (211, 307)
"""Of two honest sites; a third colludes with the server, which takes its part away."""


def layout(num_values: int) -> MaskedLayout:
    return MaskedLayout(
        num_sites=3,
        num_values=num_values,
        levels=2**15 - 1,
        value_range=1.0,
        max_weight=4096,
        tail=TailLayout(train_metrics=(), evaluate_metrics=()),
    )


def honest_part(updates: Any, kind: MaskedLayout) -> Any:
    """The sum of the two honest sites' words, as signed numbers: the sum less the third site's part."""
    total = sum(
        encode(
            SumInput(update=update, weight=weight, train_metrics={}, evaluate_metrics={}),
            kind,
            Randomness.from_os(),
        )
        for update, weight in zip(updates, WEIGHTS, strict=True)
    )
    reduce_words(total, kind.modulus_bits)
    return signed(total[: kind.num_values], kind.modulus_bits)


def taken_apart(whole: Any, kind: MaskedLayout) -> Any:
    """The first site's update, if the sum were `w_1 q_1 + w_2 q_2`: q_1 is then `whole / w_1` modulo w_2."""
    first, second = WEIGHTS
    found = (whole * pow(first, -1, second)) % second
    found = np.where(found > second // 2, found - second, found)
    return found * kind.step


def test_two_honest_sites_of_a_sum_are_not_taken_apart_by_their_weights() -> None:
    kind, rng = layout(4000), np.random.default_rng(0)
    updates = [(rng.standard_normal(4000) * 1e-3).astype(np.float32) for _ in WEIGHTS]
    guess = taken_apart(honest_part(updates, kind), kind)
    assert abs(np.corrcoef(guess, updates[0])[0, 1]) < 0.1
    # The attack is one: on multiples of the weights it finds every value but those that rounding moved.
    multiples = sum(
        weight * np.round(update.astype(np.float64) / kind.step).astype(np.int64)
        for update, weight in zip(updates, WEIGHTS, strict=True)
    )
    assert np.abs(taken_apart(multiples, kind) - updates[0]).max() <= kind.step


def test_what_is_weighed_is_rounded_once_and_finer_than_before_it_was_weighed() -> None:
    kind, rng = layout(4000), np.random.default_rng(1)
    updates = [(rng.standard_normal(4000) * 1e-3).astype(np.float32) for _ in WEIGHTS]
    true = sum(w * u.astype(np.float64) for u, w in zip(updates, WEIGHTS, strict=True))
    assert np.abs(honest_part(updates, kind) * kind.step - true).max() <= 2 * kind.step


def test_signs_of_values_that_every_site_cut_are_not_told_apart() -> None:
    # A server that makes all gradients huge: were each cut to the end of the range, the sum would be one of four.
    kind, rng = layout(4000), np.random.default_rng(2)
    updates = [np.where(rng.random(4000) < 0.5, -9.0, 9.0).astype(np.float32) for _ in WEIGHTS]
    whole = honest_part(updates, kind)
    assert len(np.unique(whole)) > 3900
    opposite = np.sign(updates[0]) != np.sign(updates[1])
    guess = np.sign(whole[opposite]) * np.sign(
        WEIGHTS[0] - WEIGHTS[1]
    )  # right where the heavier one leads
    assert np.mean(guess == np.sign(updates[0][opposite])) < 0.95


METRICS = {"auc": (0.712, 0.655, 0.801), "log_loss": (0.583, 0.621, 0.497)}
"""With three digits, as the gate leaves them."""
SIZES = (211, 307, 160)


def of_three_digits(total: float, weights: tuple[int, ...]) -> list[tuple[float, float, float]]:
    """Every way in which three metrics of three digits have that weighted sum, as a whole number."""
    grid = np.arange(1000) / 1000
    whole = np.round(grid * 2**METRIC_FRACTION_BITS).astype(np.int64)
    first, second = np.meshgrid(whole, whole, indexing="ij")
    left = total - weights[0] * first - weights[1] * second
    third, rest = np.divmod(left, weights[2])
    places = np.searchsorted(whole, third).clip(max=whole.size - 1)
    is_one = (rest == 0) & (whole[places] == third)
    return [
        (float(grid[i]), float(grid[j]), float(grid[places[i, j]]))
        for i, j in zip(*np.nonzero(is_one), strict=True)
    ]


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_single_sites_are_not_told_by_their_digits(name: str) -> None:
    true = METRICS[name]
    plain = sum(w * round(m * 2**METRIC_FRACTION_BITS) for w, m in zip(SIZES, true, strict=True))
    assert true in of_three_digits(plain, SIZES)  # among a handful, of a thousand million
    assert len(of_three_digits(plain, SIZES)) < 20
    for _ in range(20):
        blurred = [
            blur_metrics({name: m}, digits=3, randomness=Randomness.from_os())[name] for m in true
        ]
        total = sum(
            w * round(m * 2**METRIC_FRACTION_BITS) for w, m in zip(SIZES, blurred, strict=True)
        )
        assert true not in of_three_digits(total, SIZES)


@given(
    name=st.sampled_from(sorted(METRIC_RANGES)),
    share=st.floats(0, 1),
    digits=st.integers(1, 4),
)
def test_a_blurred_metric_stays_in_its_range_and_within_its_last_digit(
    name: str, share: float, digits: int
) -> None:
    low, high = METRIC_RANGES[name]
    value = float(f"{low + share * (high - low):.{digits}g}")
    found = blur_metrics({name: value}, digits=digits, randomness=Randomness.from_os())[name]
    assert low <= found <= high
    assert abs(found - value) <= (value * 10.0 ** (1 - digits) if value else 10.0**-digits)


def test_a_blur_is_uniform_over_the_last_digit_and_without_bias() -> None:
    source = Randomness.from_os()
    found = np.array(
        [blur_metrics({"auc": 0.712}, digits=3, randomness=source)["auc"] for _ in range(4000)]
    )
    assert abs(found.mean() - 0.712) < 6 * 0.001 / np.sqrt(12 * 4000)
    assert found.min() < 0.71152
    assert found.max() > 0.71248


def test_steps_of_one_size_are_told_apart_by_their_weights() -> None:
    # A limit, shown on purpose: the first step of Adam is the learning rate up or down, whatever the gradient.
    kind, rng = layout(1000), np.random.default_rng(3)
    signs = [np.where(rng.random(1000) < 0.5, -1.0, 1.0) for _ in WEIGHTS]
    whole = honest_part([(0.01 * sign).astype(np.float32) for sign in signs], kind) * kind.step
    ways = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)])
    near = np.abs(whole[:, None] - 0.01 * ways @ np.array(WEIGHTS)).argmin(axis=1)
    assert (ways[near, 0] == signs[0]).all()
    assert (ways[near, 1] == signs[1]).all()


def test_two_sums_of_the_same_updates_by_other_weights_show_the_site_that_differs() -> None:
    # Why a site opens one round's sum with one set of settings: FedNova's weigh a site by its steps as well.
    kind, rng, steps = layout(500), np.random.default_rng(4), (10, 10, 4)
    updates = [(rng.standard_normal(500) * 0.01).astype(np.float32) for _ in steps]

    def total(scales: tuple[float, ...]) -> Any:
        words = sum(
            encode(
                SumInput(
                    update=(update * np.float32(scale)).astype(np.float32),
                    weight=weight,
                    train_metrics={},
                    evaluate_metrics={},
                ),
                kind,
                Randomness.from_os(),
            )
            for update, scale, weight in zip(updates, scales, SIZES, strict=True)
        )
        reduce_words(words, kind.modulus_bits)
        return signed(words[: kind.num_values], kind.modulus_bits) * kind.step

    plain, by_steps = total((1.0, 1.0, 1.0)), total(tuple(10 / count for count in steps))
    shown = (by_steps - plain) / (10 / 4 - 1) / SIZES[2]
    assert np.abs(shown - updates[2]).max() < 4 * kind.step / SIZES[2] / 1.5 * 2
