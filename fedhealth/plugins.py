"""Find plug-ins by entry point. A study or site file names the entry point, never a dotted path.

A configuration file that could name any import would be a way to run code at a hospital; entry points only
reach what the hospital's own administrator has installed.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from fedhealth.errors import ConfigError

Group = Literal[
    "fedhealth.sites",
    "fedhealth.strategies",
    "fedhealth.models",
    "fedhealth.tasks",
    "fedhealth.training",
]


def names(group: Group) -> list[str]:
    """Sorted names of the installed plug-ins of one group."""
    return sorted({point.name for point in entry_points(group=group)})


def find(group: Group, name: str) -> EntryPoint:
    """The one entry point of that name, without importing it.

    Raises:
        ConfigError: none (FH-CONFIG-010) or more than one (FH-CONFIG-011) is installed.
    """
    kind = group.removeprefix("fedhealth.")
    matches = {point.value: point for point in entry_points(group=group, name=name)}
    if not matches:
        known = ", ".join(names(group)) or "none"
        raise ConfigError(
            "FH-CONFIG-010",
            f"no package provides {name!r} in {kind}.",
            why=f"Installed: {known}.",
            fix=f"Check the spelling, or pip install the package with the entry point "
            f'[project.entry-points."{group}"] {name} = "..."; then try again.',
        )
    if len(matches) > 1:
        raise ConfigError(
            "FH-CONFIG-011",
            f"{len(matches)} packages provide {name!r} in {kind}.",
            why="fedhealth cannot know which one the study means.",
            fix="Uninstall all but one.",
        )
    return next(iter(matches.values()))


def load(group: Group, name: str) -> Any:  # noqa: ANN401 - a plug-in's type is checked by its caller
    """Import the plug-in object behind an entry point.

    Raises:
        ConfigError: not installed (FH-CONFIG-010), ambiguous (FH-CONFIG-011) or it does not import
            (FH-CONFIG-012).
    """
    point = find(group, name)
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "FH-CONFIG-012",
            f"the package behind {name!r} does not import ({type(error).__name__}).",
            why=f"Its entry point is {point.value}.",
            fix=f"Run `python -c 'import {point.module}'` here and repair or reinstall that package.",
        ) from error
