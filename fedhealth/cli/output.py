"""How commands speak: people read stderr, programs read one JSON object on stdout."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from fedhealth.config.levels import LogLevel
from fedhealth.errors import FedHealthError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

JsonOption = Annotated[
    bool, typer.Option("--json", help="One versioned JSON object on stdout; text stays on stderr.")
]
"""The type of every command's `--json`: `def command(json: JsonOption = False)`."""


def new_app(help_text: str) -> typer.Typer:
    """A command group in the house style: plain help (importing rich takes 0.1 s), no completion options."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def say(text: str = "") -> None:
    """One line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def emit_json(schema_name: str, payload: Mapping[str, object], *, version: int = 1) -> None:
    """The command's one JSON object, on stdout: `schema` and `schema_version` first.

    Args:
        schema_name: kebab-case name of the object's shape, such as ``study-check``.
        payload: JSON-serialisable fields; non-finite numbers are refused (they are not JSON).
        version: raised when a field changes meaning or goes away.
    """
    document = {"schema": f"fedhealth.{schema_name}", "schema_version": version, **payload}
    print(json.dumps(document, allow_nan=False, ensure_ascii=False), flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain text table: columns padded, numbers to the right, floats with three decimals."""
    body = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *body, strict=True)]
    is_number = [
        bool(rows) and all(isinstance(row[i], int | float) or row[i] is None for row in rows)
        for i in range(len(headers))
    ]
    lines = [headers, ["-" * width for width in widths], *body]
    return "\n".join(_line(line, widths, is_number) for line in lines)


def print_error(error: FedHealthError) -> None:
    """What, why and fix, on stderr."""
    say(f"{error.code} {error.what}")
    for text in (error.why, error.fix):
        if text:
            say(f"  {text}")


def error_payload(error: FedHealthError) -> dict[str, object]:
    """The JSON form of an error; configuration errors also list their problems."""
    payload: dict[str, object] = {
        "code": error.code,
        "what": error.what,
        "why": error.why,
        "fix": error.fix,
        "exit_code": int(error.exit_code),
    }
    problems = getattr(error, "problems", ())
    if problems:
        payload["problems"] = [
            {"line": p.line, "code": p.code, "what": p.what, "fix": p.fix} for p in problems
        ]
    return payload


def configure_logging(level: LogLevel) -> None:
    """Send the package's log to stderr. Only the command line configures logging."""
    logger = logging.getLogger("fedhealth")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str], widths: Sequence[int], is_number: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, is_number, strict=True)
    ]
    return "  ".join(padded).rstrip()
