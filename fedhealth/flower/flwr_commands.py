"""Flower's command line, several commands in one process: its imports cost a second of processor time each time.

Run as `python -m fedhealth.flower.flwr_commands`, with a JSON list of argument lists on standard input. Each command
writes its JSON document to standard output, as `flwr ... --format json` does. Started by `flower/control.py`: a server
registers every site of its roster when it starts.
"""

import json
import sys
from typing import Any


def main() -> None:
    """Run the commands in order; one that fails says so in its document."""
    from flwr.cli.app import app

    for arguments in json.load(sys.stdin):
        app([*arguments, "--format", "json"], standalone_mode=False)


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON documents that follow one another in what `main` wrote; ends before anything else."""
    decoder, found = json.JSONDecoder(), []
    rest = text.strip()
    while rest.startswith("{"):
        try:
            document, end = decoder.raw_decode(rest)
        except ValueError:
            break
        found.append(document)
        rest = rest[end:].strip()
    return found


if __name__ == "__main__":
    main()
