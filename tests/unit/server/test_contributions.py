"""A consortium against a hostile site: each contribution that does not count, and why."""

import hashlib
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.codes import SERVER_CODES, DropCode
from fedhealth.contracts.tensors import vector_bytes
from fedhealth.contracts.update_encoding import encode_change
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import Contribution
from fedhealth.server.contributions import Verdict, verify_contribution

from ..conftest import Consortium, study_content  # noqa: TID252 - tests are no installed package

HEX = "ab" * 32


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    made = Consortium(root=tmp_path_factory.mktemp("c") / "c", content=study_content())
    made.enrol("site-1")
    made.enrol("site-2")
    return made


def update(two: Consortium, value: float = 0.5) -> bytes:
    return bytes(vector_bytes(two.model() + np.float32(value)))


def statement(two: Consortium, payload: bytes, **changes: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "study_id": "scripted",
        "site_id": "site-1",
        "manifest_sha256": two.signed().payload_digest,
        "run_name": "main",
        "round_number": 1,
        "attempt": 1,
        "kind": "train",
        "drop_code": None,
        "update_sha256": hashlib.sha256(payload).hexdigest(),
        "num_elements": two.spec.num_elements,
        "train_metrics": {"train_loss": 0.5},
        "evaluate_metrics": {"auc": 0.7},
    }
    return said | changes


def verdict(
    two: Consortium,
    payload: bytes | None = None,
    *,
    key: SigningKey | None = None,
    envelope: Envelope | None = None,
    manifest: dict[str, Any] | None = None,
    said: dict[str, Any] | None = None,
) -> Verdict:
    sent = update(two) if payload is None else payload
    asked = two.manifest(**(manifest or {}))
    signed = envelope or (key or two.site_key("site-1")).sign(
        Contribution.payload_type(), statement(two, sent, **(said or {}))
    )
    digest = asked.sign(two.server_key).payload_digest
    return verify_contribution(signed, sent, asked, digest, two.line("site-1"), origin=two.model())


def test_a_contribution_of_the_enrolled_site_counts(two: Consortium) -> None:
    found = verdict(two)
    assert found.drop_code is None
    assert found.contribution is not None


def test_another_sites_signature_is_refused(two: Consortium) -> None:
    for key in (two.site_key("site-2"), two.server_key, SigningKey.generate()):
        found = verdict(two, key=key)
        assert (found.drop_code, found.contribution) == (DropCode.BAD_SIGNATURE, None)


def test_another_kind_of_statement_is_refused(two: Consortium) -> None:
    envelope = two.site_key("site-1").sign(
        two.manifest().payload_type(), statement(two, update(two))
    )
    assert verdict(two, envelope=envelope).drop_code is DropCode.BAD_SIGNATURE


def test_an_altered_statement_is_refused(two: Consortium) -> None:
    key = two.site_key("site-1")
    good = key.sign(Contribution.payload_type(), statement(two, update(two)))
    altered = good.model_copy(update={"payload": good.payload.replace("0.7", "0.9")})
    assert verdict(two, envelope=altered).drop_code is DropCode.BAD_SIGNATURE


def test_a_substituted_payload_is_refused(two: Consortium) -> None:
    key = two.site_key("site-1")
    envelope = key.sign(Contribution.payload_type(), statement(two, update(two, 0.5)))
    for payload in (update(two, 0.6), b"", update(two)[:-4], update(two) + bytes(4)):
        found = verdict(two, payload, envelope=envelope)
        assert found.drop_code is DropCode.CONTRIBUTION_INVALID


@pytest.mark.parametrize(
    "said",
    [
        {"manifest_sha256": HEX},
        {"site_id": "site-2"},
        {"study_id": "another"},
        {"run_name": "another"},
        {"round_number": 2},
        {"attempt": 2},
        {"kind": "evaluate", "update_sha256": None, "num_elements": 0},
        {"note": "DOE^JOHN"},
        {"train_metrics": {"num_patients": 12}},
        {"evaluate_metrics": {"auc": 1.5}},
        {"evaluate_metrics": {"auc": -0.1}},
        {"evaluate_metrics": {"log_loss": 1e9}},
        {"train_metrics": {"DOE^JOHN": 0.5}},
    ],
)
def test_a_statement_that_does_not_answer_this_manifest_is_refused(
    two: Consortium, said: dict[str, Any]
) -> None:
    assert verdict(two, said=said).drop_code is DropCode.CONTRIBUTION_INVALID


def test_an_answer_to_another_manifest_is_refused(two: Consortium) -> None:
    for manifest in ({"attempt": 2}, {"round_number": 2}, {"deadline_s": 6.0}):
        assert verdict(two, manifest=manifest).drop_code is DropCode.CONTRIBUTION_INVALID


@pytest.mark.parametrize("extra", [-4, 4, 1, -1])
def test_missing_and_extra_tensor_bytes_are_refused(two: Consortium, extra: int) -> None:
    whole = update(two) + bytes(8)
    payload = whole[: len(whole) - 8 + extra]
    assert verdict(two, payload).drop_code is DropCode.WRONG_SPEC


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_refused(two: Consortium, value: float) -> None:
    vector = two.model()
    vector[-1] = value
    assert verdict(two, bytes(vector_bytes(vector))).drop_code is DropCode.NON_FINITE


def code_only(code: DropCode) -> dict[str, Any]:
    return {"drop_code": code.value, "update_sha256": None, "num_elements": 0}


@pytest.mark.parametrize("code", sorted(set(DropCode) - SERVER_CODES))
def test_a_signed_code_is_believed(two: Consortium, code: DropCode) -> None:
    assert verdict(two, b"", said=code_only(code)).drop_code is code


@pytest.mark.parametrize("code", sorted(SERVER_CODES))
def test_a_code_that_only_the_server_can_find_is_not(two: Consortium, code: DropCode) -> None:
    found = verdict(two, b"", said=code_only(code))
    assert found.drop_code is DropCode.CONTRIBUTION_INVALID


def test_a_code_comes_without_a_payload(two: Consortium) -> None:
    found = verdict(two, update(two), said=code_only(DropCode.SITE_DATA))
    assert found.drop_code is DropCode.CONTRIBUTION_INVALID


def test_a_closing_trip_brings_metrics_and_no_payload(two: Consortium) -> None:
    manifest = {"kind": "evaluate", "round_number": 4}
    digest = two.signed(**manifest).payload_digest
    said = manifest | {"manifest_sha256": digest, "update_sha256": None, "num_elements": 0}
    assert verdict(two, b"", manifest=manifest, said=said).drop_code is None
    found = verdict(two, b"1234", manifest=manifest, said=said)
    assert found.drop_code is DropCode.CONTRIBUTION_INVALID


def in_8_bits(two: Consortium) -> bytes:
    new = two.model() + np.linspace(-1, 2, two.spec.num_elements, dtype=np.float32)
    return encode_change(two.model(), new, two.spec, lambda count: np.zeros(count, np.uint64))


def verdict_on_8_bits(
    two: Consortium, payload: bytes, said: dict[str, Any] | None = None, asked: str = "int8"
) -> Verdict:
    return verdict(
        two,
        payload,
        manifest={"update_encoding": asked},
        said={
            "update_encoding": "int8",
            "manifest_sha256": two.signed(update_encoding=asked).payload_digest,
        }
        | (said or {}),
    )


def test_an_update_in_8_bits_counts_as_the_model_that_is_read_out_of_it(two: Consortium) -> None:
    payload = in_8_bits(two)
    found = verdict_on_8_bits(two, payload)
    assert found.drop_code is None
    assert found.contribution is not None
    # What is signed is the digest of the bytes that came, so that they can be held against it later.
    assert found.contribution.update_sha256 == hashlib.sha256(payload).hexdigest()
    assert found.vector is not None
    wanted = np.linspace(-1, 2, two.spec.num_elements)
    assert np.abs(found.vector - wanted).max() <= 2 / 127 + 1e-6
    assert found.vector.dtype == np.float32


def test_an_update_in_8_bits_that_is_not_of_the_form_is_refused(two: Consortium) -> None:
    good = in_8_bits(two)
    nan = np.array([np.nan], "<f4").tobytes()
    wrong_size = (good[:-1], good + b"\0", bytes(vector_bytes(two.model())), good[4:])
    for payload in wrong_size:
        assert verdict_on_8_bits(two, payload).drop_code is DropCode.WRONG_SPEC
    for payload in (nan + good[4:], good[:-1] + b"\x80"):
        assert verdict_on_8_bits(two, payload).drop_code is DropCode.CONTRIBUTION_INVALID


def test_a_form_that_the_manifest_did_not_ask_for_is_refused(two: Consortium) -> None:
    good = in_8_bits(two)
    refused = DropCode.CONTRIBUTION_INVALID
    assert verdict_on_8_bits(two, good, asked="float32").drop_code is refused
    assert verdict_on_8_bits(two, good, {"update_encoding": "float32"}).drop_code is refused
    plain = verdict_on_8_bits(two, update(two), {"update_encoding": "float32"})
    assert (plain.drop_code, plain.vector) == (refused, None)
    as_asked = verdict_on_8_bits(two, update(two), {"update_encoding": "float32"}, "float32")
    assert as_asked.drop_code is None
    for unknown in ("int4", "top_k", "", None, 8):
        found = verdict_on_8_bits(two, good, {"update_encoding": unknown})
        assert (found.drop_code, found.contribution) == (refused, None)


def test_a_digest_of_what_was_read_is_not_a_digest_of_what_came(two: Consortium) -> None:
    found = verdict_on_8_bits(two, in_8_bits(two))
    assert found.vector is not None
    read = hashlib.sha256(vector_bytes(found.vector)).hexdigest()
    again = verdict_on_8_bits(two, in_8_bits(two), {"update_sha256": read})
    assert again.drop_code is DropCode.CONTRIBUTION_INVALID


def test_a_scale_that_makes_a_model_infinite_is_refused(two: Consortium) -> None:
    scales = np.full(len(two.spec.entries), 3.4e38, "<f4").tobytes()
    levels = np.full(two.spec.num_elements, 127, np.int8).tobytes()
    origin = np.full(two.spec.num_elements, 3e38, np.float32)
    sent = scales + levels
    asked = two.manifest(update_encoding="int8")
    signed = two.site_key("site-1").sign(
        Contribution.payload_type(),
        statement(two, sent, update_encoding="int8")
        | {"manifest_sha256": asked.sign(two.server_key).payload_digest},
    )
    digest = asked.sign(two.server_key).payload_digest
    found = verify_contribution(signed, sent, asked, digest, two.line("site-1"), origin=origin)
    assert (found.drop_code, found.vector) == (DropCode.NON_FINITE, None)
