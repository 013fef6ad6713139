"""Keys of a run: two sites derive the same from theirs, and anything else in the context gives something else."""

import base64
import hashlib
import hmac
import os
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import IdentityError
from fedhealth.secagg.mask_keys import RunKey, public_bytes
from fedhealth.secagg.refusals import MaskingRefusedError

M1, M2 = "1" * 64, "2" * 64
FIELD = 2**255 - 19
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (FIELD - 1).to_bytes(32, "little"),
    FIELD.to_bytes(32, "little"),
    (FIELD + 1).to_bytes(32, "little"),
    (2**255).to_bytes(32, "little"),  # zero, with the bit that X25519 does not read
]


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, one block."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\1", hashlib.sha256).digest()


def x25519(private: bytes, point: bytes) -> bytes:
    """RFC 7748's ladder in Python's whole numbers."""
    scalar = int.from_bytes(private, "little") & ~7 & ~(1 << 255) | 1 << 254
    u = (int.from_bytes(point, "little") & ((1 << 255) - 1)) % FIELD
    x2, z2, x3, z3 = 1, 0, u, 1
    for place in reversed(range(255)):
        bit = scalar >> place & 1
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        x3, z3 = (da + cb) ** 2 % FIELD, u * (da - cb) ** 2 % FIELD
        x2, z2 = aa * bb % FIELD, (aa - bb) * (aa + 121665 * (aa - bb)) % FIELD
        if bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, -1, FIELD) % FIELD if z2 % FIELD else 0).to_bytes(32, "little")


def as_text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def test_two_sites_derive_the_same_seed() -> None:
    a, b = RunKey.generate(), RunKey.generate()
    said = {"manifest_sha256": M1, "first": "a", "second": "b"}
    assert a.pair_seed(b.public, **said) == b.pair_seed(a.public, **said)


def test_the_seed_is_hkdf_of_x25519_with_the_manifest_and_the_pair_in_its_context() -> None:
    private = os.urandom(32)
    own = RunKey(X25519PrivateKey.from_private_bytes(private))
    peer = RunKey.generate()
    secret = x25519(private, public_bytes(peer.public))
    seed = own.pair_seed(peer.public, manifest_sha256=M1, first="a", second="b")
    assert seed == hkdf(secret, f"fedhealth-secagg/1|mask|{M1}|a|b".encode())


def test_shares_are_sealed_with_a_key_of_their_own_for_manifest_sender_and_receiver() -> None:
    private = os.urandom(32)
    own, peer = RunKey(X25519PrivateKey.from_private_bytes(private)), RunKey.generate()
    said = {"manifest_sha256": M1, "sender": "a", "receiver": "b"}
    sealed = own.seal_shares(peer.public, b"secret", **said)
    context = f"shares|{M1}|a|b"
    key = hkdf(x25519(private, public_bytes(peer.public)), f"fedhealth-secagg/1|{context}".encode())
    assert ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], context.encode()) == b"secret"
    assert peer.open_shares(own.public, sealed, **said) == b"secret"


def test_another_manifest_pair_order_or_key_gives_another_seed() -> None:
    a, b, other = RunKey.generate(), RunKey.generate(), RunKey.generate()
    seeds = [
        a.pair_seed(b.public, manifest_sha256=M1, first="a", second="b"),
        a.pair_seed(b.public, manifest_sha256=M2, first="a", second="b"),
        a.pair_seed(b.public, manifest_sha256=M1, first="b", second="a"),
        a.pair_seed(b.public, manifest_sha256=M1, first="a", second="c"),
        a.pair_seed(other.public, manifest_sha256=M1, first="a", second="b"),
        other.pair_seed(b.public, manifest_sha256=M1, first="a", second="b"),
    ]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    "changes", [{"manifest_sha256": M2}, {"sender": "b"}, {"receiver": "a"}, {"receiver": "c"}]
)
def test_sealed_shares_open_for_their_manifest_sender_and_receiver_only(
    changes: dict[str, str],
) -> None:
    a, b = RunKey.generate(), RunKey.generate()
    said = {"manifest_sha256": M1, "sender": "a", "receiver": "b"}
    sealed = a.seal_shares(b.public, b"secret", **said)
    with pytest.raises(MaskingRefusedError) as caught:
        b.open_shares(a.public, sealed, **said | changes)
    assert caught.value.drop_code == DropCode.SHARES_UNREADABLE


def test_sealed_shares_open_with_the_receivers_key_only_and_not_when_a_bit_is_flipped() -> None:
    a, b = RunKey.generate(), RunKey.generate()
    said = {"manifest_sha256": M1, "sender": "a", "receiver": "b"}
    sealed = a.seal_shares(b.public, b"secret", **said)
    spoilt = [
        sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        for place in range(len(sealed))
    ]
    for key, text in [(RunKey.generate(), sealed), *((b, part) for part in spoilt)]:
        with pytest.raises(MaskingRefusedError):
            key.open_shares(a.public, text, **said)
    for short in (b"", sealed[:11], sealed[:12], sealed[:-1]):
        with pytest.raises(MaskingRefusedError):
            b.open_shares(a.public, short, **said)


def test_sealing_twice_uses_another_nonce() -> None:
    a, b = RunKey.generate(), RunKey.generate()
    said = {"manifest_sha256": M1, "sender": "a", "receiver": "b"}
    nonces = {a.seal_shares(b.public, b"secret", **said)[:12] for _ in range(100)}
    assert len(nonces) == 100


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_point_of_low_order_is_refused(point: bytes) -> None:
    with pytest.raises(MaskingRefusedError) as caught:
        RunKey.generate().pair_seed(as_text(point), manifest_sha256=M1, first="a", second="b")
    assert caught.value.drop_code == DropCode.MASK_KEY_INVALID


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_point_of_low_order_would_give_a_seed_that_everybody_knows(point: bytes) -> None:
    # The negative control of the test above: without the refusal the secret is zero, whatever the private key is.
    assert x25519(os.urandom(32), point) == bytes(32)


@pytest.mark.parametrize("text", ["", "abc", "!" * 44, as_text(bytes(31)), as_text(bytes(33)), "é"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(MaskingRefusedError) as caught:
        public_bytes(text)
    assert caught.value.drop_code == DropCode.MASK_KEY_INVALID


def test_the_key_of_a_run_is_made_once_and_kept_privately(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "mask_key"
    first = RunKey.load_or_make(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert RunKey.load_or_make(path).public == first.public
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="FH-IDENTITY-005"):
        RunKey.load_or_make(path)


def test_a_damaged_key_file_is_refused_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mask_key"
    path.write_bytes(bytes(31))
    path.chmod(0o600)
    with pytest.raises(MaskingRefusedError):
        RunKey.load_or_make(path)
    assert path.read_bytes() == bytes(31)


def test_a_private_key_is_neither_shown_nor_pickled() -> None:
    key = RunKey.generate()
    assert repr(key) == "RunKey()"
    with pytest.raises(TypeError):
        pickle.dumps(key)
