"""A place in a ledger, as others remember it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerMark:
    """Sequence number and SHA-256 (hex) of a ledger's last line: who keeps it can tell an older copy."""

    sequence: int
    head: str
