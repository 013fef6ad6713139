"""The empirical audit: what an attacker can tell from what left, next to what the ledger claims."""
