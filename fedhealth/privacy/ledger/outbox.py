"""Sealed answers, encrypted on disk until newer ones take their place: what is sent again is byte for byte the same.

Called by `ledger.py`, always under the ledger's lock.
"""

import hashlib
import os
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedhealth.privacy.ledger import problems
from fedhealth.privacy.ledger.entries import SealBody
from fedhealth.privacy.ledger.storage import Storage, write_whole

FOLDER_NAME: Final = "sealed"
KEY_BYTES: Final = 32  # AES-256
_NONCE_BYTES: Final = 12  # NIST SP 800-38D; fresh for every file, far below 2^32 files for one key
_LENGTH_BYTES: Final = 8
_MOST_BYTES: Final = 2**31 - 1 - 16  # the most that one call of the library encrypts, less the tag
_PURPOSE: Final = b"fedhealth/sealed-answer/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedAnswer:
    """The signed contribution envelope (JSON) and the update's bytes (empty when there are none)."""

    header: bytes = field(repr=False)
    payload: bytes = field(repr=False)


class Outbox:
    """Files `<manifest>.sealed`: nonce, then AES-256-GCM of header length, header and payload.

    The associated data hold the ledger's id and the manifest: a file of another place does not open.
    """

    def __init__(self, folder: Path, *, key: bytes, storage: Storage) -> None:
        self._folder = folder
        self._cipher = AESGCM(key)
        self._storage = storage

    @property
    def is_empty(self) -> bool:
        """Is there no sealed answer?"""
        return not self._folder.exists() or not any(self._folder.glob("*.sealed"))

    def write(self, manifest_sha256: str, answer: SealedAnswer, *, ledger_id: str) -> SealBody:
        """Encrypt and store an answer durably; returns what its seal line says.

        Raises:
            PrivacyError: FH-LEDGER-017 it is too large.
            OSError: the disk did not take it.
        """
        size = _LENGTH_BYTES + len(answer.header) + len(answer.payload)
        if size > _MOST_BYTES:
            raise problems.too_large(size)
        length = len(answer.header).to_bytes(_LENGTH_BYTES, "big")
        nonce = os.urandom(_NONCE_BYTES)
        content = nonce + self._cipher.encrypt(
            nonce, length + answer.header + answer.payload, _context(ledger_id, manifest_sha256)
        )
        self._write_durably(self._path(manifest_sha256), content)
        return SealBody(
            manifest_sha256=manifest_sha256,
            header_sha256=hashlib.sha256(answer.header).hexdigest(),
            payload_sha256=hashlib.sha256(answer.payload).hexdigest(),
            file_sha256=hashlib.sha256(content).hexdigest(),
        )

    def read(self, seal: SealBody, *, ledger_id: str) -> SealedAnswer:
        """The answer of a seal line, checked against all of its digests.

        Raises:
            PrivacyError: FH-LEDGER-011 missing or damaged; FH-LEDGER-012 sealed with another key.
        """
        try:
            content = self._path(seal.manifest_sha256).read_bytes()
        except FileNotFoundError:
            raise problems.damaged_answer("is missing") from None
        except OSError as error:
            raise problems.disk(error) from None
        if hashlib.sha256(content).hexdigest() != seal.file_sha256:
            raise problems.damaged_answer("is damaged")
        context = _context(ledger_id, seal.manifest_sha256)
        try:
            plain = self._cipher.decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], context)
        except InvalidTag:
            raise problems.other_key() from None
        end = _LENGTH_BYTES + int.from_bytes(plain[:_LENGTH_BYTES], "big")
        answer = SealedAnswer(header=plain[_LENGTH_BYTES:end], payload=plain[end:])
        found = (
            hashlib.sha256(answer.header).hexdigest(),
            hashlib.sha256(answer.payload).hexdigest(),
        )
        if found != (seal.header_sha256, seal.payload_sha256):
            raise problems.damaged_answer("is not the one that was sealed")
        return answer

    def prune(self, keep: AbstractSet[str]) -> None:
        """Remove what no kept seal line names: older answers, and files that a crash left unfinished."""
        names = {f"{manifest}.sealed" for manifest in keep}
        for path in sorted(self._folder.iterdir()):
            if path.suffix in {".sealed", ".tmp"} and path.name not in names:
                with suppress(OSError):  # it is tried again after the next seal
                    self._storage.unlink(path)

    def _write_durably(self, path: Path, content: bytes) -> None:
        temporary = path.with_suffix(".tmp")
        descriptor = self._storage.open_file(temporary)
        try:
            self._storage.truncate(descriptor, 0)
            write_whole(self._storage, descriptor, content, 0)
            self._storage.fsync(descriptor)
        finally:
            self._storage.close(descriptor)
        self._storage.replace(temporary, path)
        self._storage.sync_folder(self._folder)

    def _path(self, manifest_sha256: str) -> Path:
        return self._folder / f"{manifest_sha256}.sealed"


def _context(ledger_id: str, manifest_sha256: str) -> bytes:
    return b"\0".join((_PURPOSE, ledger_id.encode(), manifest_sha256.encode()))
