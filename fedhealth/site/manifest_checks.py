"""What a site checks before it does anything that a manifest asks for. Anything unexpected is refused."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.config.study import LONGEST_PULL
from fedhealth.contracts.aggregation import STRATEGY_CONFIG_ALLOWED
from fedhealth.contracts.blocks import ModalityBlock
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.tensors import TensorSpec, vector_digest, vector_from_bytes
from fedhealth.contracts.update_encoding import encoding_of
from fedhealth.errors import (
    EvidenceError,
    FedHealthError,
    GateRefusedError,
    IdentityError,
    PrivacyError,
)
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Manifest, RoundPrivacy, open_statement
from fedhealth.privacy.ledger.problems import REPLAY
from fedhealth.secagg.refusals import MaskingRefusedError
from fedhealth.site.home import Pinned

_PRIVACY_CODES: Final = {
    "FH-PRIVACY-02": DropCode.PRIVACY_POLICY,
    "FH-PRIVACY-03": DropCode.PRIVACY_BUDGET,
    "FH-PRIVACY-05": DropCode.TRAINING_FAILED,
    "FH-PRIVACY-06": DropCode.TRAINING_FAILED,
}
"""By the family of the error's code: policy, budget, and a model or method that cannot be trained privately."""


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
    _check_privacy(manifest, pinned)
    return manifest, envelope.payload_digest


def envelope_of(header: object) -> Envelope:
    """The envelope in a frame's header. Raises ManifestRefusedError when it is none."""
    try:
        return Envelope.model_validate(header)
    except ValueError:
        raise ManifestRefusedError(DropCode.MANIFEST_INVALID, "it is no signed statement") from None


def _check_round(manifest: Manifest, pinned: Pinned) -> None:
    """Only the rounds that the study plans: each one more would be one more look at the patients."""
    last = pinned.study.run(manifest.run_name).num_rounds
    is_planned = (
        manifest.round_number <= last
        if manifest.kind == "train"
        else manifest.round_number == last + 1
    )
    if not is_planned:
        raise ManifestRefusedError(DropCode.STUDY_MISMATCH, f"the run has {last} rounds")
    agreed = encoding_of(pinned.study.federation.update_bits)
    if manifest.kind == "train" and manifest.update_encoding != agreed:
        raise ManifestRefusedError(
            DropCode.MANIFEST_INVALID,
            f"it wants updates as {manifest.update_encoding}, not {agreed}",
        )
    if set(manifest.strategy_config) - STRATEGY_CONFIG_ALLOWED:
        raise ManifestRefusedError(
            DropCode.MANIFEST_INVALID, "it holds a setting that no strategy may give to a site"
        )
    optimizer = pinned.study.training.optimizer
    pull = optimizer.learning_rate * manifest.strategy_config.get("proximal_mu", 0.0)
    if optimizer.name == "sgd" and pull > LONGEST_PULL:
        # Each step would multiply what the last one did: in a masked sum the site with the most steps, which is
        # the largest one, would be all that is left.
        raise ManifestRefusedError(
            DropCode.MANIFEST_INVALID,
            "its proximal term throws a step further than it pulls it back",
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


def _check_privacy(manifest: Manifest, pinned: Pinned) -> None:
    """What the server proposes is what this site pinned, and inside of what this site allows."""
    if manifest.privacy != RoundPrivacy.of(pinned.study):
        raise ManifestRefusedError(
            DropCode.PRIVACY_POLICY,
            "it proposes other privacy than the study that this site joined",
        )
    clip, most = manifest.strategy_config.get("clipping_norm"), pinned.config.privacy
    if clip is None:
        return
    if isinstance(clip, bool) or not math.isfinite(clip) or clip <= 0:
        raise ManifestRefusedError(
            DropCode.PRIVACY_POLICY, "its clipping norm is not a positive number"
        )
    if most.max_clipping_norm is not None and clip > most.max_clipping_norm:
        raise ManifestRefusedError(
            DropCode.PRIVACY_POLICY,
            f"its clipping norm {clip:g} is above this site's limit of {most.max_clipping_norm:g}",
        )


def check_presence(
    manifest: Manifest,
    pinned: Pinned,
    expected: Sequence[ModalityBlock],
    *,
    summed: tuple[str, ...] = (),
) -> None:
    """The blocks are those of the study's model, and this site has the modalities that it declared.

    Args:
        manifest: a verified manifest.
        pinned: what this site believes; its admission holds what it declared.
        expected: the blocks that this site derives from its own copy of the study; none in an evaluation.
        summed: modalities whose tensors are in a masked sum over all sites, derived likewise.

    Raises:
        ManifestRefusedError: other blocks, or other modalities than this site's.
    """
    if manifest.summed_modalities != summed:
        raise ManifestRefusedError(
            DropCode.PRESENCE_MISMATCH,
            "it names other modalities than those whose tensors are in the study's masked sums",
        )
    blocks = [(block.modality, block.tensors) for block in manifest.blocks]
    if blocks != [(block.modality, block.tensors) for block in expected]:
        raise ManifestRefusedError(
            DropCode.PRESENCE_MISMATCH,
            "it averages other tensors by modality than the study says",
        )
    own = pinned.admission.site
    said = next(m.modalities for m in manifest.cohort if m.site_id == own.site_id)
    if (expected or summed) and said != own.modalities:
        raise ManifestRefusedError(
            DropCode.PRESENCE_MISMATCH, "it gives this site other modalities than it declared"
        )


def check_frozen(manifest: Manifest, expected: str | None) -> None:
    """What nobody trains is the same here as at the server.

    Args:
        manifest: a verified manifest.
        expected: digest of this site's own frozen tensors, None without any.

    Raises:
        ManifestRefusedError: they differ, or one side has none.
    """
    if manifest.frozen_sha256 != expected:
        raise ManifestRefusedError(
            DropCode.FROZEN_MISMATCH,
            "the tensors that nobody trains are others at the server than here: another version of torch or another "
            "processor may have drawn them otherwise. Install the server's versions, or take the weights from a pinned "
            "file",
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


def drop_code_of(error: FedHealthError) -> DropCode | None:
    """The drop code that an error carries itself, or that its place in the privacy account gives it."""
    if isinstance(error, ManifestRefusedError | MaskingRefusedError):
        return error.drop_code
    if not isinstance(error, PrivacyError):
        return None
    if error.code == REPLAY:
        return DropCode.MANIFEST_REPLAYED
    if error.code.startswith("FH-LEDGER"):
        return DropCode.LEDGER_REFUSED
    return _PRIVACY_CODES.get(error.code[:-1])
