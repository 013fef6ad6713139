"""What lies where: known from public numbers alone, and large enough for any cohort that it accepts."""

import dataclasses
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhealth.secagg.fixed_point import SumInput
from fedhealth.secagg.layout import CHECK_WORDS, MaskedLayout, TailLayout
from fedhealth.secagg.refusals import MaskingError

TAIL = TailLayout(train_metrics=("train_loss",), evaluate_metrics=("auc",))


def layout(**changes: Any) -> MaskedLayout:
    said = {
        "num_sites": 100,
        "num_values": 1000,
        "levels": 2**15 - 1,
        "value_range": 1.0,
        "max_weight": 4096,
        "tail": TAIL,
    }
    return MaskedLayout(**said | changes)


@given(st.integers(2, 1000), st.integers(2, 24), st.integers(1, 10**8))
def test_the_modulus_is_the_smallest_that_holds_every_sum_with_its_sign(
    num: int, bits: int, weight: int
) -> None:
    kind = layout(num_sites=num, levels=2 ** (bits - 1) - 1, max_weight=weight)
    most = num * kind.levels * weight
    assert 2 ** (kind.modulus_bits - 1) > most >= 2 ** (kind.modulus_bits - 2)
    assert num * (2**kind.limb_bits - 1) < 2**kind.modulus_bits
    assert kind.limb_bits * kind.num_limbs >= 96


def test_a_hundred_sites_have_a_layout_of_this_size() -> None:
    kind = layout()
    assert (kind.modulus_bits, kind.limb_bits, kind.num_limbs) == (35, 28, 4)
    assert kind.num_words == 1000 + 6 * 4 + CHECK_WORDS
    assert kind.num_bytes == 129 * 35


def test_an_evaluation_has_a_tail_and_nothing_else() -> None:
    assert layout(num_values=0).num_words == 6 * layout().num_limbs + CHECK_WORDS


def test_a_noised_sum_has_its_own_modulus_and_no_tail() -> None:
    kind = layout(tail=None, fixed_modulus_bits=24)
    assert (kind.modulus_bits, kind.num_words) == (24, 1000 + CHECK_WORDS)
    assert kind.num_bytes == 126 * 24


@pytest.mark.parametrize(
    "changes",
    [
        {"max_weight": 2**60},
        {"levels": 2**40, "max_weight": 2**20},
        {"num_sites": 1000, "fixed_modulus_bits": 8},
        {"fixed_modulus_bits": 64},
    ],
)
def test_a_sum_that_does_not_fit_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(MaskingError, match="FH-SECAGG-005"):
        layout(**changes)


def test_nothing_of_one_site_is_in_a_layout() -> None:
    ours = {field.name for field in dataclasses.fields(MaskedLayout)}
    assert ours.isdisjoint(inspect.signature(SumInput).parameters)
