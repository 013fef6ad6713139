"""Masked vectors are noise to every statistic that we try, and what is not masked well is told apart by the same ones.

Masks are truly random, so a test fails by chance with the probability of its threshold.
"""

import itertools
import os
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedhealth.secagg.mask_stream import add_mask, reduce_words
from fedhealth.secagg.packing import pack, unpack

CHANCE = 1e-7
"""Of one test; about a hundred are made in a run."""
NUM_VALUES = 40_000


def p_uniform(counts: Any) -> float:
    return float(stats.chisquare(counts).pvalue)


def p_same(first: Any, second: Any) -> float:
    table = np.array([first, second])
    return float(stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue)


def byte_counts(data: bytes) -> Any:
    return np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)


def like_an_update(consortium: Any, seed: int) -> Any:
    """Words as they are before masking: small numbers around zero."""
    layout = consortium.layout()
    rng = np.random.default_rng(seed)
    values = np.rint(rng.standard_normal(layout.num_words) * 500).astype(np.int64)
    words = values.view(np.uint64).astype(consortium.words("site-0").dtype)
    reduce_words(words, layout.modulus_bits)
    return words


def vectors(consortium: Any, rounds: Any, words: dict[str, Any]) -> dict[str, bytes]:
    """Each site's masked vector without the filling after its last word."""
    layout = consortium.layout()
    assert layout.num_words % 8 == 0
    return {name: sent.vector for name, sent in rounds.masked(consortium, words=words).sent.items()}


@pytest.fixture(params=[4, 12, 15], ids=["small", "middle", "above 32 bits"])
def consortium(request: Any, make_consortium: Any) -> Any:
    made = make_consortium(3, bits=request.param, num_values=NUM_VALUES, max_weight=50_000)
    while made.layout().num_words % 8:
        made.num_values += 1
    return made


def test_masked_bytes_and_words_are_uniform(consortium: Any, rounds: Any) -> None:
    words = {name: like_an_update(consortium, place) for place, name in enumerate(consortium.names)}
    layout = consortium.layout()
    for vector in vectors(consortium, rounds, words).values():
        assert p_uniform(byte_counts(vector)) > CHANCE
        masked = unpack(vector, count=layout.num_words, bits=layout.modulus_bits).astype(np.uint64)
        for divisor in (2, 3, 5, 7, 11, 13, 16):
            # 2**bits is no multiple of an odd number: the excess is below 2**-17, and no sample of this size sees it
            assert p_uniform(np.bincount((masked % divisor).astype(int))) > CHANCE
        top = (masked >> np.uint64(layout.modulus_bits - 6)).astype(int)
        assert p_uniform(np.bincount(top, minlength=64)) > CHANCE


def test_masked_words_do_not_go_with_the_words_below(consortium: Any, rounds: Any) -> None:
    words = {name: like_an_update(consortium, place) for place, name in enumerate(consortium.names)}
    layout = consortium.layout()
    for name, vector in vectors(consortium, rounds, words).items():
        masked = unpack(vector, count=layout.num_words, bits=layout.modulus_bits)
        correlation = np.corrcoef(masked.astype(float), words[name].astype(float))[0, 1]
        assert abs(correlation) < 6 / np.sqrt(layout.num_words)


def test_two_rounds_with_the_same_sum_of_other_updates_look_alike(
    consortium: Any, rounds: Any
) -> None:
    first = {name: like_an_update(consortium, place) for place, name in enumerate(consortium.names)}
    bits = consortium.layout().modulus_bits
    shift = like_an_update(consortium, 99) * first["site-0"].dtype.type(40)
    second = dict(first)
    second["site-0"] = first["site-0"] + shift
    second["site-1"] = first["site-1"] - shift
    for words in second.values():
        reduce_words(words, bits)
    sums = [sum(words.values(), start=0 * shift) for words in (first, second)]
    for total in sums:
        reduce_words(total, bits)
    assert (sums[0] == sums[1]).all()
    seen = [vectors(consortium, rounds, words) for words in (first, second)]
    for name in consortium.names:
        assert p_same(*(byte_counts(vectors[name]) for vectors in seen)) > CHANCE
    # Negative control: without masks the same statistic tells the rounds apart at once.
    plain = [byte_counts(pack(words["site-0"], bits)) for words in (first, second)]
    assert p_same(*plain) < CHANCE


def test_words_without_a_mask_are_not_uniform(consortium: Any) -> None:
    words = like_an_update(consortium, 0)
    assert p_uniform(byte_counts(pack(words, consortium.layout().modulus_bits))) < CHANCE


def test_two_masks_from_seeds_of_eight_bits_are_told_from_two_random_ones() -> None:
    """A single such mask looks uniform; what gives it away is that masks come again (or can be tried)."""

    def repeats(draw: Any) -> int:
        masks = []
        for _ in range(100):
            words = np.zeros(4, dtype=np.uint32)
            add_mask(words, draw(), 1)
            masks.append(words.tobytes())
        return sum(a == b for a, b in itertools.combinations(masks, 2))

    def small() -> bytes:
        return bytes(31) + os.urandom(1)

    assert repeats(lambda: os.urandom(32)) == 0
    assert repeats(small) > 0  # 100 of 256: no repetition has a chance of 1e-10


def test_a_mask_of_fewer_bits_than_the_word_is_told_from_a_uniform_one(consortium: Any) -> None:
    words = like_an_update(consortium, 0)
    bits = consortium.layout().modulus_bits
    words += np.random.default_rng(0).integers(0, 256, words.size).astype(words.dtype)
    reduce_words(words, bits)
    assert p_uniform(byte_counts(pack(words, bits))) < CHANCE


def test_a_site_that_masks_twice_does_so_with_masks_that_have_nothing_in_common(
    consortium: Any, rounds: Any
) -> None:
    # Of the same words, even for the same manifest: the self masks are new. (It must not: see RoundMask.)
    words = {name: like_an_update(consortium, 0) for name in consortium.names}
    bits, count = consortium.layout().modulus_bits, consortium.layout().num_words
    first, second = (
        unpack(vectors(consortium, rounds, words)["site-0"], count=count, bits=bits)
        for _ in range(2)
    )
    difference = first - second
    reduce_words(difference, bits)
    assert p_uniform(byte_counts(pack(difference, bits))) > CHANCE
