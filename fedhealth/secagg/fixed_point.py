"""From an update to words that can be summed modulo a power of two, and from the sum back to a mean.

Stochastic rounding to a scale that all sites share keeps the mean unbiased (Suresh et al. 2017, arXiv 1611.00429,
section 2). A site's weight multiplies the value *before* it is rounded: a sum of whole numbers times weights would fall
apart, since modulo the weight of one of two sites it is the other's (`tests/unit/secagg/test_sums_apart.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.privacy.randomness import Randomness
from fedhealth.secagg.layout import METRIC_FRACTION_BITS, NUMBER_BITS, MaskedLayout
from fedhealth.secagg.mask_stream import Words, word_type
from fedhealth.secagg.refusals import MaskingError

_BLOCK: Final = 1 << 16
_DITHER_BITS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SumInput:
    """What one site puts under its mask.

    Attributes:
        update: (num_values,) float32, the change of the coordinates that travel.
        weight: 1 to `max_weight`.
        train_metrics: by name; a metric that is undefined at this site is left out.
        evaluate_metrics: likewise.
        trains: for every block of the model, whether this site trained it.
    """

    update: NDArray[np.float32]
    weight: int
    train_metrics: Mapping[str, float]
    evaluate_metrics: Mapping[str, float]
    trains: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SumOfBlock:
    """One block in the sum: where it lies in the flat vector, and how many sites of the sum trained it."""

    parts: tuple[slice, ...]
    num_owners: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SumOutput:
    """What the sum of all sites says.

    Attributes:
        words: (num_values,) of the model, unmasked, below 2**modulus_bits.
        modulus_bits: of a word.
        step: real size of one unit of a word.
        weight: of all sites together.
        block_weights: of the sites that trained each block; 0 where none did.
        num_cut: values that were larger than the range, over all sites.
        train_metrics: weighted means over the sites that have the metric.
        evaluate_metrics: likewise.
    """

    words: Words = field(repr=False)
    modulus_bits: int
    step: float
    weight: int
    block_weights: tuple[int, ...]
    num_cut: int
    train_metrics: dict[str, float]
    evaluate_metrics: dict[str, float]

    @property
    def mean_update(self) -> NDArray[np.float64]:
        """(num_values,) the weighted mean of the sites' changes, over all sites."""
        mean = signed(self.words, self.modulus_bits).astype(np.float64)
        mean *= self.step / self.weight
        return mean

    def moved(
        self,
        origin: NDArray[np.float32],
        kept: NDArray[np.intp] | None,
        kept_share: float,
        blocks: Sequence[SumOfBlock] = (),
    ) -> NDArray[np.float32]:
        """The model after the mean change: memory beside it does not grow with the model.

        A block's sum is divided by the weight of the sites that trained it; a block that none did stays.

        Args:
            origin: (n,) the model before.
            kept: positions that travelled; None when all did.
            kept_share: the chance of each to travel: what did is divided by it.
            blocks: as they were given to `decode`.

        Raises:
            MaskingError: FH-SECAGG-007 a value is not finite.
        """
        moved = np.array(origin, dtype=np.float32)
        scaled = [
            (_among(part, kept), self.step / weight / kept_share if weight else 0.0)
            for block, weight in zip(blocks, self.block_weights, strict=True)
            for part in block.parts
        ]
        usual = self.step / self.weight / kept_share
        for start in range(0, self.words.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            change = signed(self.words[part], self.modulus_bits).astype(np.float64)
            change *= _scales(start, change.size, usual, scaled)
            place = part if kept is None else kept[part]
            with np.errstate(over="ignore"):
                moved[place] = origin[place] + change
            if not np.isfinite(moved[place]).all():
                raise _no_sum()
        return moved


def encode(given: SumInput, layout: MaskedLayout, randomness: Randomness) -> Words:
    """The words of one site, before its masks: (num_words,) modulo 2**modulus_bits (the high bits are not cleared).

    Raises:
        MaskingError: FH-SECAGG-006 the weight, a metric or the number of values does not fit the layout.
    """
    tail = layout.tail
    if tail is None or given.update.shape != (layout.num_values,):
        raise _misfit("the update has another length than the round's model")
    if not 1 <= given.weight <= layout.max_weight:
        raise _misfit(f"the site's weight is not between 1 and {layout.max_weight}")
    kind = word_type(layout.modulus_bits)
    most = layout.levels * given.weight
    words = np.empty(layout.num_words, dtype=kind)
    values, num_cut = words[: layout.num_values], 0
    for start in range(0, layout.num_values, _BLOCK):
        part = slice(start, start + _BLOCK)
        scaled = given.update[part].astype(np.float64) / layout.step
        if not np.isfinite(scaled).all():
            raise _misfit("a value is not finite")
        is_cut = np.abs(scaled) > layout.levels
        num_cut += int(np.count_nonzero(is_cut))
        scaled[is_cut] = _cut(np.sign(scaled[is_cut]), layout.levels, randomness)
        scaled *= given.weight
        rounded = np.floor(scaled + _dither(scaled.size, randomness))
        whole = np.clip(rounded, -most, most).astype(np.int64)
        values[part] = whole.view(np.uint64).astype(kind, copy=False)
    if len(given.trains) != tail.num_blocks:
        raise _misfit("the blocks that it trained are not those of the round's model")
    numbers = [given.weight, num_cut, *(given.weight * trained for trained in given.trains)]
    for names, metrics in (
        (tail.train_metrics, given.train_metrics),
        (tail.evaluate_metrics, given.evaluate_metrics),
    ):
        numbers += _metric_numbers(names, metrics, given.weight)
    end = layout.num_values + layout.num_tail_words
    words[layout.num_values : end] = _limbs(numbers, layout, kind)
    words[end:] = 1
    return words


def with_check_words(whole: NDArray[np.int64], layout: MaskedLayout) -> Words:
    """A noised part of a sum, (num_values,) int64, as the words of one site.

    Raises:
        MaskingError: FH-SECAGG-006 another length, or the layout has a tail.
    """
    if layout.tail is not None or whole.shape != (layout.num_values,):
        raise _misfit("the noised sum has another length than the round's vector")
    words: Words = np.ones(layout.num_words, dtype=word_type(layout.modulus_bits))
    words[: layout.num_values] = whole.view(np.uint64).astype(words.dtype)
    return words


def check_sum(total: Words, layout: MaskedLayout, num_sites: int) -> None:
    """Does the unmasked sum count exactly its sites?

    Raises:
        MaskingError: FH-SECAGG-007 it does not: a share was wrong, or a site answered another manifest.
    """
    counts = total[layout.num_values + layout.num_tail_words :]
    if not bool((counts == num_sites % (1 << layout.modulus_bits)).all()):
        raise _no_sum()


def decode(total: Words, layout: MaskedLayout, blocks: Sequence[SumOfBlock] = ()) -> SumOutput:
    """Means from the unmasked sum, whose words are below 2**modulus_bits.

    Args:
        total: of all survivors.
        layout: of the round.
        blocks: what is public of the model's blocks.

    Raises:
        MaskingError: FH-SECAGG-007 the sum cannot be one of the cohort's: a site did not keep the layout.
    """
    tail = layout.tail
    if tail is None:
        raise _misfit("a noised sum has no tail")
    end = layout.num_values + layout.num_tail_words
    numbers = _from_limbs(total[layout.num_values : end], layout)
    weight, num_cut = numbers[0], numbers[1]
    of_blocks, of_metrics = numbers[2 : 2 + tail.num_blocks], numbers[2 + tail.num_blocks :]
    if len(blocks) != tail.num_blocks:
        raise _misfit("the sum has another number of blocks than the model")
    can_be = (
        1 <= weight <= layout.num_sites * layout.max_weight
        and num_cut <= layout.num_sites * layout.num_values
        and all(share <= weight for share in of_metrics[::2])
        and all(
            block.num_owners <= share <= min(weight, block.num_owners * layout.max_weight)
            for block, share in zip(blocks, of_blocks, strict=True)
        )
    )
    if not can_be:
        raise _no_sum()
    train, evaluate = _metric_means(of_metrics, tail.train_metrics, tail.evaluate_metrics)
    for name, mean in (*train.items(), *evaluate.items()):
        low, high = METRIC_RANGES[name]
        if not low <= mean <= high:
            raise _no_sum()
    return SumOutput(
        words=total[: layout.num_values],
        modulus_bits=layout.modulus_bits,
        step=layout.step,
        weight=weight,
        block_weights=tuple(of_blocks),
        num_cut=num_cut,
        train_metrics=train,
        evaluate_metrics=evaluate,
    )


def signed(words: Words, modulus_bits: int) -> NDArray[np.int64]:
    """(n,) words below 2**modulus_bits as numbers from -2**(modulus_bits-1) on."""
    whole = words.astype(np.int64)
    half = 1 << (modulus_bits - 1)
    is_negative = whole >= half
    for _ in range(2):  # 2**63 itself is no int64
        whole[is_negative] -= half
    return whole


def _among(part: slice, kept: NDArray[np.intp] | None) -> slice:
    """Where a range of the flat vector lies among the positions that travelled."""
    if kept is None:
        return part
    start, stop = np.searchsorted(kept, [part.start, part.stop])
    return slice(int(start), int(stop))


def _scales(
    start: int, count: int, usual: float, ranges: Sequence[tuple[slice, float]]
) -> NDArray[np.float64] | float:
    """What (count,) values from `start` on are multiplied by: one number where no range is among them."""
    here = [
        (slice(max(part.start - start, 0), part.stop - start), scale)
        for part, scale in ranges
        if part.start < start + count and part.stop > start
    ]
    if not here:
        return usual
    scales = np.full(count, usual)
    for part, scale in here:
        scales[part] = scale
    return scales


def _cut(signs: NDArray[np.float64], levels: int, randomness: Randomness) -> NDArray[np.float64]:
    """Anywhere between half of the range and all of it: of values that all sites cut alike, a sum tells the signs."""
    return signs * levels * (0.5 + 0.5 * _dither(signs.size, randomness))


def _dither(count: int, randomness: Randomness) -> NDArray[np.float64]:
    """(count,) uniform on [0, 1) with 32 bits each, from a cryptographic stream."""
    words = randomness.uniform_bits(-(-count // 2)).view(np.uint32)[:count]
    return words.astype(np.float64) * 2.0**-_DITHER_BITS


def _metric_numbers(names: Sequence[str], metrics: Mapping[str, float], weight: int) -> list[int]:
    if not set(metrics) <= set(names):
        raise _misfit("a metric is not one of the round's")
    numbers = []
    for name in names:
        value = metrics.get(name)
        if value is None:
            numbers += [0, 0]
            continue
        scaled = value * 2**METRIC_FRACTION_BITS
        if not math.isfinite(scaled) or scaled < 0:
            raise _misfit(f"metric {name} is not a number of at least 0")
        numbers += [weight, weight * round(scaled)]
    return numbers


def _metric_means(
    numbers: Sequence[int], train: Sequence[str], evaluate: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    means = [
        total / weight / 2**METRIC_FRACTION_BITS if weight else None for weight, total in pairs
    ]
    of_train = zip(train, means[: len(train)], strict=True)
    of_evaluate = zip(evaluate, means[len(train) :], strict=True)
    return (
        {name: mean for name, mean in of_train if mean is not None},
        {name: mean for name, mean in of_evaluate if mean is not None},
    )


def _limbs(
    numbers: Sequence[int], layout: MaskedLayout, kind: "np.dtype[np.uint32] | np.dtype[np.uint64]"
) -> Words:
    """Low limb first, so that the sums of limbs carry into one number again."""
    if any(number >= 2**NUMBER_BITS for number in numbers):
        raise _misfit("a number beside the model is too large")
    mask = (1 << layout.limb_bits) - 1
    limbs = [
        (number >> (layout.limb_bits * index)) & mask
        for number in numbers
        for index in range(layout.num_limbs)
    ]
    return np.array(limbs, dtype=np.uint64).astype(kind)  # type: ignore[return-value]  # one of the two kinds


def _from_limbs(words: Words, layout: MaskedLayout) -> list[int]:
    limbs = [int(word) for word in words]
    groups = [limbs[i : i + layout.num_limbs] for i in range(0, len(limbs), layout.num_limbs)]
    return [
        sum(limb << (layout.limb_bits * index) for index, limb in enumerate(group))
        for group in groups
    ]


def _no_sum() -> MaskingError:
    return MaskingError(
        "FH-SECAGG-007",
        "the unmasked sum is not one that these sites can have.",
        why="A site answered another manifest, gave a wrong share, or does not keep the protocol.",
        fix="The round is void. If it stays, compare versions with `fedhealth --version`.",
    )


def _misfit(reason: str) -> MaskingError:
    return MaskingError(
        "FH-SECAGG-006",
        f"this site's part of the sum does not fit: {reason}.",
        why="It would change the others' sum in a way that nobody could see.",
        fix="Check declared_train_size against secure_aggregation.max_train_size, and the site's log.",
    )
