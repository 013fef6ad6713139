"""Seeds from names: independent random streams for every purpose, from the study's one seed."""

import hashlib


def derive_seed(*parts: str | int) -> int:
    """A seed in 0..2^63-1 that depends on every part and its place, the same on every machine.

    SHA-256 over the parts, each with its type and length, so that no two lists of parts run together.
    """
    digest = hashlib.sha256(b"fedhealth-seed-v1")
    for part in parts:
        text = str(part).encode()
        digest.update(f"{type(part).__name__}:{len(text)}:".encode() + text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
