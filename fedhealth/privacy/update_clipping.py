"""One global L2 norm over a whole update: clipped at the site, and again at the server, which trusts no site.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018
(arXiv 1710.06963), algorithm 1, flat clipping: ``delta * min(1, C / ||delta||)``. Imports numpy only.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import PrivacyError

Vector = NDArray[np.float32]

BLOCK = 1 << 16
"""Elements in one go: a float64 block stays in a core's L2 cache."""

MARGIN = 1e-9
"""A norm within this share of the clipping norm is clipped too. The float64 sum of squares errs by less than
1e-11 (blocks of 2**16 terms, fewer than 2**16 blocks), so what passes as it is has truly no larger norm."""


def clip_update(
    global_vector: Vector, new_vector: Vector, clipping_norm: float
) -> tuple[Vector, bool]:
    """The model after an update of at most that norm, and whether the update had to be made shorter.

    Args:
        global_vector: (n,) float32, the model that came in.
        new_vector: (n,) float32, the model after local training; returned as it is where it is near enough.
        clipping_norm: the largest L2 norm of the difference, over all elements together.

    Returns:
        (n,) float32 whose difference to `global_vector` has an L2 norm of at most `clipping_norm`, rounding to
        float32 included, and True if it is not `new_vector`.

    Raises:
        PrivacyError: FH-PRIVACY-080 a value is not finite, FH-PRIVACY-081 the clipping norm is smaller than what
            float32 resolves at this model, FH-PRIVACY-082 it is not a positive number, FH-PRIVACY-083 the
            vectors differ in shape or are not flat float32.
    """
    _check(global_vector, new_vector, clipping_norm)
    norm = math.sqrt(squared_distance(global_vector, new_vector))
    if not math.isfinite(norm):
        raise PrivacyError(
            "FH-PRIVACY-080",
            "an update is not finite.",
            why="A value without a size cannot be clipped, so no noise could hide it.",
            fix="Lower the learning rate; look at the site's log for the round that diverged.",
        )
    limit = clipping_norm * (1.0 - MARGIN)
    if norm <= limit:
        return new_vector, False
    slack = rounding_slack(
        math.sqrt(squared_norm(global_vector)), clipping_norm, global_vector.size
    )
    if limit <= slack:
        raise _below_resolution(clipping_norm)
    return _shortened(global_vector, new_vector, (limit - slack) / norm), True


def squared_distance(left: NDArray[np.generic], right: NDArray[np.generic]) -> float:
    """Squared L2 norm of ``right - left`` in float64, block by block; not finite if a value is not.

    Args:
        left: (n,) any real dtype.
        right: (n,) any real dtype.
    """
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
        for start in range(0, left.size, BLOCK):
            part = slice(start, start + BLOCK)
            step = np.subtract(right[part], left[part], dtype=np.float64)
            total += float(np.dot(step, step))
    return total


def squared_norm(vector: NDArray[np.generic]) -> float:
    """Squared L2 norm of `vector`, (n,) of any real dtype, in float64, block by block."""
    total = 0.0
    for start in range(0, vector.size, BLOCK):
        part = vector[start : start + BLOCK].astype(np.float64)
        total += float(np.dot(part, part))
    return total


def rounding_slack(global_norm: float, clipping_norm: float, size: int) -> float:
    """Most that rounding a clipped model to float32 changes the norm of its update.

    Half a unit in the last place is at most 2**-24 of a value, or 2**-150 below the normal range; the model's
    norm is at most ``global_norm + clipping_norm``. One hundredth on top covers float64 rounding.
    """
    relative = 2.0**-24 * (global_norm + clipping_norm)
    return 1.01 * (relative + 2.0**-150 * math.sqrt(size))


def counts_as_unclipped(
    norm: float, *, global_norm: float, clipping_norm: float, size: int
) -> bool:
    """Whether a *received* update cannot have been clipped: it is shorter than `clip_update` leaves any.

    The rare honest update that lies within rounding of the clipping norm counts as clipped.
    """
    slack = rounding_slack(global_norm, clipping_norm, size)
    return norm < clipping_norm * (1.0 - MARGIN) - 2.1 * slack


def _shortened(origin: Vector, new: Vector, scale: float) -> Vector:
    result = np.empty_like(origin)
    for start in range(0, origin.size, BLOCK):
        part = slice(start, start + BLOCK)
        step = np.subtract(new[part], origin[part], dtype=np.float64)
        step *= scale
        step += origin[part]
        result[part] = step
    return result


def _check(global_vector: Vector, new_vector: Vector, clipping_norm: float) -> None:
    if not math.isfinite(clipping_norm) or clipping_norm <= 0:
        raise PrivacyError(
            "FH-PRIVACY-082",
            f"a clipping norm of {clipping_norm} is not a positive number.",
            fix="Correct `clipping_norm` in the study's strategy options.",
        )
    shapes = global_vector.shape, new_vector.shape
    if len(set(shapes)) > 1 or global_vector.ndim != 1:
        raise PrivacyError("FH-PRIVACY-083", f"vectors of shape {shapes} cannot be compared.")
    if global_vector.dtype != np.float32 or new_vector.dtype != np.float32:
        raise PrivacyError(
            "FH-PRIVACY-083",
            f"an update of dtype {new_vector.dtype} to a model of {global_vector.dtype} is not float32.",
        )


def _below_resolution(clipping_norm: float) -> PrivacyError:
    return PrivacyError(
        "FH-PRIVACY-081",
        f"a clipping norm of {clipping_norm:g} is below what float32 resolves at this model.",
        why="Rounding alone would move the model further than that.",
        fix="Raise `clipping_norm` in the study's strategy options.",
    )
