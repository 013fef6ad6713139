"""Plans for these tests."""

from typing import Any

from fedhealth.privacy.distributed.plan import DistributedPlan, plan_distributed


def make_plan(**changes: Any) -> DistributedPlan:
    """Five sites, three of them honest, a small model, 24 bits; `changes` replace arguments."""
    given: dict[str, Any] = {
        "unit": "site",
        "dimension": 300,
        "clipping_norm": 1.0,
        "noise_multiplier": 1.0,
        "num_sites": 5,
        "num_honest": 3,
        "modulus_bits": 24,
        "max_contributions": 5,
        "generator": "seeded_for_tests",
    }
    return plan_distributed(**given | changes)
