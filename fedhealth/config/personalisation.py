"""Methods of personalisation by name, with their options: `runs.personalisation` of study.yaml. Imports no torch."""

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field, ValidationError

from fedhealth.config.base import ConfigModel, OptionValue

PersonalisationName = Literal[
    "none",
    "private_head",
    "private_blocks",
    "fedrep",
    "local_norm",
    "mr_mtl",
    "ditto",
    "fine_tune",
]

KEEPS_TENSORS: Final = frozenset({"private_head", "private_blocks", "fedrep", "local_norm"})
"""Some of the model's tensors are each site's own and never travel."""
KEEPS_MODEL: Final = frozenset({"mr_mtl", "ditto", "fine_tune"})
"""The whole model travels, and each site has another one of its own besides."""
TRAINS_WITHOUT_NOISE: Final = frozenset({"fine_tune"})
"""What a site keeps is not covered by its patients' account, whatever the study's privacy."""
TRAINS_IN_ITS_OWN_WAY: Final = frozenset({"fedrep", "mr_mtl", "ditto"})
"""Local rounds are not simply the strategy's: what a strategy asks of local training would mean something else."""
BEGINS_UNTRAINED: Final = KEEPS_MODEL & TRAINS_IN_ITS_OWN_WAY
"""A site's own model begins as it was drawn: what the site has no patients for stays so, but for a pull to the mean."""


class NoOptions(ConfigModel):
    """A method without options."""


class FedRepOptions(ConfigModel):
    """Options of fedrep."""

    head_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of a round's steps that train the head, before the rest trains the body.",
    )


class MrMtlOptions(ConfigModel):
    """Options of mr_mtl."""

    strength: float = Field(
        0.3, gt=0, le=1000, description="Of the pull from a site's own model to the mean of all."
    )


class DittoOptions(ConfigModel):
    """Options of ditto."""

    strength: float = Field(
        0.3, ge=0, le=1000, description="Of the pull from a site's own model to the shared one."
    )


class FineTuneOptions(ConfigModel):
    """Options of fine_tune."""

    epochs: int = Field(
        5, ge=1, le=1000, description="Passes over the training side, after the last round."
    )
    learning_rate: float = Field(0.01, gt=0, le=10, description="Step size of plain SGD.")


OPTIONS: Final[Mapping[str, type[ConfigModel]]] = {
    "none": NoOptions,
    "private_head": NoOptions,
    "private_blocks": NoOptions,
    "fedrep": FedRepOptions,
    "local_norm": NoOptions,
    "mr_mtl": MrMtlOptions,
    "ditto": DittoOptions,
    "fine_tune": FineTuneOptions,
}


def check_options(name: PersonalisationName, options: Mapping[str, OptionValue]) -> None:
    """Refuse options that the method does not have.

    Raises:
        ValueError: what is wrong, and what the method knows.
    """
    try:
        OPTIONS[name].model_validate(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(OPTIONS[name].model_fields) or "none"
        raise ValueError(
            f"personalisation_options of {name}: {where}: {first['msg']} (it knows: {known})"
        ) from None
