"""The `fedhealth` command: global options, and the one place where errors become text and exit codes."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import click
import typer

from fedhealth.cli.lazy import LazyGroup
from fedhealth.cli.output import (
    configure_logging,
    emit_json,
    error_payload,
    new_app,
    print_error,
    say,
)
from fedhealth.config.levels import LogLevel
from fedhealth.errors import ExitCode, FedHealthError, UsageError

log = logging.getLogger(__name__)


class Commands(LazyGroup):
    """The groups of the command line. One line adds one: name -> (module with `app`, help)."""

    members: ClassVar[Mapping[str, tuple[str, str]]] = {
        "study": ("fedhealth.cli.study", "Write, check and show a study file."),
        "server": ("fedhealth.cli.server", "Begin a study, admit hospitals, run the rounds."),
        "benefit": ("fedhealth.cli.benefit", "Was it worth it, against training alone?"),
        "demo": ("fedhealth.cli.demo", "A whole federation on this machine."),
        "simulate": (
            "fedhealth.cli.simulate",
            "A study with many hospitals in one process or on Ray, to try it out.",
        ),
        "site": ("fedhealth.cli.site", "Join a study, train in its rounds, keep the results."),
        "model": ("fedhealth.cli.model", "List, export and recalibrate trained models."),
        "predict": ("fedhealth.cli.predict", "Score new patients with a trained model."),
    }


app = new_app("Federated learning for hospitals: one model, data that never leaves.")


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer's callback form
    if value:
        from fedhealth.cli.version import versions

        for name, version in versions().items():
            print(f"{name} {version}")
        raise typer.Exit


@app.callback(cls=Commands)
def _global_options(
    log_level: Annotated[
        LogLevel, typer.Option(help="Detail of this command's diagnostics on stderr.")
    ] = "warning",
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print versions and exit."
        ),
    ] = False,
) -> None:
    configure_logging(log_level)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Every error ends here."""
    try:
        return _invoke(arguments)
    except FedHealthError as error:
        failure: FedHealthError = error
    except click.ClickException as error:
        failure = _usage_error(error)
    except Exception as error:  # noqa: BLE001 - the outermost frame: a bug must not print its text
        failure = _bug(error)
    print_error(failure)
    if "--json" in arguments:
        emit_json("error", error_payload(failure))
    return failure.exit_code


def main() -> None:
    """Entry point of the `fedhealth` script."""
    sys.exit(int(run(sys.argv[1:])))


def _invoke(arguments: Sequence[str]) -> int:
    # Typer escapes "[required]" for rich where rich is installed, also in plain help, and imports it for that.
    typer.core.HAS_RICH = False
    try:
        code = typer.main.get_command(app).main(
            list(arguments), prog_name="fedhealth", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except (KeyboardInterrupt, click.Abort):
        say("Interrupted.")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone (`| head`): nothing more to say to it, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    return code if isinstance(code, int) else ExitCode.OK


def _usage_error(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "fedhealth"
    return UsageError("FH-USAGE-001", error.format_message(), fix=f"See `{command} --help`.")


def _bug(error: Exception) -> FedHealthError:
    """An unexpected exception: its type only, since its text may hold anything a site's data holds."""
    log.debug("unexpected exception", exc_info=error)
    return FedHealthError(
        "FH-BUG-001",
        f"unexpected {type(error).__name__}: this is a bug in fedhealth or in a plug-in.",
        why="Its text is not shown, because it may hold data of a patient.",
        fix="Run again with `fedhealth --log-level debug ...` to see where, on this machine only; "
        "remove data before you report it (SECURITY.md).",
    )
