"""What the server checks before it believes a reply. The mirror of `site/manifest_checks.py`."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.codes import SERVER_CODES, DropCode
from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.contracts.tensors import vector_from_bytes
from fedhealth.contracts.update_encoding import decode_change, encoded_size
from fedhealth.errors import AggregationError, EvidenceError, IdentityError
from fedhealth.evidence.signing import Envelope, VerifyKey
from fedhealth.evidence.statements import Contribution, Manifest, open_statement
from fedhealth.privacy.accounting.plan import SitePlan
from fedhealth.secagg.patient_account import SumTerms
from fedhealth.server.believed_spend import spend_is_believed
from fedhealth.server.roster import RosterLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`drop_code` None: the contribution counts. `vector` is then the update without masks, (n,) float32."""

    drop_code: DropCode | None
    contribution: Contribution | None
    vector: NDArray[np.float32] | None = field(repr=False, default=None)


def verify_contribution(
    envelope: Envelope,
    payload: bytes,
    manifest: Manifest,
    manifest_sha256: str,
    line: RosterLine,
    *,
    origin: NDArray[np.float32],
    plan: SitePlan | None = None,
    num_masked_words: int | None = None,
    sums: SumTerms | None = None,
) -> Verdict:
    """Signature by the enrolled key, this very manifest, the digest of the bytes, the spec, finite values.

    And the privacy that was planned: `plan` is what the study and the declared size of this site give; None
    for a study without patient-level privacy. `origin` is the model that went out. `num_masked_words` is set where the
    answer has to be masked, and `sums` where distributed noise is all that covers a patient.
    """
    try:
        key = VerifyKey.from_base64(line.entry.signing_key)
        said = open_statement(Contribution, envelope, key)
    except IdentityError:
        return Verdict(drop_code=DropCode.BAD_SIGNATURE, contribution=None)
    except EvidenceError:
        return Verdict(drop_code=DropCode.CONTRIBUTION_INVALID, contribution=None)
    if not _answers(said, manifest, manifest_sha256, line):
        return Verdict(drop_code=DropCode.CONTRIBUTION_INVALID, contribution=None)
    fault, vector = _fault(said, payload, manifest, num_masked_words), None
    if fault is None and manifest.kind == "train" and said.masked is None:
        fault, vector = _read(said, payload, manifest, origin)
    if not spend_is_believed(
        said,
        manifest,
        plan,
        declared_train_size=line.entry.train_size or 1,
        sums=sums,
    ):
        fault = fault or DropCode.CONTRIBUTION_INVALID
    return Verdict(drop_code=fault, contribution=said, vector=vector if fault is None else None)


def _fault(
    said: Contribution, payload: bytes, manifest: Manifest, num_masked_words: int | None
) -> DropCode | None:
    """What is wrong with a contribution that is the site's own; None when it counts."""
    if said.drop_code is not None:
        is_believed = said.drop_code not in SERVER_CODES and not payload
        return said.drop_code if is_believed else DropCode.CONTRIBUTION_INVALID
    if (said.masked is not None) != (num_masked_words is not None):
        return DropCode.CONTRIBUTION_INVALID
    if num_masked_words is not None:
        return _fault_of_masked(said, payload, num_masked_words)
    return _fault_of_plain(said, payload, manifest)


def _fault_of_masked(said: Contribution, payload: bytes, num_words: int) -> DropCode | None:
    """Its size and digest; whether vector and shares fit the round is for the sum to see."""
    is_whole = said.num_elements == num_words
    is_signed = hashlib.sha256(payload).hexdigest() == said.update_sha256
    return None if is_whole and is_signed else DropCode.CONTRIBUTION_INVALID


def _fault_of_plain(said: Contribution, payload: bytes, manifest: Manifest) -> DropCode | None:
    tells = said.train_metrics or said.evaluate_metrics
    if manifest.masking is not None and (tells or payload):
        return DropCode.CONTRIBUTION_INVALID  # in a masked study nothing comes in the clear
    if any(not _in_range(name, value) for name, value in _metrics(said)):
        return DropCode.CONTRIBUTION_INVALID
    if manifest.kind == "evaluate":
        return DropCode.CONTRIBUTION_INVALID if payload else None
    if hashlib.sha256(payload).hexdigest() != said.update_sha256:
        return DropCode.CONTRIBUTION_INVALID
    if said.update_encoding != manifest.update_encoding:
        return DropCode.CONTRIBUTION_INVALID
    is_whole = len(payload) == encoded_size(manifest.spec, said.update_encoding)
    return None if is_whole else DropCode.WRONG_SPEC


def _read(
    said: Contribution, payload: bytes, manifest: Manifest, origin: NDArray[np.float32]
) -> tuple[DropCode | None, NDArray[np.float32]]:
    """The update without masks, and what is wrong with it."""
    if said.update_encoding == "float32":
        vector = vector_from_bytes(payload)
    else:
        try:
            vector = decode_change(payload, origin, manifest.spec)
        except AggregationError:
            return DropCode.CONTRIBUTION_INVALID, origin
    return (None if np.isfinite(vector).all() else DropCode.NON_FINITE), vector


def _answers(
    said: Contribution, manifest: Manifest, manifest_sha256: str, line: RosterLine
) -> bool:
    return (
        said.manifest_sha256 == manifest_sha256
        and said.site_id == line.entry.site_id
        and said.study_id == manifest.study_id
        and (said.run_name, said.round_number, said.attempt, said.kind)
        == (manifest.run_name, manifest.round_number, manifest.attempt, manifest.kind)
    )


def _metrics(said: Contribution) -> list[tuple[str, float]]:
    return [*said.train_metrics.items(), *said.evaluate_metrics.items()]


def _in_range(name: str, value: float) -> bool:
    if name not in METRIC_RANGES:
        return False
    low, high = METRIC_RANGES[name]
    return low <= value <= high
