"""Sizes of a distributed mechanism: grid, norms, shares of the noise, and the event that it makes.

Called by whoever starts a round, and again by each site and the server: all of it follows from public numbers.
"""

import math
from dataclasses import dataclass, replace

from fedhealth.contracts.aggregation import SkellamShare
from fedhealth.contracts.local_training import NoiseGenerator
from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.calibration import least_noise
from fedhealth.privacy.accounting.events import DistributedSkellam, Population, Unit
from fedhealth.privacy.distributed.granularity import (
    PlanRequest,
    check_request,
    coarsest_granularity,
    finest_granularity,
    no_granularity,
    norm_bound_of,
)
from fedhealth.privacy.distributed.rotation import padded_dimension


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedPlan:
    """A distributed Skellam mechanism. Norms and variances are in grid steps. Made by `plan_distributed`.

    Attributes:
        unit: what one contribution is of: a site, or a patient.
        dimension: d, elements of an update.
        clipping_norm: C, largest L2 norm of a contribution, in the update's own size.
        noise_multiplier: z, root of `total_variance` over `l2_bound`.
        num_sites: n, most sites in a sum.
        num_honest: h, fewest sites whose noise is in every opened sum and is told to nobody: the trust assumption.
        max_contributions: k, most contributions in a sum, over all sites together.
        modulus_bits: m, sums are taken modulo 2**m.
        sampling_rate: chance of a contribution to be in a sum.
        granularity: g, size of one grid step.
        squared_norm_bound: largest squared L2 norm of a contribution, exact.
        local_variance: of one site's share of the noise.
        generator: where its randomness comes from.
    """

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
    granularity: float
    squared_norm_bound: int
    local_variance: float

    @property
    def padded_dimension(self) -> int:
        """D, elements of an encoded contribution."""
        return padded_dimension(self.dimension)

    @property
    def l2_bound(self) -> float:
        """Largest L2 norm of one contribution, rounded up."""
        return math.nextafter(math.sqrt(self.squared_norm_bound), math.inf)

    @property
    def l1_bound(self) -> float:
        """Largest L1 norm of one contribution, rounded up: no whole number exceeds its square; Cauchy and Schwarz."""
        root = math.nextafter(math.sqrt(self.padded_dimension), math.inf)
        return max(self.l2_bound, min(float(self.squared_norm_bound), root * self.l2_bound))

    @property
    def total_variance(self) -> float:
        """Of the noise of h honest sites together: what the account counts on."""
        return self.num_honest * self.local_variance

    @property
    def noise_std(self) -> float:
        """Standard deviation of h sites' noise on each coordinate of the decoded sum, in the update's own size."""
        return math.sqrt(self.total_variance) * self.granularity

    @property
    def share(self) -> SkellamShare:
        """What a site-level release keeps of it."""
        return SkellamShare(
            l1_sensitivity=self.l1_bound,
            l2_sensitivity=self.l2_bound,
            variance=self.total_variance,
            num_honest=self.num_honest,
        )

    def event(
        self,
        steps: int = 1,
        *,
        split_id: str,
        population: Population = "all",
        sensitivity_factor: int = 1,
    ) -> DistributedSkellam:
        """What `steps` sums cost each unit.

        Args:
            steps: number of opened sums.
            split_id: of the split that patients come from; `SITES` of the accounting for unit site.
            population: side of the split.
            sensitivity_factor: contributions that one unit can have in one sum.

        Raises:
            PrivacyError: FH-PRIVACY-108 the factor is below 1.
        """
        if sensitivity_factor < 1:
            raise PrivacyError(
                "FH-PRIVACY-108",
                f"a unit was to have {sensitivity_factor} contributions in a sum.",
                why="What it can change would be counted too small.",
                fix="Give the most that one patient, or one site, can have in one sum.",
            )
        return DistributedSkellam(
            unit=self.unit,
            sampler="none" if self.sampling_rate == 1 else "poisson",
            sampling_rate=self.sampling_rate,
            l1_sensitivity=self.l1_bound * sensitivity_factor,
            l2_sensitivity=self.l2_bound * sensitivity_factor,
            variance=self.total_variance,
            num_honest=self.num_honest,
            steps=steps,
            population=population,
            split_id=split_id,
            generator=self.generator,
        )


def plan_distributed(
    *,
    unit: Unit,
    dimension: int,
    clipping_norm: float,
    noise_multiplier: float,
    num_sites: int,
    num_honest: int,
    modulus_bits: int,
    max_contributions: int,
    sampling_rate: float = 1.0,
    generator: NoiseGenerator = "chacha20",
) -> DistributedPlan:
    """The finest grid on which a sum wraps around with a chance below 1e-6 (`log_wrap_probability`), and its plan.

    Finer grids lose less to rounding, and the bound is closer to the Gaussian's. The step is rounded up to four
    digits, so that machines which differ in the last bit of a logarithm agree. All n sites add their share, and h of
    them already give the variance that `noise_multiplier` asks for.

    Args:
        unit: site or patient.
        dimension: elements of an update.
        clipping_norm: of one contribution.
        noise_multiplier: of the honest sites' noise together.
        num_sites: most sites in a sum.
        num_honest: fewest honest sites in an opened sum.
        modulus_bits: m, up to 62.
        max_contributions: most contributions in a sum, over all sites; for unit site `num_sites`.
        sampling_rate: for patients who join by chance (Poisson).
        generator: where noise will come from.

    Raises:
        PrivacyError: FH-PRIVACY-106 fewer than one honest site, or more than there are sites, 107 a modulus of more
            than 62 bits, or none, 108 another number is out of its range, 109 no grid is both fine enough to be useful
            and coarse enough for the modulus and the noise table.
    """
    request = PlanRequest(
        unit=unit,
        dimension=dimension,
        clipping_norm=clipping_norm,
        noise_multiplier=noise_multiplier,
        num_sites=num_sites,
        num_honest=num_honest,
        max_contributions=max_contributions,
        modulus_bits=modulus_bits,
        sampling_rate=sampling_rate,
        generator=generator,
    )
    check_request(request)
    granularity = finest_granularity(request)
    if granularity is None:
        raise no_granularity(request)
    return _plan(request, granularity)


def least_distributed_noise(
    *,
    target_epsilon: float,
    delta: float,
    steps: int,
    unit: Unit,
    dimension: int,
    clipping_norm: float,
    num_sites: int,
    num_honest: int,
    modulus_bits: int,
    max_contributions: int,
    sampling_rate: float = 1.0,
    sensitivity_factor: int = 1,
) -> float:
    """The smallest noise multiplier of four digits with which `steps` sums cost at most the target.

    Each multiplier is judged on the grid that `plan_distributed` would choose for it, or on the coarsest useful one
    where none fits.

    Raises:
        PrivacyError: FH-PRIVACY-106 to 108 as `plan_distributed`, 109 the noise that is needed does not fit, 015 to 019
            the target cannot be met, 011 delta.
    """
    request = PlanRequest(
        unit=unit,
        dimension=dimension,
        clipping_norm=clipping_norm,
        noise_multiplier=1.0,
        num_sites=num_sites,
        num_honest=num_honest,
        max_contributions=max_contributions,
        modulus_bits=modulus_bits,
        sampling_rate=sampling_rate,
        generator="chacha20",
    )
    check_request(request)

    def events(noise: float) -> tuple[DistributedSkellam]:
        asked = replace(request, noise_multiplier=noise)
        plan = _plan(asked, finest_granularity(asked) or coarsest_granularity(asked))
        return (plan.event(steps, split_id="plan", sensitivity_factor=sensitivity_factor),)

    noise = least_noise(events, target_epsilon=target_epsilon, delta=delta)
    found = replace(request, noise_multiplier=noise)
    if finest_granularity(found) is None:
        raise no_granularity(found)
    return noise


def _plan(request: PlanRequest, granularity: float) -> DistributedPlan:
    bound = math.floor(norm_bound_of(request, granularity))
    return DistributedPlan(
        unit=request.unit,
        dimension=request.dimension,
        clipping_norm=request.clipping_norm,
        noise_multiplier=request.noise_multiplier,
        num_sites=request.num_sites,
        num_honest=request.num_honest,
        max_contributions=request.max_contributions,
        modulus_bits=request.modulus_bits,
        sampling_rate=request.sampling_rate,
        generator=request.generator,
        granularity=granularity,
        squared_norm_bound=bound,
        local_variance=request.noise_multiplier**2 * bound / request.num_honest,
    )
