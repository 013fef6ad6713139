"""Ed25519 keys and signed envelopes: how one party proves to another what it said.

An envelope follows DSSE (secure-systems-lab/dsse, protocol.md): the signature covers the payload type and the
exact payload bytes (PAE), so a statement of one kind can never be read as another. Payloads are canonical
JSON (RFC 8785), so that a digest of the same statement is the same everywhere.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedhealth.durable import sync
from fedhealth.errors import EvidenceError, IdentityError

PRIVATE_MODE: Final = 0o600
MAX_ENVELOPE_BYTES: Final = 4 * 1024 * 1024  # a manifest of 20 000 tensors is about 2 MB
Hex64 = Field(pattern=r"^[0-9a-f]{64}$")


class Envelope(BaseModel):
    """A signed statement as it travels and as it is stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    payload_type: str = Field(max_length=100)
    payload: str = Field(max_length=MAX_ENVELOPE_BYTES)
    key_id: str = Hex64
    signature: str = Field(max_length=128)

    @property
    def payload_digest(self) -> str:
        """SHA-256 of the payload bytes, in hex."""
        return hashlib.sha256(self.payload.encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.model_dump())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Envelope":
        """Parse an envelope that somebody sent.

        Raises:
            EvidenceError: FH-EVIDENCE-001 it is not an envelope.
        """
        if len(data) > MAX_ENVELOPE_BYTES:
            raise _malformed("it is too large")
        try:
            return cls.model_validate_json(data)
        except ValidationError:
            raise _malformed("it is not in the agreed format") from None


def _malformed(reason: str) -> EvidenceError:
    return EvidenceError(
        "FH-EVIDENCE-001",
        f"a signed statement cannot be read: {reason}.",
        why="Nothing in it can be believed.",
        fix="Ask the sender for the file again, and compare versions with `fedhealth --version`.",
    )


def canonical_json(value: object) -> bytes:
    """RFC 8785 bytes of a JSON value (refuses NaN, infinities and integers beyond 2^53)."""
    return rfc8785.dumps(value)  # type: ignore[arg-type]  # rfc8785 types JSON recursively


class VerifyKey:
    """The public half of a party's signing key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @classmethod
    def from_base64(cls, text: str) -> "VerifyKey":
        """From `to_base64`. Raises IdentityError FH-IDENTITY-001 on anything else."""
        try:
            raw = base64.b64decode(text, validate=True)
            return cls(Ed25519PublicKey.from_public_bytes(raw))
        except (binascii.Error, ValueError):
            raise IdentityError(
                "FH-IDENTITY-001",
                "a signing key is not an Ed25519 public key.",
                fix="Ask the other party for the file again.",
            ) from None

    def to_base64(self) -> str:
        """The 32 raw bytes, in base64."""
        return base64.b64encode(self._key.public_bytes_raw()).decode()

    @property
    def key_id(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo, in hex."""
        spki = self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).hexdigest()

    def open(self, envelope: Envelope, payload_type: str) -> bytes:
        """The payload, after checking key, type and signature.

        Raises:
            IdentityError: FH-IDENTITY-002 signed by another key or altered; FH-IDENTITY-003 another kind.
        """
        if envelope.payload_type != payload_type:
            raise IdentityError(
                "FH-IDENTITY-003",
                f"expected a statement of type {payload_type}.",
                why="A signed statement of one kind must not pass for another.",
                fix="Check that this is the right file for this command.",
            )
        try:
            signature = base64.b64decode(envelope.signature, validate=True)
            self._key.verify(signature, _pae(payload_type, envelope.payload.encode()))
        except (InvalidSignature, binascii.Error, ValueError):
            raise _not_signed_by(self.key_id) from None
        if envelope.key_id != self.key_id:
            raise _not_signed_by(self.key_id)
        return envelope.payload.encode()


def _not_signed_by(key_id: str) -> IdentityError:
    return IdentityError(
        "FH-IDENTITY-002",
        f"a statement is not signed by the key {fingerprint(key_id)}.",
        why="It was altered on the way, or somebody else wrote it.",
        fix="Compare the fingerprint with the other party by telephone, then exchange the file again.",
    )


class SigningKey:
    """A party's private Ed25519 key. It is born where it is used and never leaves."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> "SigningKey":
        """A new key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Read a key file.

        Raises:
            IdentityError: FH-IDENTITY-004 missing or damaged, FH-IDENTITY-005 readable by others.
        """
        data = read_private(path)
        try:
            key = load_pem_private_key(data, password=None)
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(
                "FH-IDENTITY-004",
                f"{path.name} is not an Ed25519 private key.",
                fix="Restore it from your backup of the keys folder.",
            )
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key as PKCS#8 PEM, mode 0600; an existing file is never overwritten."""
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(path, pem)

    @property
    def public(self) -> VerifyKey:
        """The public half."""
        return VerifyKey(self._key.public_key())

    def sign(self, payload_type: str, statement: Mapping[str, object]) -> Envelope:
        """Sign a statement: canonical JSON, DSSE pre-authentication encoding, Ed25519."""
        payload = canonical_json(dict(statement))
        signature = self._key.sign(_pae(payload_type, payload))
        return Envelope(
            payload_type=payload_type,
            payload=payload.decode(),
            key_id=self.public.key_id,
            signature=base64.b64encode(signature).decode(),
        )


def _pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding."""
    kind = payload_type.encode()
    return b" ".join((b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload))


def fingerprint(key_id: str) -> str:
    """A key id for people: the first 128 bits in groups of four, to be compared by telephone."""
    return " ".join(key_id[i : i + 4] for i in range(0, 32, 4))


def write_private(path: Path, data: bytes) -> None:
    """Create a file that only this user can read (0600). Raises FileExistsError if it is there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        sync(file.fileno())


def read_private(path: Path) -> bytes:
    """Read a private file after checking that others cannot.

    Raises:
        IdentityError: FH-IDENTITY-004 missing, FH-IDENTITY-005 readable by others.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError:
        raise IdentityError(
            "FH-IDENTITY-004",
            f"the key file {path.name} cannot be read.",
            why="This party has no identity without it.",
            fix="Restore it from your backup, or enrol again with `fedhealth site init`.",
        ) from None
    if mode & 0o077:
        raise IdentityError(
            "FH-IDENTITY-005",
            f"the key file {path.name} can be read by other users (mode {mode & 0o777:04o}).",
            why="Anybody who reads it can speak in this party's name.",
            fix=f"chmod 600 {path.name}; if others may have read it, revoke the key and enrol again.",
        )
    return data
