"""Closed, validated options of a plug-in. Called by model builders, tasks and training methods.

A study file gives every plug-in a flat mapping of options. Each plug-in declares a `ConfigModel`
for its own; an unknown or wrong one is refused before anything is built. Imports no torch.
"""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.errors import ConfigError

OptionsT = TypeVar("OptionsT", bound=ConfigModel)


def parse_options(
    kind: type[OptionsT], options: Mapping[str, OptionValue], *, owner: str
) -> OptionsT:
    """Check the options of one plug-in.

    Args:
        kind: the closed set of options, with types, limits and defaults.
        options: what the study file says.
        owner: how the plug-in is named in a message, such as ``model 'multimodal'``.

    Raises:
        ConfigError: FH-MODEL-001 an option is unknown, has another type or is out of range.
    """
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'options'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise ConfigError(
            "FH-MODEL-001",
            f"the options of {owner} are wrong: {wrong}.",
            why=f"It knows: {', '.join(sorted(kind.model_fields)) or 'no options'}.",
            fix="Correct the options in study.yaml.",
        ) from None
