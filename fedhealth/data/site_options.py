"""Closed options of a site package, from `package.options` of site.yaml. Called by site packages."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from fedhealth.config.base import ConfigModel
from fedhealth.errors import ConfigError

OptionsT = TypeVar("OptionsT", bound=ConfigModel)


def parse_site_options(
    kind: type[OptionsT], options: Mapping[str, object], *, package: str
) -> OptionsT:
    """Check the options of one site package.

    Args:
        kind: the closed set of options, with types, limits and defaults.
        options: what site.yaml says.
        package: name of the site package, for the message.

    Raises:
        ConfigError: FH-CONFIG-041 an unknown option, a wrong type or a value outside the limits.
    """
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'options'}: {item['msg']}"
            for item in error.errors()
        )
        raise ConfigError(
            "FH-CONFIG-041",
            f"the options of the site package {package!r} are wrong: {wrong}.",
            why=f"It knows: {', '.join(sorted(kind.model_fields)) or 'no options'}.",
            fix="Correct package.options in site.yaml.",
        ) from None
