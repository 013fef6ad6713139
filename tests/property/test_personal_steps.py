"""Whatever a method of personalisation keeps at the site, its round takes the steps that were reserved, and no other.

Under patient-level privacy a step more would be a release that nobody accounts for; one less a budget for nothing.
"""

from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.config.personalisation import PersonalisationName
from fedhealth.config.study import RunPlan
from fedhealth.privacy.accounting.plan import trainings_per_round
from fedhealth.training.personalisation.methods import method_of
from fedhealth.training.personalisation.work import Phase, RoundWork

METHODS = get_args(PersonalisationName)


def run_of(name: str, head_share: float) -> RunPlan:
    options = {"head_share": head_share} if name == "fedrep" else {}
    return RunPlan.model_validate(
        {
            "name": "main",
            "num_rounds": 1,
            "personalisation": name,
            "personalisation_options": options,
        }
    )


@pytest.mark.parametrize("name", METHODS)
@given(
    num_steps=st.integers(2, 60),
    head_share=st.floats(0.01, 0.99),
    has_state=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_the_phases_of_a_private_round_are_the_reserved_steps(
    name: str, num_steps: int, head_share: float, has_state: bool
) -> None:
    run = run_of(name, head_share)
    reserved = num_steps * trainings_per_round(run)
    body, head = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    learner: Any = SimpleNamespace(
        shared={"body": body}, private={"head": head}, device=torch.device("cpu")
    )
    came = {"body": np.zeros(2, dtype=np.float32)}
    kept = came if name in {"mr_mtl", "ditto"} else {"head": np.zeros(2, dtype=np.float32)}
    phases: list[Phase] = []
    method_of(run).train(
        RoundWork(
            learner=learner,
            incoming=came,
            own=kept if has_state else None,
            num_steps=reserved,
            is_private=True,
            take_steps=phases.append,
        )
    )
    assert sum(phase.num_steps for phase in phases) == reserved
    assert all(phase.num_steps > 0 for phase in phases)
