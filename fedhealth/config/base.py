"""What every configuration file has in common: closed, frozen, described."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,39}$")]
"""Ids that become folder names: lower-case letters, digits and dashes."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
PluginName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
OptionValue = bool | int | float | str | list[int] | list[float] | list[str]


class ConfigModel(BaseModel):
    """Base of all configuration: unknown keys refused, nothing mutable, numbers never from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
