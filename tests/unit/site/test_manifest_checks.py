"""A hospital against a hostile server: each manifest that it refuses, with the code that the server is told."""

import json
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.tensors import TensorSpec, vector_bytes, vector_digest
from fedhealth.evidence.signing import SigningKey
from fedhealth.evidence.statements import CohortMember, manifest_tensors
from fedhealth.site.manifest_checks import (
    ManifestRefusedError,
    accept_model,
    drop_code_of,
    verify_manifest,
)

from ..conftest import NUM_ROUNDS, Consortium, study_content  # noqa: TID252 - tests are no installed package

HEX = "ab" * 32


@pytest.fixture
def two(new_consortium: Any) -> Consortium:
    made: Consortium = new_consortium("site-1", "site-2")
    return made


def refused(two: Consortium, header: Any) -> DropCode | None:
    with pytest.raises(ManifestRefusedError) as error:
        verify_manifest(header, two.pinned("site-1"))
    return drop_code_of(error.value)


def test_the_servers_own_manifest_is_accepted(two: Consortium) -> None:
    manifest, digest = verify_manifest(two.header(), two.pinned("site-1"))
    assert manifest == two.manifest()
    assert digest == two.signed().payload_digest


@pytest.mark.parametrize(
    "header",
    [None, 1, "x", [], {}, {"payload": "x"}, {"payload_type": [], "payload": {"a": []}}],
)
def test_what_is_no_envelope_is_refused(two: Consortium, header: Any) -> None:
    assert refused(two, header) is DropCode.MANIFEST_INVALID


def test_a_manifest_of_another_key_is_refused(two: Consortium) -> None:
    for key in (SigningKey.generate(), two.site_key("site-1"), two.site_key("site-2")):
        assert refused(two, two.manifest().sign(key).model_dump()) is DropCode.MANIFEST_INVALID


def test_a_forger_cannot_name_his_own_key(two: Consortium) -> None:
    forged = two.manifest().sign(SigningKey.generate()).model_dump()
    forged["key_id"] = two.server_key.public.key_id
    assert refused(two, forged) is DropCode.MANIFEST_INVALID


def test_another_statement_of_the_server_is_refused(two: Consortium) -> None:
    invitation = json.loads(two.server.invitation.read_text())
    assert refused(two, invitation) is DropCode.MANIFEST_INVALID


def test_an_altered_manifest_is_refused(two: Consortium) -> None:
    header = two.header()
    for old, new in (('"attempt":1', '"attempt":2'), ('"min_cohort":2', '"min_cohort":3')):
        assert old in header["payload"]
        altered = header | {"payload": header["payload"].replace(old, new)}
        assert refused(two, altered) is DropCode.MANIFEST_INVALID


def test_a_manifest_with_a_surplus_field_is_refused(two: Consortium) -> None:
    envelope = two.server_key.sign(
        two.manifest().payload_type(), two.manifest().model_dump(mode="json") | {"run": "evil"}
    )
    assert refused(two, envelope.model_dump()) is DropCode.MANIFEST_INVALID


def with_cohort(*members: tuple[str, str]) -> dict[str, Any]:
    return {"cohort": tuple(CohortMember(site_id=s, key_id=k) for s, k in members)}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"study_id": "another"}, DropCode.STUDY_MISMATCH),
        ({"study_sha256": HEX}, DropCode.STUDY_MISMATCH),
        ({"run_name": "another"}, DropCode.STUDY_MISMATCH),
        ({"round_number": NUM_ROUNDS + 1}, DropCode.STUDY_MISMATCH),
        ({"round_number": NUM_ROUNDS + 2, "kind": "evaluate"}, DropCode.STUDY_MISMATCH),
        ({"strategy_config": {"num_patients": 1}}, DropCode.MANIFEST_INVALID),
        ({"update_encoding": "int8"}, DropCode.MANIFEST_INVALID),
        (with_cohort(("site-8", HEX), ("site-9", "cd" * 32)), DropCode.COHORT_REFUSED),
        (with_cohort(("site-1", HEX), ("site-9", "cd" * 32)), DropCode.COHORT_REFUSED),
    ],
)
def test_a_manifest_that_this_site_did_not_agree_to_is_refused(
    two: Consortium, changes: dict[str, Any], code: DropCode
) -> None:
    assert refused(two, two.header(**changes)) is code


def test_the_closing_trip_is_one_round_after_the_last(two: Consortium) -> None:
    verify_manifest(two.header(round_number=NUM_ROUNDS), two.pinned("site-1"))
    last = two.header(round_number=NUM_ROUNDS + 1, kind="evaluate")
    verify_manifest(last, two.pinned("site-1"))


def test_a_cohort_below_the_studys_floor_is_refused(two: Consortium) -> None:
    own = two.line("site-1").entry
    alone = with_cohort((own.site_id, own.key_id))
    assert refused(two, two.header(**alone)) is DropCode.COHORT_REFUSED


def test_the_servers_own_floor_cannot_undercut_the_studys(new_consortium: Any) -> None:
    three: Consortium = new_consortium(
        "site-1", "site-2", "site-3", content=study_content(min_cohort=3)
    )
    assert refused(three, three.header(min_cohort=2)) is DropCode.COHORT_REFUSED
    verify_manifest(three.header(min_cohort=3), three.pinned("site-1"))


def test_a_cohort_cannot_be_padded_with_this_sites_own_key(two: Consortium) -> None:
    own = two.line("site-1").entry
    statement = two.manifest().model_dump(mode="json")
    statement["cohort"] = [
        {"site_id": "site-1", "key_id": own.key_id},
        {"site_id": "site-9", "key_id": own.key_id},
    ]
    envelope = two.server_key.sign(two.manifest().payload_type(), statement)
    assert refused(two, envelope.model_dump()) is DropCode.MANIFEST_INVALID


def refused_model(two: Consortium, payload: bytes | bytearray, **changes: Any) -> DropCode | None:
    with pytest.raises(ManifestRefusedError) as error:
        accept_model(two.manifest(**changes), payload, two.spec)
    return drop_code_of(error.value)


def test_the_signed_model_is_accepted(two: Consortium) -> None:
    vector = accept_model(two.manifest(), two.payload(), two.spec)
    np.testing.assert_array_equal(vector, two.model())


def test_a_model_of_another_spec_is_refused_before_it_is_looked_at(two: Consortium) -> None:
    tensors = two.spec.unflatten(two.model())
    renamed = TensorSpec.of({name + "x": tensor for name, tensor in tensors.items()})
    reshaped = TensorSpec.of({name: tensor.ravel() for name, tensor in tensors.items()})
    reordered = TensorSpec.of(dict(reversed(tensors.items())))
    huge = TensorSpec.of({"a": np.broadcast_to(np.float32(0), (2**20, 2**19))})
    for spec in (renamed, reshaped, reordered, huge):
        code = refused_model(two, two.payload(), tensors=manifest_tensors(spec))
        assert code is DropCode.WRONG_SPEC


def test_a_model_of_another_size_is_refused(two: Consortium) -> None:
    for payload in (b"", two.payload()[:-4], two.payload() + b"\0\0\0\0", two.payload() + b"\0"):
        assert refused_model(two, payload) is DropCode.WRONG_SPEC


def test_a_model_that_was_not_signed_is_refused(two: Consortium) -> None:
    payload = two.payload()
    payload[7] ^= 1
    assert refused_model(two, payload) is DropCode.MANIFEST_INVALID


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_signed_model_that_is_not_finite_is_refused(two: Consortium, value: float) -> None:
    model = two.model()
    model[3] = value
    code = refused_model(two, bytes(vector_bytes(model)), model_sha256=vector_digest(model))
    assert code is DropCode.NON_FINITE


@pytest.fixture
def private(new_consortium: Any) -> Consortium:
    content = study_content() | {
        "privacy": {"noise_multiplier": 1.0, "clipping_norm": 1.0},
        "release": {"metrics": []},
    }
    content["training"]["batch_size"] = 2
    made: Consortium = new_consortium("site-1", "site-2", content=content)
    return made


def test_the_studys_own_privacy_is_accepted(private: Consortium) -> None:
    manifest, _ = verify_manifest(private.header(), private.pinned("site-1"))
    assert manifest.privacy is not None


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {"noise_multiplier": 0.5},
        {"clipping_norm": 2.0},
        {"noise_multiplier": None, "target_epsilon": 8.0},
    ],
)
def test_a_server_cannot_propose_other_privacy_than_the_study_that_was_joined(
    private: Consortium, changes: dict[str, Any] | None
) -> None:
    own = private.manifest().privacy
    assert own is not None
    other = None if changes is None else own.model_copy(update=changes)
    assert refused(private, private.header(privacy=other)) is DropCode.PRIVACY_POLICY


@pytest.mark.parametrize("clip", [0.0, -1.0, True])
def test_a_clipping_norm_that_is_no_positive_number_is_refused(two: Consortium, clip: Any) -> None:
    header = two.header(strategy_config={"clipping_norm": clip})
    assert refused(two, header) is DropCode.PRIVACY_POLICY


def test_a_clipping_norm_above_this_sites_limit_is_refused(two: Consortium) -> None:
    path = two.sites["site-1"].config_path
    path.write_text(path.read_text() + "privacy: {max_clipping_norm: 2}\n")
    verify_manifest(two.header(strategy_config={"clipping_norm": 2.0}), two.pinned("site-1"))
    header = two.header(strategy_config={"clipping_norm": 2.1})
    assert refused(two, header) is DropCode.PRIVACY_POLICY


def test_a_pull_that_makes_the_site_with_the_most_steps_stand_out_in_a_sum_is_refused(
    two: Consortium,
) -> None:
    rate = two.server.require()[0].training.optimizer.learning_rate
    verify_manifest(two.header(strategy_config={"proximal_mu": 1 / rate}), two.pinned("site-1"))
    header = two.header(strategy_config={"proximal_mu": 1.01 / rate})
    assert refused(two, header) is DropCode.MANIFEST_INVALID
