"""What lies where in a masked vector, and how large the modulus is: all from numbers that everybody knows.

Server and site derive the same layout from the signed manifest, so that every masked vector of a round has exactly
the same size and a site's true numbers (its weight, its metrics, what was cut) decide nothing that can be seen.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fedhealth.secagg.packing import packed_size
from fedhealth.secagg.refusals import MaskingError

NUMBER_BITS: Final = 96
"""Of one number of the tail: a weight times a metric in fixed point, with room to spare."""
MOST_MODULUS_BITS: Final = 63
"""One bit below a word: a sum is read as a signed number."""
CHECK_WORDS: Final = 2
"""Each site puts a one into each: an unmasked sum that does not count its sites is noise."""
METRIC_FRACTION_BITS: Final = 20
"""Metrics have at most four significant digits; a millionth is finer than any of them that matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TailLayout:
    """Numbers beside the model that are summed under the mask.

    Attributes:
        train_metrics: names, sorted; each takes two numbers: the weight of the sites that have it, and the sum.
        evaluate_metrics: likewise.
        num_blocks: parts of the model that are averaged over the sites with a modality; each takes one number, the
            weight of the sites that trained it.
    """

    train_metrics: tuple[str, ...]
    evaluate_metrics: tuple[str, ...]
    num_blocks: int = 0

    @property
    def num_numbers(self) -> int:
        """The weight, the number of cut values, one for every block and two for every metric."""
        return 2 + self.num_blocks + 2 * (len(self.train_metrics) + len(self.evaluate_metrics))


@dataclass(frozen=True, kw_only=True)
class MaskedLayout:
    """One round's masked vector: `num_values` words of the model, the tail, and words that count the sites.

    Attributes:
        num_sites: sites of the cohort.
        num_values: coordinates of the model that travel; 0 in an evaluation.
        levels: largest size of a quantised value, Q = 2**(bits-1) - 1.
        value_range: real size of Q; what is larger is cut.
        max_weight: largest weight of a site, W; 1 when all sites count the same.
        tail: None when nothing but the noised vector is under the mask.
        fixed_modulus_bits: of a distributed mechanism, which sizes its own modulus; else None.
    """

    num_sites: int
    num_values: int
    levels: int
    value_range: float
    max_weight: int
    tail: TailLayout | None
    fixed_modulus_bits: int | None = None

    def __post_init__(self) -> None:
        if self.modulus_bits > MOST_MODULUS_BITS or self.limb_bits < 1:
            raise MaskingError(
                "FH-SECAGG-005",
                f"a sum of {self.num_sites} sites needs {self.modulus_bits} bits, more than "
                f"{MOST_MODULUS_BITS}.",
                why="It would wrap around, and the mean would be something else.",
                fix="Lower secure_aggregation.bits or max_train_size in the study.",
            )

    @cached_property
    def modulus_bits(self) -> int:
        """The least number of bits in which no sum of the cohort wraps: n W Q, with a sign."""
        if self.fixed_modulus_bits is not None:
            return self.fixed_modulus_bits
        return (self.num_sites * self.max_weight * self.levels).bit_length() + 1

    @property
    def step(self) -> float:
        """Real size of one quantised unit."""
        return self.value_range / self.levels

    @property
    def limb_bits(self) -> int:
        """Bits of one limb of a tail number: the sum of all sites' limbs stays below the modulus."""
        return self.modulus_bits - self.num_sites.bit_length()

    @property
    def num_limbs(self) -> int:
        """Limbs of one tail number."""
        return -(-NUMBER_BITS // self.limb_bits)

    @property
    def num_words(self) -> int:
        """Words of the whole vector."""
        return self.num_values + self.num_tail_words + CHECK_WORDS

    @property
    def num_tail_words(self) -> int:
        """Words of the tail."""
        return 0 if self.tail is None else self.tail.num_numbers * self.num_limbs

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole vector as it travels."""
        return packed_size(self.num_words, self.modulus_bits)
