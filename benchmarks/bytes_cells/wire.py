"""Bytes that a site really sends in a round: real processes over TLS, counted at the server's gateway."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from round_overhead import RUN, Plan, first_model, measure

from fedhealth.contracts.update_encoding import LEVELS
from fedhealth.report.write import read_rounds
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.server.home import ServerHome


@dataclass(frozen=True, kw_only=True)
class BytesPlan(Plan):
    """A federation of `add_one` whose updates have that many bits a value."""

    bits: int

    def study(self) -> dict[str, Any]:
        """The study file."""
        content = super().study()
        content["federation"]["update_bits"] = self.bits
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class OnTheWire:
    """Of one site in one round: the update alone, and everything that the gateway received from the site."""

    num_values: int
    bits: int
    update_bytes: int
    wire_bytes: float
    is_right: bool


def on_the_wire(num_values: int, bits: int, folder: Path) -> OnTheWire:
    """Two sites, three rounds; the first is left out, since sites also connect in it.

    `add_one` makes the same update at both sites, and Flower takes equal bytes once: so the site that sent more counts.
    """
    plan = BytesPlan(sites=2, parameters=num_values, rounds=3, plain=False, bits=bits)
    figures = measure(plan, folder)
    home = ServerHome(folder / "server").run(RUN)
    rounds = [r for r in read_rounds(home.reports)[1:] if r.kind == "train"]
    sent = [max(site.wire_bytes_in or 0 for site in r.sites) for r in rounds]
    moved = read_last_checkpoint(home).vector - first_model(num_values)
    # In 8 bits a value may be a step short in every round; float32 adds rounding of its own.
    slack = 1e-4 + (plan.rounds / LEVELS if bits == 8 else 0)  # noqa: PLR2004 - the form's name
    return OnTheWire(
        num_values=num_values,
        bits=bits,
        update_bytes=max(site.update_bytes for r in rounds for site in r.sites),
        wire_bytes=statistics.mean(sent),
        is_right=figures["exit_code"] == 0 and bool((abs(moved - plan.rounds) <= slack).all()),
    )
