"""The stream of random numbers: against the published keystream, and against the distributions it claims."""

import copy
import os
import pickle
import sys
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fedhealth.errors import PrivacyError
from fedhealth.privacy import randomness as module
from fedhealth.privacy.dp_sgd.noise import normals as torch_normals
from fedhealth.privacy.randomness import Randomness

SEED = bytes(range(32))
LOWEST_P = 1e-4
"""With fixed seeds these tests are not flaky; a p-value below this would be a bug."""


def _seeded(tag: int = 0) -> Randomness:
    return Randomness.seeded_for_tests(bytes([tag]) + SEED[1:])


def _constant(word: int) -> Randomness:
    class Constant(Randomness):
        """A stream of one word, to reach the ends of the range."""

        __slots__ = ()

        def uniform_bits(self, count: int) -> NDArray[np.uint64]:
            return np.full(count, word, dtype=np.uint64)

    return Constant.seeded_for_tests(SEED)


def test_the_stream_is_chacha20_of_the_seed() -> None:
    """RFC 8439, appendix A.1, test vector 1: key and nonce of zeros, block counter 0."""
    words = Randomness.seeded_for_tests(bytes(32)).uniform_bits(8)
    expected = (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    assert words.astype("<u8").tobytes().hex() == expected


def test_a_seed_repeats_and_says_so() -> None:
    first, again, other = _seeded(), _seeded(), _seeded(1)
    values = first.normals(1000)
    assert np.array_equal(values, again.normals(1000))
    assert not np.array_equal(values, other.normals(1000))
    assert first.generator == "seeded_for_tests"


def test_two_streams_from_the_system_differ_and_say_so() -> None:
    first, second = Randomness.from_os(), Randomness.from_os()
    assert first.generator == second.generator == "chacha20"
    assert not np.intersect1d(first.uniform_bits(1000), second.uniform_bits(1000)).size


def test_no_word_comes_twice_across_calls_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STREAM_BYTES", 4096)
    stream = _seeded()
    words = np.concatenate([stream.uniform_bits(n) for n in (1, 0, 511, 7, 300, 511, 512)])
    assert np.unique(words).size == words.size


def test_a_later_nonce_is_the_next_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STREAM_BYTES", 64)
    stream = _seeded()
    stream.uniform_bits(8)
    nonce = bytes(4) + (1).to_bytes(12, "little")
    cipher = Cipher(algorithms.ChaCha20(_seeded()._key, nonce), mode=None).encryptor()
    assert stream.uniform_bits(8).astype("<u8").tobytes() == cipher.update(bytes(64))


def test_bits_are_uniform() -> None:
    words = _seeded().uniform_bits(200_000)
    ones = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).sum(0)
    z = (ones - words.size / 2) / np.sqrt(words.size / 4)
    assert np.abs(z).max() < stats.norm.isf(LOWEST_P / 128)
    counts = np.bincount((words >> np.uint64(56)).astype(np.int64), minlength=256)
    assert stats.chisquare(counts).pvalue > LOWEST_P


@pytest.mark.parametrize(
    "make", [lambda n: _seeded().normals(n), lambda n: torch_normals(_seeded(), n).numpy()]
)
def test_normals_are_normal_and_independent(make: Callable[[int], NDArray[np.float64]]) -> None:
    values = make(500_001)
    assert values.dtype == np.float64
    assert values.shape == (500_001,)
    assert stats.kstest(values, "norm").pvalue > LOWEST_P
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / values.size)
    assert abs((values**4).mean() - 3) < 4 * np.sqrt(96 / values.size)
    half = values.size // 2
    # A pair comes from one radius: squares would be correlated if the angle were not uniform.
    for other in (values[half : 2 * half], np.roll(values[:half], 1)):
        assert abs(np.corrcoef(values[:half], other)[0, 1]) < 4 / np.sqrt(half)
        assert abs(np.corrcoef(values[:half] ** 2, other**2)[0, 1]) < 4 / np.sqrt(half)


def test_torch_makes_the_same_normals_as_numpy() -> None:
    for count in (0, 1, 2, 101, 40_000):
        expected = _seeded().normals(count)
        found = torch_normals(_seeded(), count).numpy()
        # 2 ulp of values up to 8.6, and the angle's cosine near a zero.
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_extreme_words_give_finite_normals(word: int) -> None:
    assert np.isfinite(_constant(word).normals(4)).all()
    assert np.isfinite(torch_normals(_constant(word), 4).numpy()).all()


@given(rate=st.floats(0, 1), word=st.integers(0, 2**64 - 1))
def test_bernoulli_compares_a_word_with_the_exact_rate(rate: float, word: int) -> None:
    drawn = _constant(word).bernoulli(1, rate)
    # The whole cell of this word, from word to word + 1, lies below the rate.
    assert bool(drawn[0]) == (Fraction(word + 1) <= Fraction(rate) * 2**64)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_ends_of_bernoulli_are_certain(rate: float) -> None:
    assert np.array_equal(_seeded().bernoulli(10_000, rate), np.full(10_000, bool(rate)))


def test_bernoulli_keeps_its_rate_and_draws_as_much_for_every_rate() -> None:
    drawn = _seeded().bernoulli(1_000_000, 0.3)
    assert stats.binomtest(int(drawn.sum()), drawn.size, 0.3).pvalue > LOWEST_P
    streams = [_seeded() for _ in range(3)]
    for stream, rate in zip(streams, (0.0, 0.3, 1.0), strict=True):
        stream.bernoulli(77, rate)
    assert len({int(stream.uniform_bits(1)[0]) for stream in streams}) == 1


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_rate_outside_of_0_and_1_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyError, match="FH-PRIVACY-051"):
        _seeded().bernoulli(1, rate)


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(PrivacyError, match="FH-PRIVACY-050"):
        Randomness.seeded_for_tests(b"short")


def test_the_key_is_not_shown() -> None:
    assert repr(_seeded()) == "Randomness(generator='seeded_for_tests')"


def test_a_stream_cannot_be_copied() -> None:
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PrivacyError, match="FH-PRIVACY-052"):
            copier(_seeded())


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [Randomness.from_os, _seeded])
def test_a_fork_does_not_repeat_the_stream(make: Callable[[], Randomness]) -> None:
    stream = make()
    stream.uniform_bits(3)
    children = []
    for _ in range(2):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write_end, stream.uniform_bits(64).tobytes())
            os._exit(0)
        os.waitpid(pid, 0)
        children.append(np.frombuffer(os.read(read_end, 4096), dtype=np.uint64))
        os.close(read_end)
        os.close(write_end)
    own = stream.uniform_bits(64)
    everything = np.concatenate([own, *children])
    assert np.unique(everything).size == 3 * 64
