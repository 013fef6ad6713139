"""What a site checks before it does anything that a manifest asks for. Anything unexpected is refused."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.aggregation import STRATEGY_CONFIG_ALLOWED
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.tensors import TensorSpec, vector_digest, vector_from_bytes
from fedhealth.durable import read_json, write_json
from fedhealth.errors import EvidenceError, FedHealthError, GateRefusedError, IdentityError
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Manifest, open_statement
from fedhealth.site.home import Pinned


class ManifestRefusedError(GateRefusedError):
    """A manifest is refused; `drop_code` is what the server is told."""

    def __init__(self, drop_code: DropCode, what: str) -> None:
        super().__init__(
            "FH-ROUND-001",
            f"the manifest was refused: {what}.",
            why="The site trains only what it pinned when it joined.",
            fix="Ask the coordinator; nothing was sent but the code.",
        )
        self.drop_code = drop_code

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.drop_code, self.what))


def verify_manifest(header: object, pinned: Pinned) -> tuple[Manifest, str]:
    """Signature, study, run and cohort of a manifest; returns it with its SHA-256.

    Raises:
        ManifestRefusedError: with the code for the server.
    """
    try:
        envelope = Envelope.model_validate(header)
        manifest = open_statement(Manifest, envelope, pinned.server_key)
    except (IdentityError, EvidenceError, ValueError):
        raise ManifestRefusedError(
            DropCode.MANIFEST_INVALID, "it is not signed by the pinned server key"
        ) from None
    if manifest.study_id != pinned.study.id or manifest.study_sha256 != pinned.study_sha256:
        raise ManifestRefusedError(DropCode.STUDY_MISMATCH, "it is for another study")
    if manifest.run_name not in {run.name for run in pinned.study.runs}:
        raise ManifestRefusedError(DropCode.STUDY_MISMATCH, "the study has no such run")
    _check_round(manifest, pinned)
    _check_cohort(manifest, pinned)
    return manifest, envelope.payload_digest


def _check_round(manifest: Manifest, pinned: Pinned) -> None:
    """Only the rounds that the study plans: each one more would be one more look at the patients."""
    last = pinned.study.run(manifest.run_name).num_rounds
    if manifest.round_number > (last if manifest.kind == "train" else last + 1):
        raise ManifestRefusedError(DropCode.STUDY_MISMATCH, f"the run has {last} rounds")
    if set(manifest.strategy_config) - STRATEGY_CONFIG_ALLOWED:
        raise ManifestRefusedError(
            DropCode.MANIFEST_INVALID, "it holds a setting that no strategy may give to a site"
        )


def _check_cohort(manifest: Manifest, pinned: Pinned) -> None:
    own = pinned.admission.site
    member = {m.site_id: m.key_id for m in manifest.cohort}.get(own.site_id)
    if member != own.key_id:
        raise ManifestRefusedError(DropCode.COHORT_REFUSED, "this site's key is not in the cohort")
    floor = pinned.study.federation.min_cohort
    if len(manifest.cohort) < floor or manifest.min_cohort < floor:
        raise ManifestRefusedError(
            DropCode.COHORT_REFUSED, f"the cohort is smaller than the study's minimum of {floor}"
        )


def accept_model(
    manifest: Manifest, payload: bytes | bytearray, expected: TensorSpec
) -> NDArray[np.float32]:
    """The incoming vector, after its spec, digest and values were checked.

    Args:
        manifest: a verified manifest.
        payload: the bytes that came with it.
        expected: the spec that this site derives from its own copy of the study.

    Raises:
        ManifestRefusedError: another spec, another digest, or a value that is not finite.
    """
    if manifest.spec != expected:
        raise ManifestRefusedError(
            DropCode.WRONG_SPEC, "its tensors are not those of the study's model"
        )
    if len(payload) != expected.num_bytes:
        raise ManifestRefusedError(
            DropCode.WRONG_SPEC, "the model has another size than its tensors"
        )
    vector = vector_from_bytes(payload)
    if vector_digest(vector) != manifest.model_sha256:
        raise ManifestRefusedError(
            DropCode.MANIFEST_INVALID, "the model is not the one that was signed"
        )
    if not np.isfinite(vector).all():
        raise ManifestRefusedError(
            DropCode.NON_FINITE, "the model holds a value that is not finite"
        )
    return vector


class AnsweredRounds:
    """Which rounds this site has answered: (round, attempt) must grow, across restarts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, manifest: Manifest) -> None:
        """Refuse a round that was answered, or one before it.

        Raises:
            ManifestRefusedError: a replay.
        """
        last = read_json(self._path(manifest))
        seen = (last.get("round_number", 0), last.get("attempt", 0))
        if (manifest.round_number, manifest.attempt) <= seen:
            raise ManifestRefusedError(
                DropCode.MANIFEST_REPLAYED,
                f"round {manifest.round_number} attempt {manifest.attempt} is not after "
                f"round {seen[0]} attempt {seen[1]}, which this site answered",
            )

    def remember(self, manifest: Manifest, manifest_sha256: str) -> None:
        """Record durably that this manifest gets an answer, before it leaves."""
        write_json(
            self._path(manifest),
            {
                "round_number": manifest.round_number,
                "attempt": manifest.attempt,
                "manifest_sha256": manifest_sha256,
            },
        )

    def _path(self, manifest: Manifest) -> Path:
        return self._folder / manifest.run_name / "answered.json"


def drop_code_of(error: FedHealthError) -> DropCode | None:
    """The drop code that an error carries itself, if it does."""
    return error.drop_code if isinstance(error, ManifestRefusedError) else None
