"""From numbers to words and back: unbiased, exact where it says so, and never around the modulus."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.fixed_point import (
    SumInput,
    _from_limbs,
    _limbs,
    check_sum,
    decode,
    encode,
    signed,
    with_check_words,
)
from fedhealth.secagg.layout import NUMBER_BITS, MaskedLayout, TailLayout
from fedhealth.secagg.mask_stream import reduce_words, word_type
from fedhealth.secagg.refusals import MaskingError

LARGEST_LOSS = METRIC_RANGES["train_loss"][1]
TAIL = TailLayout(train_metrics=("train_loss",), evaluate_metrics=("auc", "brier"))


def layout(**changes: Any) -> MaskedLayout:
    said = {
        "num_sites": 3,
        "num_values": 5,
        "levels": 2**15 - 1,
        "value_range": 1.0,
        "max_weight": 100,
        "tail": TAIL,
    }
    return MaskedLayout(**said | changes)


def given_by(update: Any, weight: int = 1, **metrics: float) -> SumInput:
    train = {name: value for name, value in metrics.items() if name == "train_loss"}
    return SumInput(
        update=np.asarray(update, dtype=np.float32),
        weight=weight,
        train_metrics=train,
        evaluate_metrics={n: v for n, v in metrics.items() if n not in train},
    )


def randomness() -> Randomness:
    return Randomness.seeded_for_tests(bytes(range(32)))


def summed(inputs: list[SumInput], kind: MaskedLayout) -> Any:
    source = randomness()
    total = np.zeros(kind.num_words, dtype=word_type(kind.modulus_bits))
    for one in inputs:
        total += encode(one, kind, source)
    reduce_words(total, kind.modulus_bits)
    return decode(total, kind)


def test_rounding_is_unbiased() -> None:
    coarse = layout(num_values=200_000, levels=1, value_range=1.0, max_weight=1)
    for value in (0.3, -0.3, 0.9, -0.01, 0.0, 1.0, -1.0):
        one = given_by(np.full(200_000, value))
        words = encode(one, coarse, randomness())
        reduce_words(words, coarse.modulus_bits)
        whole = signed(words[: coarse.num_values], coarse.modulus_bits)
        below = np.floor(np.float32(value))
        assert set(whole.tolist()) <= {below, below + 1}
        part = np.float64(np.float32(value)) - below
        assert abs(whole.mean() - np.float32(value)) <= 6 * np.sqrt(part * (1 - part) / 200_000)


def test_neighbouring_values_are_rounded_independently() -> None:
    coarse = layout(num_values=100_000, levels=1, max_weight=1)
    words = encode(given_by(np.full(100_000, 0.5)), coarse, randomness())[:100_000].astype(float)
    assert abs(np.corrcoef(words[:-1], words[1:])[0, 1]) < 6 / np.sqrt(100_000)


def test_the_mean_is_within_one_unit_and_the_weights_are_exact() -> None:
    rng = np.random.default_rng(0)
    kind = layout(num_values=1000)
    inputs = [given_by(rng.uniform(-1, 1, 1000), weight) for weight in (1, 37, 100)]
    out = summed(inputs, kind)
    weights = [one.weight for one in inputs]
    true = np.average([one.update.astype(np.float64) for one in inputs], axis=0, weights=weights)
    assert out.weight == 138
    assert out.num_cut == 0
    assert np.abs(out.mean_update - true).max() < kind.step


def test_values_beyond_the_range_are_cut_and_counted_over_all_sites() -> None:
    kind = layout()
    out = summed(
        [given_by([2, -3, 1, -1, 0]), given_by([5, 0, 0, 0, 0]), given_by([1, -1, 0.5, 0, 0])], kind
    )
    assert out.num_cut == 3
    # Cut somewhere between half of the range and its end; what is at the end already is not.
    assert (1 + 0.5 + 0.5) / 3 - kind.step <= out.mean_update[0] <= 1
    assert -2 / 3 - kind.step <= out.mean_update[1] <= -(1 + 0.5) / 3 + kind.step
    np.testing.assert_allclose(out.mean_update[2:], [0.5, -1 / 3, 0], atol=kind.step)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        encode(given_by([0, 0, value, 0, 0]), layout(), randomness())


@pytest.mark.parametrize("weight", [0, -1, 101])
def test_a_weight_out_of_range_is_refused(weight: int) -> None:
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        encode(given_by(np.zeros(5), weight), layout(), randomness())


@pytest.mark.parametrize("size", [0, 4, 6])
def test_an_update_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        encode(given_by(np.zeros(size)), layout(), randomness())


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, 1e30, 1e305, 1.7e308])
def test_a_metric_that_does_not_fit_is_refused(value: float) -> None:
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        encode(given_by(np.zeros(5), auc=value), layout(), randomness())


def test_a_metric_that_the_round_does_not_have_is_refused() -> None:
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        encode(given_by(np.zeros(5), accuracy=0.5), layout(), randomness())


def test_a_noised_sum_has_no_tail_to_encode_or_decode() -> None:
    kind = layout(tail=None)
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        encode(given_by(np.zeros(5)), kind, randomness())
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        decode(np.zeros(kind.num_words, dtype=np.uint32), kind)


def test_metrics_are_means_over_the_sites_that_have_them() -> None:
    out = summed(
        [
            given_by(np.zeros(5), 10, train_loss=0.5, auc=0.8),
            given_by(np.zeros(5), 30, train_loss=0.1),
            given_by(np.zeros(5), 60, train_loss=0.2, auc=0.6),
        ],
        layout(),
    )
    assert out.train_metrics == pytest.approx({"train_loss": 0.2}, abs=2**-21)
    assert out.evaluate_metrics == pytest.approx({"auc": (8 + 36) / 70}, abs=2**-21)


def test_a_sum_of_noise_is_no_sum() -> None:
    kind = layout()
    noise = np.random.default_rng(0).integers(0, 2**63, kind.num_words, dtype=np.uint64)
    words = noise.astype(word_type(kind.modulus_bits))
    reduce_words(words, kind.modulus_bits)
    with pytest.raises(MaskingError, match="FH-SECAGG-007"):
        decode(words, kind)
    with pytest.raises(MaskingError, match="FH-SECAGG-007"):
        decode(np.zeros_like(words), kind)  # of nobody


@pytest.mark.parametrize("num", [3, 100, 1000])
@pytest.mark.parametrize(("bits", "weight"), [(2, 1), (16, 1), (16, 4096), (24, 100_000_000)])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_sum_wraps_when_all_sites_are_at_the_end_of_the_range(
    num: int, bits: int, weight: int, sign: int
) -> None:
    kind = layout(num_sites=num, levels=2 ** (bits - 1) - 1, max_weight=weight, num_values=3)
    one = given_by([sign * 1e6, sign, 0], weight, auc=1.0, train_loss=LARGEST_LOSS)
    words = encode(one, kind, randomness())
    total = words * words.dtype.type(num)
    reduce_words(total, kind.modulus_bits)
    out = decode(total, kind)
    assert out.weight == num * weight
    assert out.num_cut == num
    assert out.mean_update[1:].tolist() == pytest.approx([sign, 0], rel=1e-12)
    assert 0.5 - kind.step <= sign * out.mean_update[0] <= 1
    assert out.evaluate_metrics == {"auc": 1.0}
    assert out.train_metrics == {"train_loss": LARGEST_LOSS}


@given(st.integers(2, 1000), st.integers(2, 24), st.integers(1, 10**8), st.data())
@settings(max_examples=100, deadline=None)
def test_limbs_of_any_numbers_carry_into_their_sum(
    num: int, bits: int, weight: int, data: st.DataObject
) -> None:
    kind = layout(num_sites=num, levels=2 ** (bits - 1) - 1, max_weight=weight, num_values=0)
    width = word_type(kind.modulus_bits)
    largest = 2**NUMBER_BITS - 1
    often = data.draw(st.lists(st.tuples(st.integers(0, largest), st.integers(0, num)), max_size=4))
    often.append((largest, 0))
    total, true, left = np.zeros(kind.num_limbs, dtype=width), 0, num
    for number, wanted in often:
        times = min(wanted, left) if number != largest else left
        left -= times
        total += _limbs([number], kind, width) * width.type(times)
        true += number * times
    reduce_words(total, kind.modulus_bits)
    assert _from_limbs(total, kind) == [true]


@pytest.mark.parametrize(
    ("name", "value"), [("auc", 7.0), ("auc", 1.001), ("train_loss", LARGEST_LOSS * 2)]
)
def test_a_sum_whose_mean_no_site_can_have_is_refused(name: str, value: float) -> None:
    words = encode(given_by([0, 0, 0, 0, 0], 10, **{name: value}), layout(), randomness())
    with pytest.raises(MaskingError, match="FH-SECAGG-007"):
        decode(words, layout())


def test_more_cut_values_than_values_are_refused() -> None:
    kind = layout()
    words = np.ones(kind.num_words, dtype=word_type(kind.modulus_bits))
    end = kind.num_values + kind.num_tail_words
    tail = [1, kind.num_sites * kind.num_values + 1, *[0] * 6]
    words[kind.num_values : end] = _limbs(tail, kind, words.dtype)
    with pytest.raises(MaskingError, match="FH-SECAGG-007"):
        decode(words, kind)


def test_a_number_that_needs_more_limbs_is_refused() -> None:
    kind = layout()
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        _limbs([2**NUMBER_BITS], kind, word_type(kind.modulus_bits))


@pytest.mark.parametrize("bits", [1, 2, 31, 32, 33, 62, 63])
def test_words_are_read_as_signed_numbers_of_the_modulus(bits: int) -> None:
    half = 2 ** (bits - 1)
    values = sorted(v for v in {-half, -1, 0, half - 1} if -half <= v < half)
    words = np.array([value % 2**bits for value in values], dtype=np.uint64)
    assert signed(words.astype(word_type(bits)), bits).tolist() == values


def test_a_sum_that_does_not_count_its_sites_is_refused() -> None:
    kind = MaskedLayout(
        num_sites=5,
        num_values=8,
        levels=1,
        value_range=1.0,
        max_weight=1,
        tail=None,
        fixed_modulus_bits=24,
    )
    parts = [with_check_words(np.full(8, n, dtype=np.int64), kind) for n in range(3)]
    total = sum(parts[1:], start=parts[0])
    check_sum(total, kind, 3)
    for wrong in (2, 4):
        with pytest.raises(MaskingError, match="FH-SECAGG-007"):
            check_sum(total, kind, wrong)
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        with_check_words(np.zeros(9, dtype=np.int64), kind)


@pytest.mark.parametrize("kept", [None, [1, 4, 5]])
def test_the_moved_model_is_the_old_one_and_the_mean_change_of_what_travelled(kept: Any) -> None:
    origin = np.linspace(-1, 1, 6, dtype=np.float32)
    size = 6 if kept is None else len(kept)
    layout = MaskedLayout(
        num_sites=2,
        num_values=size,
        levels=2**15 - 1,
        value_range=1.0,
        max_weight=10,
        tail=TailLayout(train_metrics=(), evaluate_metrics=()),
    )
    update = np.full(size, 0.25, dtype=np.float32)
    given = SumInput(update=update, weight=10, train_metrics={}, evaluate_metrics={})
    words = encode(given, layout, Randomness.from_os())
    reduce_words(words, layout.modulus_bits)
    out = decode(words, layout)
    where = None if kept is None else np.array(kept)
    moved = out.moved(origin, where, 1.0 if kept is None else 0.5)
    expected = origin.copy()
    expected[slice(None) if where is None else where] += 0.25 if kept is None else 0.5
    np.testing.assert_allclose(moved, expected, atol=2 * layout.step)
    assert moved.dtype == np.float32
