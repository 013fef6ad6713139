"""Where a command looks for pretrained weights: in its homes, and beside its study file. Called by `lazy`.

At one place for all commands: one that forgot it could not build a model that others can.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

_HOMES: Final = ("home", "server_home")
_STUDY_SUFFIXES: Final = (".yaml", ".yml")


def look_for_weights(command: click.Command) -> None:
    """Let a command, and all commands of a group, run inside `weights_in` of the folders that it is given."""
    if isinstance(command, click.Group):
        for member in command.commands.values():
            look_for_weights(member)
    elif command.callback is not None:
        command.callback = _inside(command.callback)


def _inside(callback: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(callback)
    def call(*args: Any, **params: Any) -> Any:  # noqa: ANN401 - click's own signature
        from fedhealth.models.weight_files import weights_in

        with weights_in(*_places(params)):
            return callback(*args, **params)

    return call


def _places(params: Mapping[str, object]) -> Iterator[Path]:
    for name in _HOMES:
        value = params.get(name)
        if isinstance(value, str | Path):
            yield Path(value).resolve()
    study = params.get("study")
    # In a site's commands `study` is an id.
    if isinstance(study, str | Path) and Path(study).suffix in _STUDY_SUFFIXES:
        yield Path(study).resolve().parent
