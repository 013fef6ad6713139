"""A place in a ledger, as others remember it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerMark:
    """Number of lines, and the SHA-256 (hex) of the last one: who keeps it can tell an older copy."""

    sequence: int
    head: str
