"""Keys and envelopes: who said what, byte for byte."""

import base64
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedhealth.errors import EvidenceError, IdentityError
from fedhealth.evidence.signing import (
    MAX_ENVELOPE_BYTES,
    Envelope,
    SigningKey,
    VerifyKey,
    canonical_json,
    fingerprint,
    read_private,
    write_private,
)

KIND = "application/vnd.fedhealth.test.v1+json"


def test_a_statement_opens_with_its_signers_key_only() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    envelope = key.sign(KIND, {"b": 1, "a": "x"})
    assert key.public.open(envelope, KIND) == b'{"a":"x","b":1}'
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        other.public.open(envelope, KIND)


def test_a_statement_of_one_kind_does_not_pass_for_another() -> None:
    key = SigningKey.generate()
    envelope = key.sign(KIND, {"a": 1})
    with pytest.raises(IdentityError, match="FH-IDENTITY-003"):
        key.public.open(envelope, KIND + "x")
    relabelled = envelope.model_copy(update={"payload_type": KIND + "x"})
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        key.public.open(relabelled, KIND + "x")


def test_a_key_id_that_is_not_the_signers_is_refused() -> None:
    key = SigningKey.generate()
    envelope = key.sign(KIND, {}).model_copy(update={"key_id": "0" * 64})
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        key.public.open(envelope, KIND)


@pytest.mark.parametrize("signature", ["", "!", "AAAA", base64.b64encode(bytes(64)).decode()])
def test_a_signature_that_is_none_is_refused(signature: str) -> None:
    key = SigningKey.generate()
    envelope = key.sign(KIND, {}).model_copy(update={"signature": signature})
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        key.public.open(envelope, KIND)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b'{"payload": 1}', b"\xff\xfe", b"[" * 100_000, b'"\\ud800"'],
)
def test_anything_but_an_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-001"):
        Envelope.from_bytes(data)


def test_an_envelope_has_no_room_for_more() -> None:
    envelope = SigningKey.generate().sign(KIND, {})
    more = canonical_json(envelope.model_dump() | {"note": "DOE^JOHN"})
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-001"):
        Envelope.from_bytes(more)
    with pytest.raises(EvidenceError, match="too large"):
        Envelope.from_bytes(b" " * (MAX_ENVELOPE_BYTES + 1))


def test_an_envelope_reads_back_the_same() -> None:
    envelope = SigningKey.generate().sign(KIND, {"name": "Müller", "n": 3})
    assert Envelope.from_bytes(envelope.to_bytes()) == envelope
    assert envelope.to_bytes() == canonical_json(envelope.model_dump())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60])
def test_canonical_json_refuses_what_json_cannot_say_exactly(value: float) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - rfc8785's own subclasses
        canonical_json({"x": value})


@pytest.mark.parametrize("text", ["", "!", "AAAA", base64.b64encode(bytes(31)).decode(), "ü"])
def test_a_public_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(IdentityError, match="FH-IDENTITY-001"):
        VerifyKey.from_base64(text)


def test_a_public_key_survives_its_text() -> None:
    key = SigningKey.generate().public
    assert VerifyKey.from_base64(key.to_base64()).key_id == key.key_id
    assert len(fingerprint(key.key_id).split()) == 8


def test_a_key_file_is_private_from_its_first_byte_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing_key.pem"
    previous = os.umask(0)
    try:
        SigningKey.generate().save(path)
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        SigningKey.generate().save(path)
    assert path.read_bytes() == before


def test_a_key_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "link", b"secret")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o602, 0o610])
def test_a_key_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    SigningKey.generate().save(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="FH-IDENTITY-005"):
        SigningKey.load(path)
    path.chmod(0o400)
    SigningKey.load(path)


def test_a_missing_or_foreign_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="FH-IDENTITY-004"):
        read_private(tmp_path / "absent")
    pem = generate_private_key(SECP384R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for number, content in enumerate((b"", b"no key", pem)):
        path = tmp_path / str(number)
        write_private(path, content)
        with pytest.raises(IdentityError, match="FH-IDENTITY-004"):
            SigningKey.load(path)


def test_a_key_is_not_shown() -> None:
    key = SigningKey.generate()
    assert "PRIVATE" not in repr(key)
    assert repr(vars(key)).count("object at") == 1
