"""The grid of a distributed mechanism: what is asked of it, and the finest one that keeps to it. Called by `plan`."""

import math
from dataclasses import dataclass
from typing import Final

from fedhealth.contracts.aggregation import MAX_ROUNDING_LOSS
from fedhealth.contracts.local_training import NoiseGenerator
from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.events import Unit
from fedhealth.privacy.distributed.rotation import padded_dimension
from fedhealth.privacy.distributed.rounding import LARGEST_SQUARED_NORM, largest_squared_norm
from fedhealth.privacy.distributed.skellam import MAX_STD
from fedhealth.privacy.distributed.wrap_around import (
    MAX_PROBABILITY,
    SumShape,
    log_wrap_probability,
)

MAX_MODULUS_BITS: Final = 62
MAX_DIMENSION: Final = 2**32
MAX_COUNT: Final = 10**9
_NORMS: Final = (1e-30, 1e30)
"""Of a clipping norm: no square of it, or of an update that it clips, leaves the range of a float64."""
_NOISES: Final = (1e-6, 1e9)
_DIGITS: Final = 4
_HALVINGS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What `DistributedPlan` says of these numbers, before its grid is known."""

    unit: Unit
    dimension: int
    clipping_norm: float
    noise_multiplier: float
    num_sites: int
    num_honest: int
    max_contributions: int
    modulus_bits: int
    sampling_rate: float
    generator: NoiseGenerator


def check_request(request: PlanRequest) -> None:
    """Refuse numbers that no mechanism has.

    Raises:
        PrivacyError: FH-PRIVACY-106 fewer than one honest site, or more than there are sites, 107 the modulus has no
            bits or more than 62, 108 another number is out of its range.
    """
    if not 1 <= request.num_honest <= request.num_sites:
        raise PrivacyError(
            "FH-PRIVACY-106",
            f"{request.num_honest} honest sites were counted on among {request.num_sites}.",
            why="The noise of a sum is the noise of its honest sites: with none there is none.",
            fix="Count on at least 1 site, and on no more than the smallest cohort that may be summed.",
        )
    if not 1 <= request.modulus_bits <= MAX_MODULUS_BITS:
        raise PrivacyError(
            "FH-PRIVACY-107",
            f"a modulus of {request.modulus_bits} bits is not within 1 and {MAX_MODULUS_BITS}.",
            why="Sums are kept in 64-bit whole numbers.",
        )
    for is_right, what in _claims(request):
        if not is_right:
            raise PrivacyError(
                "FH-PRIVACY-108",
                f"a distributed mechanism was planned with {what}.",
                why="No noise can be sized for it.",
                fix="Correct the number in the study.",
            )


def finest_granularity(request: PlanRequest) -> float | None:
    """The size of the smallest grid step of four digits that fits; None where none does that is useful.

    Useful is one on which rounding needs at most `MAX_ROUNDING_LOSS` times the noise. A step fits when a sum
    wraps around with a chance below `MAX_PROBABILITY`, each share can be drawn, and each contribution is counted in 64
    bits. What fits on a grid fits on a coarser one.
    """
    low = request.clipping_norm / math.sqrt(LARGEST_SQUARED_NORM)
    high = coarsest_granularity(request)
    if not _fits(request, high):
        return None
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _fits(request, middle) else (middle, high)
    step = _rounded_up(high)
    while not _fits(request, step):
        step = _rounded_up(step * (1 + 10.0**-_DIGITS))
    return step if _rounding_loss(request, step) <= MAX_ROUNDING_LOSS else None


def coarsest_granularity(request: PlanRequest) -> float:
    """The largest grid step at which rounding costs at most `MAX_ROUNDING_LOSS`: norms grow by that, and noise too."""
    low, high = 0.0, request.clipping_norm * 2.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_useful = _rounding_loss(request, middle) <= MAX_ROUNDING_LOSS
        low, high = (middle, high) if is_useful else (low, middle)
    return low


def norm_bound_of(request: PlanRequest, granularity: float) -> float:
    """`largest_squared_norm` of a contribution, in grid steps."""
    norm = request.clipping_norm / granularity
    return largest_squared_norm(norm, padded_dimension(request.dimension))


def no_granularity(request: PlanRequest) -> PrivacyError:
    """FH-PRIVACY-109, with what would help."""
    shares = math.sqrt(_local_variance(request, coarsest_granularity(request)))
    hint = (
        "Use less noise, or count on more honest sites."
        if shares > MAX_STD
        else "Use a modulus of more bits, fewer contributions or sites in one sum, less noise, or more honest sites."
    )
    return PrivacyError(
        "FH-PRIVACY-109",
        f"no useful grid fits {request.max_contributions} contributions of {request.dimension} elements with a noise "
        f"multiplier of {request.noise_multiplier:g} into sums of {request.modulus_bits} bits.",
        why=f"On a finer one sums would wrap around, or a share of the noise would be above {MAX_STD:g} steps; on a "
        f"coarser one rounding would need {MAX_ROUNDING_LOSS:g} times the noise.",
        fix=hint,
    )


def _claims(request: PlanRequest) -> tuple[tuple[bool, str], ...]:
    rate, noise, norm = request.sampling_rate, request.noise_multiplier, request.clipping_norm
    count = request.max_contributions
    is_site = request.unit == "site"
    return (
        (1 <= request.dimension <= MAX_DIMENSION, f"{request.dimension} elements"),
        (_NORMS[0] <= norm <= _NORMS[1], f"a clipping norm of {norm}"),
        (_NOISES[0] <= noise <= _NOISES[1], f"a noise multiplier of {noise}"),
        (1 <= count <= MAX_COUNT, f"{count} contributions"),
        (request.num_sites <= MAX_COUNT, f"{request.num_sites} sites"),
        (0 < rate <= 1, f"a sampling rate of {rate}"),
        (not is_site or rate == 1, f"a sampling rate of {rate} for sites that are all asked"),
        (
            not is_site or count == request.num_sites,
            f"{count} contributions of {request.num_sites} sites",
        ),
    )


def _fits(request: PlanRequest, granularity: float) -> bool:
    bound = norm_bound_of(request, granularity)
    local = _local_variance(request, granularity)
    if bound >= LARGEST_SQUARED_NORM or math.sqrt(local) > MAX_STD:
        return False
    shape = SumShape(
        dimension=padded_dimension(request.dimension),
        norm=request.clipping_norm / granularity,
        max_contributions=request.max_contributions,
        variance=local * request.num_sites,
    )
    return log_wrap_probability(shape, request.modulus_bits) < math.log(MAX_PROBABILITY)


def _local_variance(request: PlanRequest, granularity: float) -> float:
    return request.noise_multiplier**2 * norm_bound_of(request, granularity) / request.num_honest


def _rounding_loss(request: PlanRequest, granularity: float) -> float:
    """The largest norm after rounding over the one before."""
    return math.sqrt(norm_bound_of(request, granularity)) * granularity / request.clipping_norm


def _rounded_up(step: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(step)) - _DIGITS + 1)
    return float(f"{math.ceil(step / unit - 1e-9) * unit:.{_DIGITS}g}")
