"""Statements fit their envelopes at the largest size that is promised: a hundred sites with long names."""

from typing import Any

import pytest

from fedhealth.errors import EvidenceError
from fedhealth.evidence.signing import MAX_ENVELOPE_BYTES, Envelope, SigningKey
from fedhealth.evidence.statements import CohortMember, open_statement, parse_statement
from fedhealth.secagg.mask_keys import RunKey
from fedhealth.secagg.statements import Agreement, MaskKey, ShareCommitment, UnmaskRequest

DIGEST = "f" * 64
KEY = SigningKey.generate()


def largest_request(num: int) -> UnmaskRequest:
    """Half of the sites dropped out; every survivor committed and agreed; ids are as long as they may be."""
    names = tuple(f"site-{index:035d}" for index in range(num))
    survivors = names[: num // 2 + 1]
    commitments = tuple(
        ShareCommitment(
            manifest_sha256=DIGEST, site_id=name, vector_sha256=DIGEST, share_sha256=(DIGEST,) * num
        ).sign(KEY)
        for name in names
    )
    agreements = tuple(
        Agreement(manifest_sha256=DIGEST, site_id=name, survivors=names).sign(KEY) for name in names
    )
    return UnmaskRequest(
        manifest_sha256=DIGEST,
        step="unmask",
        survivors=survivors,
        dropped=names[len(survivors) :],
        commitments=commitments,  # of all, to be on the safe side
        agreements=agreements,
    )


def test_a_request_to_a_hundred_sites_fits_an_envelope() -> None:
    request = largest_request(100)
    raw = request.sign(KEY).to_bytes()
    assert len(raw) < MAX_ENVELOPE_BYTES
    assert open_statement(UnmaskRequest, Envelope.from_bytes(raw), KEY.public) == request


def test_the_keys_of_a_hundred_sites_fit_a_manifest(make_consortium: Any) -> None:
    consortium = make_consortium(3)
    names = [f"site-{index:035d}" for index in range(100)]
    members = [
        CohortMember(
            site_id=name,
            key_id=f"{index:064x}",
            mask_key=MaskKey(
                study_id="study",
                study_sha256=DIGEST,
                run_name="main",
                site_id=name,
                public_key=RunKey.generate().public,
            ).sign(KEY),
        )
        for index, name in enumerate(names)
    ]
    manifest = consortium.manifest(members=members)
    assert len(manifest.sign(KEY).to_bytes()) < MAX_ENVELOPE_BYTES // 8


@pytest.mark.parametrize(
    "change",
    [
        {"step": "both"},
        {"manifest_sha256": "f" * 63},
        {"survivors": ["Site"]},
        {"survivors": [f"site-{i}" for i in range(1001)]},
        {"more": 1},
    ],
)
def test_a_request_out_of_its_schema_is_not_read(change: dict[str, Any]) -> None:
    said = largest_request(3).model_dump(mode="json") | change
    envelope = KEY.sign(UnmaskRequest.payload_type(), said)
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-002"):
        parse_statement(UnmaskRequest, envelope.payload)
