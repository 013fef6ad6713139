"""A command group whose members are imported when they are called, so that `--help` stays fast."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import click
import typer
from typer.core import TyperGroup

from fedhealth.cli.weight_places import look_for_weights


class LazyGroup(TyperGroup):
    """Shows `members` in help from their one-line texts; imports a member's module when it runs.

    `members` maps a command's name to (module, one-line help). The module has `app: typer.Typer`; with
    one command and no callback the app itself is the command (`fedhealth demo`).
    """

    members: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init__(self, **attrs: Any) -> None:  # noqa: ANN401 - click's own signature
        super().__init__(**attrs)
        for name, (_, help_text) in self.members.items():
            self.add_command(click.Command(name, help=help_text))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Replace the placeholder by the real command: the one moment at which it is imported."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.members:
            command = typer.main.get_command(import_module(self.members[name][0]).app)
            command.name = name
            look_for_weights(command)
        return name, command, rest
