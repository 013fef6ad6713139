"""Small studies with a privacy section, for the tests of plans, policies and commands."""

from typing import Any

from fedhealth.config.load import load_study
from fedhealth.config.study import Study
from fedhealth.config.template import template_path


def private_study(privacy: dict[str, Any] | None = None, **changes: Any) -> Study:
    """Two runs of 3 and 2 rounds, 4 steps each, batches of 16; epsilon 8 where nothing else is given."""
    base = load_study(template_path("blank")).model_dump()
    plan: dict[str, Any] = {
        "training": {"batch_size": 16, "local_steps": 4},
        "runs": [{"name": "first", "num_rounds": 3}, {"name": "second", "num_rounds": 2}],
        "release": {"metrics": ["accuracy", "log_loss"]},
        "privacy": {"target_epsilon": 8.0} if privacy is None else privacy,
    }
    return Study.model_validate(base | plan | changes)
