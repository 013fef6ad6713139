"""The roster: which sites are admitted, which were revoked. Written by `server admit` and `server revoke`."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fedhealth.durable import write_atomically
from fedhealth.errors import EvidenceError, UsageError
from fedhealth.evidence.statements import RosterEntry


class RosterLine(BaseModel):
    """One site with its node key, as Flower wants it, and its state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry: RosterEntry
    node_key: str
    state: Literal["admitted", "revoked"]


class Roster(BaseModel):
    """All sites that were ever admitted; a revoked site stays, so that old rounds can be read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lines: tuple[RosterLine, ...] = ()

    @property
    def admitted(self) -> tuple[RosterLine, ...]:
        """Admitted sites, by site id: the order in which updates are folded."""
        chosen = [line for line in self.lines if line.state == "admitted"]
        return tuple(sorted(chosen, key=lambda line: line.entry.site_id))

    def find(self, site_id: str) -> RosterLine | None:
        """The line of a site."""
        return next((line for line in self.lines if line.entry.site_id == site_id), None)

    def admit(self, line: RosterLine) -> "Roster":
        """With one more site.

        Raises:
            UsageError: FH-USAGE-021 the id or a key is on the roster already.
        """
        for other in self.lines:
            same_key = {other.entry.key_id, other.entry.node_key_id} & {
                line.entry.key_id,
                line.entry.node_key_id,
            }
            if other.entry.site_id == line.entry.site_id or same_key:
                raise UsageError(
                    "FH-USAGE-021",
                    f"site {line.entry.site_id} or one of its keys is on the roster already "
                    f"(as {other.entry.site_id}, {other.state}).",
                    why="One key is one site; a revoked key never comes back.",
                    fix="A hospital that enrols anew needs a new home (new keys) and a new site id.",
                )
        return Roster(lines=(*self.lines, line))

    def revoke(self, site_id: str) -> "Roster":
        """With one site revoked.

        Raises:
            UsageError: FH-USAGE-022 no such site, or revoked already.
        """
        line = self.find(site_id)
        if line is None or line.state == "revoked":
            known = ", ".join(item.entry.site_id for item in self.admitted) or "none"
            raise UsageError(
                "FH-USAGE-022",
                f"site {site_id!r} is not admitted.",
                fix=f"Admitted sites: {known}.",
            )
        changed = line.model_copy(update={"state": "revoked"})
        return Roster(lines=tuple(changed if item is line else item for item in self.lines))


def read_roster(path: Path) -> Roster:
    """Read the roster; an absent file is an empty roster.

    Raises:
        EvidenceError: FH-EVIDENCE-020 the file was damaged.
    """
    if not path.exists():
        return Roster()
    try:
        return Roster.model_validate_json(path.read_bytes())
    except ValueError:
        raise EvidenceError(
            "FH-EVIDENCE-020",
            "roster.json is damaged.",
            why="Nobody knows which sites may take part.",
            fix="Restore it from a backup; `server admit` writes it.",
        ) from None


def write_roster(path: Path, roster: Roster) -> None:
    """Replace the roster durably."""
    write_atomically(path, roster.model_dump_json(indent=2).encode() + b"\n")
