"""From an update to whole numbers that may be added up in secret (sites), and from their noisy sum back (server).

Kairouz, Liu, Steinke 2021 (arXiv 2102.06387), algorithm 1 (clip, rotate, scale, round under a condition) and
algorithm 2 (undo), with the noise of Agarwal, Kairouz, Liu 2021 (arXiv 2110.04995).
"""

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import PrivacyError
from fedhealth.privacy.distributed.plan import DistributedPlan
from fedhealth.privacy.distributed.rotation import rotate, rotate_back
from fedhealth.privacy.distributed.rounding import round_within
from fedhealth.privacy.distributed.skellam import skellam
from fedhealth.privacy.randomness import Randomness


def encode(
    update: NDArray[np.float32],
    plan: DistributedPlan,
    rotation_seed: bytes,
    randomness: Randomness,
) -> NDArray[np.int64]:
    """One contribution in grid steps, clipped; without noise, so it stays at the site.

    Its L2 norm is at most `plan.l2_bound` exactly, and decoded it is the clipped update in the mean.

    Args:
        update: (d,) float32.
        plan: of this round.
        rotation_seed: 32 bytes, the same at all sites of the round.
        randomness: for the rounding.

    Returns:
        (D,) int64.

    Raises:
        PrivacyError: FH-PRIVACY-100 the seed is not 32 bytes, 101 the update is not (d,) float32, 102 a value is not
            finite, 103 no rounding inside the bound was found.
    """
    if update.shape != (plan.dimension,) or update.dtype != np.float32:
        raise PrivacyError(
            "FH-PRIVACY-101",
            f"an update of shape {update.shape} and dtype {update.dtype} is not the plan's, float32 of "
            f"({plan.dimension},).",
        )
    scaled = rotate(_clipped(update, plan.clipping_norm), rotation_seed)
    scaled /= plan.granularity
    return round_within(scaled, plan.squared_norm_bound, randomness)


def add_noise(
    ints: NDArray[np.int64], plan: DistributedPlan, randomness: Randomness
) -> NDArray[np.int64]:
    """A site's contributions, added up, with its share of the noise: what the secret sum may take.

    Args:
        ints: (D,) int64, the sum of what `encode` made at this site.
        plan: of this round.
        randomness: from the generator that the plan, and so the ledger, names.

    Returns:
        (D,) int64.

    Raises:
        PrivacyError: FH-PRIVACY-101 the shape or dtype is another one, 111 the generator is another one.
    """
    _check_ints(ints, plan)
    if randomness.generator != plan.generator:
        raise PrivacyError(
            "FH-PRIVACY-111",
            f"noise would come from {randomness.generator}; the plan says {plan.generator}.",
            why="The ledger keeps the plan's word, and noise from a known seed hides nothing.",
            fix="Make the plan with the generator that is used; for patients that is chacha20.",
        )
    return ints + skellam(ints.size, plan.local_variance, randomness)


def decode(
    total: NDArray[np.int64], plan: DistributedPlan, rotation_seed: bytes
) -> NDArray[np.float32]:
    """The noisy sum of the clipped updates.

    Args:
        total: (D,) int64, the sum of all sites modulo 2**m, brought to [-2**(m-1), 2**(m-1)).
        plan: of this round.
        rotation_seed: the round's.

    Returns:
        (d,) float32.

    Raises:
        PrivacyError: FH-PRIVACY-100 the seed is not 32 bytes, 101 the shape or dtype is another one.
    """
    _check_ints(total, plan)
    rotated = total.astype(np.float64)
    rotated *= plan.granularity
    return rotate_back(rotated, rotation_seed, plan.dimension).astype(np.float32)


def _clipped(update: NDArray[np.float32], clipping_norm: float) -> NDArray[np.float64]:
    """In float64, where the squares of the largest float32 do not overflow."""
    vector = update.astype(np.float64)
    squared = float(np.dot(vector, vector))
    if not np.isfinite(squared):
        raise PrivacyError(
            "FH-PRIVACY-102",
            "an update is not finite.",
            why="A value without a size cannot be clipped, so no noise could hide it.",
            fix="Lower the learning rate; look at the site's log for the round that diverged.",
        )
    if squared > clipping_norm**2:
        vector *= clipping_norm / np.sqrt(squared)
    return vector


def _check_ints(ints: NDArray[np.int64], plan: DistributedPlan) -> None:
    if ints.shape != (plan.padded_dimension,) or ints.dtype != np.int64:
        raise PrivacyError(
            "FH-PRIVACY-101",
            f"numbers of shape {ints.shape} and dtype {ints.dtype} are not the plan's, int64 of "
            f"({plan.padded_dimension},).",
        )
