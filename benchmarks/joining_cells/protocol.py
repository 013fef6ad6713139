"""The registered protocol as data, and studies made from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from fedhealth.config.study import Study
from fedhealth.config.template import template_path

CohortName = Literal["generated", "heart"]
PATH: Final = Path(__file__).parents[1] / "protocol.yaml"
TEMPLATES: Final[dict[CohortName, Literal["synthetic", "heart"]]] = {
    "generated": "synthetic",
    "heart": "heart",
}
STRATEGIES: Final = {"private_head": "fedper"}
STRENGTHS: Final = {"mr_mtl": 0.3, "mr_mtl_strong": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point of the grid that all methods with the study's settings share."""

    rounds: int
    local_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    clipping_norm: float


def read_protocol(path: Path = PATH) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return content


def settings_of(protocol: dict[str, Any]) -> dict[str, Setting]:
    return {name: Setting(**values) for name, values in protocol["settings"].items()}


def make_study(
    cohort: CohortName,
    setting: Setting,
    *,
    seed: int,
    epsilon: float | None,
    personalisation: str = "none",
    modalities: tuple[str, ...] | None = None,
) -> Study:
    """The shipped study of that cohort with the protocol's model, one run and one setting.

    `modalities` keeps these only.
    """
    content: dict[str, Any] = yaml.safe_load(template_path(TEMPLATES[cohort]).read_text("utf-8"))
    content.pop("secure_aggregation", None)
    privacy = content.pop("privacy")
    content["model"] = read_protocol()["model"]
    if modalities is not None:
        content["data"]["modalities"] = [
            modality for modality in content["data"]["modalities"] if modality["name"] in modalities
        ]
    content["training"] = {
        "optimizer": {
            "name": "sgd",
            "learning_rate": setting.learning_rate,
            "weight_decay": setting.weight_decay,
        },
        "batch_size": setting.batch_size,
        "local_steps": setting.local_steps,
        "modality_dropout": 0.0,
    }
    content["runs"] = [
        {
            "name": "main",
            "num_rounds": setting.rounds,
            "strategy": {"name": STRATEGIES.get(personalisation, "fedavg")},
            **_personalisation(personalisation),
        }
    ]
    if epsilon is not None:
        content["privacy"] = privacy | {
            "target_epsilon": epsilon,
            "clipping_norm": setting.clipping_norm,
        }
    return Study.model_validate(content | {"seed": seed})


def _personalisation(method: str) -> dict[str, object]:
    if method in STRENGTHS:
        return {
            "personalisation": "mr_mtl",
            "personalisation_options": {"strength": STRENGTHS[method]},
        }
    return {"personalisation": method}
