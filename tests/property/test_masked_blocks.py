"""Blocks under masks: each sum is divided by its owners' own weight, to the last bit, whoever has what."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.fixed_point import SumInput, SumOfBlock, decode, encode, signed
from fedhealth.secagg.layout import MaskedLayout, TailLayout
from fedhealth.secagg.mask_stream import reduce_words, word_type
from fedhealth.secagg.refusals import MaskingError

NUM = 12
PARTS = ((slice(0, 3), slice(8, 10)), (slice(5, 8),))
"""Of two blocks; 3, 4, 10 and 11 are everybody's."""
MOST = 1000


def layout(num_sites: int, num_values: int) -> MaskedLayout:
    return MaskedLayout(
        num_sites=num_sites,
        num_values=num_values,
        levels=2**15 - 1,
        value_range=1.0,
        max_weight=MOST,
        tail=TailLayout(train_metrics=(), evaluate_metrics=("auc",), num_blocks=2),
    )


@st.composite
def sums(draw: st.DrawFn) -> Any:
    num = draw(st.integers(2, 5))
    trains = [(draw(st.booleans()), draw(st.booleans())) for _ in range(num)]
    weights = [draw(st.integers(1, MOST)) for _ in range(num)]
    positions = st.sets(st.integers(0, NUM - 1), min_size=1)
    kept = draw(st.none() | positions.map(lambda chosen: np.array(sorted(chosen))))
    return trains, weights, kept, draw(st.integers(0, 2**32))


@given(case=sums())
@settings(max_examples=60, deadline=None)
def test_a_blocks_mean_is_its_owners_fixed_point_sum_over_their_weight_bit_for_bit(
    case: Any,
) -> None:
    trains, weights, kept, seed = case
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=NUM).astype(np.float32)
    where = np.arange(NUM) if kept is None else kept
    kind = layout(len(weights), where.size)
    block_of = {p: b for b, parts in enumerate(PARTS) for part in parts for p in range(NUM)[part]}
    total = np.zeros(kind.num_words, dtype=word_type(kind.modulus_bits))
    by_hand, shares = [0] * where.size, [0] * where.size
    for own, weight in zip(trains, weights, strict=True):
        change = rng.uniform(-0.9, 0.9, NUM).astype(np.float32)
        change[[p for p, b in block_of.items() if not own[b]]] = 0
        given = SumInput(
            update=change[where], weight=weight, train_metrics={}, evaluate_metrics={}, trains=own
        )
        words = encode(given, kind, Randomness.from_os())
        total += words
        reduce_words(words, kind.modulus_bits)
        for place, whole in enumerate(signed(words[: where.size], kind.modulus_bits).tolist()):
            position = int(where[place])
            is_owner = position not in block_of or own[block_of[position]]
            assert is_owner or whole == 0  # what has not moved is an exact zero
            by_hand[place] += whole
            shares[place] += weight if is_owner else 0
    reduce_words(total, kind.modulus_bits)
    blocks = [
        SumOfBlock(parts=parts, num_owners=sum(own[number] for own in trains))
        for number, parts in enumerate(PARTS)
    ]
    out = decode(total, kind, blocks)
    share = 1.0 if kept is None else 0.5
    moved = out.moved(origin, kept, share, blocks)
    assert out.block_weights == tuple(
        sum(w for own, w in zip(trains, weights, strict=True) if own[number]) for number in (0, 1)
    )
    for place, position in enumerate(where.tolist()):
        scale = kind.step / shares[place] / share if shares[place] else 0.0
        expected = np.float32(origin[position] + np.float64(by_hand[place]) * scale)
        assert moved[position].tobytes() == expected.tobytes()
    left = sorted(set(range(NUM)) - set(where.tolist()))
    assert (moved[left] == origin[left]).all()


@pytest.mark.parametrize("num_owners", [0, 3])
def test_a_weight_that_a_blocks_owners_cannot_have_is_refused(num_owners: int) -> None:
    kind = layout(3, NUM)
    words = np.zeros(kind.num_words, dtype=word_type(kind.modulus_bits))
    for weight, own in ((1, True), (1, True), (MOST, False)):
        words += encode(
            SumInput(
                update=np.zeros(NUM, dtype=np.float32),
                weight=weight,
                train_metrics={},
                evaluate_metrics={},
                trains=(own, False),
            ),
            kind,
            Randomness.from_os(),
        )
    nobody = SumOfBlock(parts=PARTS[1], num_owners=0)
    right = [SumOfBlock(parts=PARTS[0], num_owners=2), nobody]
    assert decode(words, kind, right).block_weights == (2, 0)
    # Of nobody there is no weight, and three sites weigh three at least.
    wrong = [SumOfBlock(parts=PARTS[0], num_owners=num_owners), nobody]
    with pytest.raises(MaskingError, match="FH-SECAGG-007"):
        decode(words, kind, wrong)


def test_blocks_that_are_not_the_rounds_are_refused() -> None:
    kind = layout(3, NUM)
    given = SumInput(
        update=np.zeros(NUM, dtype=np.float32), weight=1, train_metrics={}, evaluate_metrics={}
    )
    with pytest.raises(MaskingError, match="FH-SECAGG-006"):
        encode(given, kind, Randomness.from_os())
