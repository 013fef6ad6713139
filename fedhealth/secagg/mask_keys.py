"""Keys of secure aggregation: one X25519 key a site and run, and what two sites derive from theirs for one manifest.

Bonawitz et al. 2017 (CCS, arXiv 1611.04482), section 4.1, with the key set up once for many rounds as in Flamingo (Ma
et al. 2023, IEEE S&P). Every derived secret names the manifest: sites that were shown different models, cohorts or
keys derive different masks, which then do not cancel (against Pasquini et al. 2022, CCS, arXiv 2111.07380).
"""

import base64
import binascii
import os
from pathlib import Path
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedhealth.contracts.codes import DropCode
from fedhealth.durable import write_atomically
from fedhealth.evidence.signing import read_private
from fedhealth.secagg.refusals import MaskingRefusedError

PROTOCOL: Final = "fedhealth-secagg/1"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16


class RunKey:
    """One site's private X25519 key of one run. It is made at the site and never leaves it."""

    __slots__ = ("_key",)

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> "RunKey":
        """A new key from the operating system's generator."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def load_or_make(cls, path: Path) -> "RunKey":
        """The key of a run, kept in a file that only this user can read; made when it is absent.

        Raises:
            IdentityError: FH-IDENTITY-004 unreadable, FH-IDENTITY-005 readable by others.
            MaskingRefusedError: the file is damaged.
        """
        if not path.exists():
            new = X25519PrivateKey.generate()
            write_atomically(path, new.private_bytes_raw())
            return cls(new)
        raw = read_private(path)
        if len(raw) != KEY_BYTES:
            raise MaskingRefusedError(DropCode.MASK_KEY_INVALID, "this run's own key is damaged")
        return cls(X25519PrivateKey.from_private_bytes(raw))

    @property
    def public(self) -> str:
        """The public half, 32 bytes in base64."""
        return base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def pair_seed(self, peer: str, *, manifest_sha256: str, first: str, second: str) -> bytes:
        """The 32-byte mask seed of two sites for one manifest; `first` and `second` in the cohort's order.

        Raises:
            MaskingRefusedError: the peer's key is none.
        """
        return self._derive(peer, f"mask|{manifest_sha256}|{first}|{second}")

    def seal_shares(
        self, peer: str, shares: bytes, *, manifest_sha256: str, sender: str, receiver: str
    ) -> bytes:
        """Shares for one peer, encrypted (ChaCha20-Poly1305): nonce, then ciphertext and tag."""
        cipher, context = self._cipher(peer, manifest_sha256, sender, receiver)
        nonce = os.urandom(NONCE_BYTES)
        return nonce + cipher.encrypt(nonce, shares, context)

    def open_shares(
        self, peer: str, sealed: bytes, *, manifest_sha256: str, sender: str, receiver: str
    ) -> bytes:
        """What a peer sealed for this site.

        Raises:
            MaskingRefusedError: it is not from that peer, not for this site, or not of this manifest.
        """
        cipher, context = self._cipher(peer, manifest_sha256, sender, receiver)
        try:
            return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise MaskingRefusedError(
                DropCode.SHARES_UNREADABLE, "a peer's shares cannot be decrypted"
            ) from None

    def _cipher(
        self, peer: str, manifest_sha256: str, sender: str, receiver: str
    ) -> tuple[ChaCha20Poly1305, bytes]:
        context = f"shares|{manifest_sha256}|{sender}|{receiver}"
        return ChaCha20Poly1305(self._derive(peer, context)), context.encode()

    def _derive(self, peer: str, context: str) -> bytes:
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(public_bytes(peer)))
        except ValueError:  # of low order: the shared secret would be zero for everybody
            raise MaskingRefusedError(
                DropCode.MASK_KEY_INVALID, "a peer's key is of low order"
            ) from None
        info = f"{PROTOCOL}|{context}".encode()
        return HKDF(SHA256(), length=KEY_BYTES, salt=None, info=info).derive(shared)

    def __repr__(self) -> str:
        return "RunKey()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled")


def public_bytes(text: str) -> bytes:
    """The 32 bytes of a public key. Raises MaskingRefusedError on anything else."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise MaskingRefusedError(DropCode.MASK_KEY_INVALID, "a peer's key is not an X25519 key")
    return raw
