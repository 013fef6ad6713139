"""Signed statements: the smallest change is refused, and no field takes free text."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import EvidenceError, IdentityError
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import (
    Admission,
    Contribution,
    Invitation,
    JoinRequest,
    Manifest,
    Statement,
    open_statement,
    parse_statement,
)

KEY = SigningKey.generate()
HEX = "ab" * 32
MANIFEST: dict[str, Any] = {
    "study_id": "study-1",
    "study_sha256": HEX,
    "run_name": "main",
    "flower_run_id": "18446744073709551615",
    "round_number": 1,
    "attempt": 1,
    "kind": "train",
    "model_sha256": HEX,
    "tensors": [
        {"name": "a", "shape": [2, 3], "offset": 0, "dtype": "float32"},
        {"name": "b", "shape": [], "offset": 6, "dtype": "float32"},
        {"name": "c", "shape": [4], "offset": 7, "dtype": "float32"},
    ],
    "cohort": [{"site_id": "site-1", "key_id": HEX}, {"site_id": "site-2", "key_id": "cd" * 32}],
    "min_cohort": 2,
    "strategy_config": {"proximal_mu": 0.1},
    "deadline_s": 60.0,
    "opened_at": "2026-01-01T00:00:00.000Z",
}
CONTRIBUTION: dict[str, Any] = {
    "study_id": "study-1",
    "site_id": "site-1",
    "manifest_sha256": HEX,
    "run_name": "main",
    "round_number": 1,
    "attempt": 1,
    "kind": "train",
    "update_sha256": HEX,
    "num_elements": 11,
    "train_metrics": {"train_loss": 0.5},
    "evaluate_metrics": {"auc": 0.7},
}
ENVELOPE = Manifest.model_validate(MANIFEST).sign(KEY)
BYTES = ENVELOPE.to_bytes()


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(MANIFEST | changes)


def contribution(**changes: Any) -> Contribution:
    return Contribution.model_validate(CONTRIBUTION | changes)


def test_a_signed_statement_reads_back_the_same() -> None:
    assert open_statement(Manifest, ENVELOPE, KEY.public) == manifest()
    signed = contribution().sign(KEY)
    assert open_statement(Contribution, signed, KEY.public) == contribution()


@given(st.integers(0, len(BYTES) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_any_flipped_byte_is_refused(position: int, flip: int) -> None:
    """In payload, type, key and signature alike; a byte that base64 ignores changes nothing that is read."""
    changed = bytearray(BYTES)
    changed[position] ^= flip
    try:
        envelope = Envelope.from_bytes(bytes(changed))
        opened = open_statement(Manifest, envelope, KEY.public)
    except (EvidenceError, IdentityError):
        return
    assert opened == manifest()
    assert envelope.payload == ENVELOPE.payload


def test_every_bit_of_the_payload_is_signed() -> None:
    payload = ENVELOPE.payload
    for position in range(0, len(payload), 7):
        other = chr(ord(payload[position]) ^ 1)
        changed = ENVELOPE.model_copy(
            update={"payload": payload[:position] + other + payload[position + 1 :]}
        )
        with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
            open_statement(Manifest, changed, KEY.public)


def test_a_contribution_does_not_pass_for_a_manifest() -> None:
    with pytest.raises(IdentityError, match="FH-IDENTITY-003"):
        open_statement(Manifest, contribution().sign(KEY), KEY.public)


def test_payload_types_differ() -> None:
    kinds = [Invitation, JoinRequest, Admission, Manifest, Contribution]
    assert len({kind.payload_type() for kind in kinds}) == len(kinds)


def test_a_signed_statement_of_another_schema_is_refused() -> None:
    forged = KEY.sign(Manifest.payload_type(), {**MANIFEST, "note": "free text"})
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-002") as refused:
        open_statement(Manifest, forged, KEY.public)
    assert "free text" not in str(refused.value)


TEXT = "DOE^JOHN, born 1950"


def text_places(content: dict[str, Any]) -> list[tuple[str, Any]]:
    places: list[tuple[str, Any]] = [(name, TEXT) for name in content]
    places += [(name, {TEXT: 1.0}) for name, value in content.items() if isinstance(value, dict)]
    places += [
        (name, [{**value[0], key: TEXT}])
        for name, value in content.items()
        if isinstance(value, list)
        for key in value[0]
    ]
    return [*places, ("note", TEXT), ("train_metrics", {"auc": TEXT}), ("tensors", TEXT)]


@pytest.mark.parametrize(("name", "value"), text_places(MANIFEST))
def test_no_field_of_a_manifest_takes_free_text(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"validation error|names repeat|gaps"):
        manifest(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [*text_places(CONTRIBUTION), ("drop_code", TEXT), ("update_sha256", TEXT)]
)
def test_no_field_of_a_contribution_takes_free_text(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="validation error"):
        contribution(**{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": []},
        {"tensors": [MANIFEST["tensors"][0], {**MANIFEST["tensors"][1], "offset": 5}]},
        {"tensors": [{**MANIFEST["tensors"][0], "offset": 1}]},
        {"tensors": [{**MANIFEST["tensors"][0], "shape": [0]}]},
        {"tensors": [{**MANIFEST["tensors"][0], "shape": [-1]}]},
        {"tensors": [{**MANIFEST["tensors"][0], "shape": [1] * 9}]},
        {"tensors": [{**MANIFEST["tensors"][0], "dtype": "float64"}]},
        {"tensors": [{**MANIFEST["tensors"][0], "name": "../../etc"}]},
        {"tensors": [MANIFEST["tensors"][0], {**MANIFEST["tensors"][0], "offset": 6}]},
        {"cohort": []},
        {"cohort": [MANIFEST["cohort"][0]] * 2},
        {"cohort": [MANIFEST["cohort"][0], {**MANIFEST["cohort"][0], "site_id": "site-9"}]},
        {"min_cohort": 1},
        {"round_number": 0},
        {"attempt": 0},
        {"kind": "code"},
        {"deadline_s": float("inf")},
        {"deadline_s": float("nan")},
        {"deadline_s": -1},
        {"strategy_config": {"x": float("nan")}},
        {"strategy_config": {"x": [1]}},
        {"strategy_config": {"x": None}},
        {"run_name": "../../etc"},
        {"study_id": "a/b"},
        {"flower_run_id": "-1"},
        {"opened_at": "now"},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        manifest(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"update_sha256": None},
        {"num_elements": 0},
        {"drop_code": "site_error"},
        {"kind": "evaluate"},
        {"drop_code": "site_error", "update_sha256": None},
        {"evaluate_metrics": {"auc": float("nan")}},
        {"evaluate_metrics": {"auc": float("inf")}},
    ],
)
def test_a_contribution_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        contribution(**changes)


@given(st.sampled_from(list(DropCode)))
def test_a_code_goes_without_an_update(code: DropCode) -> None:
    said = contribution(drop_code=code, update_sha256=None, num_elements=0)
    assert said.drop_code is code


@given(st.binary(max_size=200) | st.just(b"[" * 50_000) | st.just(b'{"a":' * 50_000))
def test_whatever_comes_as_a_payload_is_refused_with_a_code(payload: bytes) -> None:
    for kind in (Manifest, Contribution, Invitation, JoinRequest, Admission):
        with pytest.raises(EvidenceError, match="FH-EVIDENCE-002"):
            parse_statement(kind, payload)


def test_every_statement_is_closed_and_frozen() -> None:
    for kind in Statement.__subclasses__():
        assert kind.model_config["extra"] == "forbid"
        assert kind.model_config["frozen"]
        assert not kind.model_config.get("allow_inf_nan", True)
