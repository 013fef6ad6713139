"""One round at a hospital. Read this first: it is the list of its steps.

Nothing here knows about sockets or Flower; `worker.py` calls it and `door.py` sends what it returns.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedhealth.contracts.aggregation import CLIPPING_NORM
from fedhealth.contracts.blocks import ranges_of
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.local_training import (
    GivesPatientGradients,
    LocalSession,
    Metrics,
    RoundTask,
    Vector,
)
from fedhealth.contracts.update_encoding import UniformBits
from fedhealth.errors import TrainingError
from fedhealth.evidence.presence import frozen_tensors
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import (
    Contribution,
    Manifest,
    PrivacySpend,
    SignedShareCommitment,
    open_statement,
)
from fedhealth.gate.frozen import Frozen
from fedhealth.gate.gate import (
    ReleaseTerms,
    UpdateClip,
    clear_metrics,
    clear_update,
    noise_patient_sum,
    noise_update,
    release,
    release_again,
    release_code,
    release_masked,
)
from fedhealth.gate.outbound import (
    Cleared,
    ClearedSum,
    Outbound,
    OutboundCode,
    OutboundMasked,
    OutboundMetrics,
    OutboundUpdate,
)
from fedhealth.gate.rounding import Rounding
from fedhealth.privacy.accounting.metrics import noisy_means
from fedhealth.privacy.accounting.plan import SitePlan
from fedhealth.privacy.ledger.ledger import SealedAnswer
from fedhealth.privacy.randomness import Randomness
from fedhealth.site.account import Charge, SiteAccount
from fedhealth.site.answers import SignedAnswer
from fedhealth.site.home import Pinned
from fedhealth.site.manifest_checks import (
    accept_model,
    check_frozen,
    check_presence,
    envelope_of,
    verify_manifest,
)
from fedhealth.site.masking import RoundMask, SiteMasking
from fedhealth.site.sessions import Sessions

RoundingBits = Callable[[Manifest], UniformBits]
"""Randomness with which one round's update is rounded to 8 bits."""


def bits_from_os(_: Manifest) -> UniformBits:
    """Fresh bits for every round."""
    return Randomness.from_os().uniform_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRequest:
    """What came through the socket: a signed manifest (not yet believed) and the global vector."""

    header: Mapping[str, object]
    payload: bytearray = field(repr=False)
    is_cancelled: Callable[[], bool]


def local_round(  # noqa: PLR0917 - what a site keeps between rounds
    request: RoundRequest,
    pinned: Pinned,
    sessions: Sessions,
    account: SiteAccount,
    masking: SiteMasking,
    rounding_bits: RoundingBits = bits_from_os,
) -> SignedAnswer:
    """Verify, reserve the privacy cost, evaluate the incoming model, train, clip, gate, round or mask, sign, seal.

    An answer that was sealed for this very manifest comes back byte by byte, at no cost.

    Raises:
        ManifestRefusedError: the manifest or the model is not what this site agreed to.
        MaskingRefusedError: its masks are not; nothing was computed.
        PrivacyError: the site's policy, its budget or its ledger forbids it; nothing was computed.
        GateRefusedError: the result may not leave. What was reserved stays spent.
        SiteDataError, TrainingError: the cohort cannot be trained on.
        CancelledTrainingError: the deadline passed.
    """
    manifest, digest = verify_manifest(request.header, pinned)
    account.check_witness(manifest)
    sealed = account.sealed(digest)
    if sealed is not None:
        return answer_again(sealed, pinned, digest)
    session, spec = sessions.open(manifest.run_name)
    vector = accept_model(manifest, request.payload, spec)
    check_frozen(manifest, sessions.frozen_sha256(manifest.run_name))
    is_training = manifest.kind == "train"
    check_presence(
        manifest,
        pinned,
        sessions.blocks(manifest.run_name) if is_training else (),
        summed=sessions.summed_modalities(manifest.run_name) if is_training else (),
    )
    mask = masking.prepare(manifest, envelope_of(request.header))
    charge = account.reserve(manifest, digest, has_own_split=sessions.has_own_split)
    sessions.keep_global_model(manifest, vector)
    terms = ReleaseTerms(
        spec=manifest.spec,
        metrics=charge.metrics,
        metric_digits=pinned.study.release.metric_digits,
        mechanism=charge.mechanism,
        clip=clip_wish(manifest, vector),
        frozen=frozen_here(manifest, vector, pinned.admission.site.site_id),
        is_masked=pinned.study.secure_aggregation is not None,
        rounding=rounding_here(manifest, vector, rounding_bits),
    )
    evaluated = incoming_metrics(session, vector, charge, account.plan)
    noise = None if mask is None else mask.noise
    cleared: Cleared | ClearedSum
    if manifest.kind == "evaluate":
        cleared = clear_metrics(evaluated, terms=terms)
    elif noise is not None and noise.plan.unit == "patient":
        cleared = noise_patient_sum(_gradients(session, vector, request.is_cancelled), noise)
    else:
        cleared = _train(session, vector, manifest, request.is_cancelled, evaluated, terms)
        session.commit(manifest.round_number)
        cleared = cleared if noise is None else noise_update(cleared, vector, noise)
    answer = sign_answer(
        _release(cleared, mask, vector),
        manifest,
        digest,
        pinned,
        charge.spend,
        None if mask is None else mask.commitment,
    )
    account.seal(digest, answer.contribution, answer.outbound.payload)
    return replace(answer, sealed_for=digest)


def incoming_metrics(
    session: LocalSession, vector: Vector, charge: Charge, plan: SitePlan | None
) -> Metrics:
    """Validation metrics of the incoming model; under patient-level privacy noised means, as charged."""
    if plan is None:
        return session.evaluate(vector)
    if not charge.metrics:
        return {}
    return noisy_means(
        session.patient_metrics(vector),
        names=charge.metrics,
        plan=plan,
        randomness=Randomness.from_os(),
    )


def _train(  # noqa: PLR0917 - the facts of one round
    session: LocalSession,
    vector: Vector,
    manifest: Manifest,
    is_cancelled: Callable[[], bool],
    evaluated: Metrics,
    terms: ReleaseTerms,
) -> Cleared:
    task = RoundTask(
        run_name=manifest.run_name,
        round_number=manifest.round_number,
        attempt=manifest.attempt,
        strategy_config=training_settings(manifest),
        is_cancelled=is_cancelled,
        mechanism=terms.mechanism,
        frozen=frozenset() if terms.frozen is None else terms.frozen.names,
    )
    update = session.train(vector, task)
    return clear_update(
        update.tensors,
        train_metrics=update.metrics,
        evaluate_metrics=evaluated,
        terms=terms,
        carried_out=update.mechanism,
        generator=update.generator,
    )


def _gradients(
    session: LocalSession, vector: Vector, is_cancelled: Callable[[], bool]
) -> Iterator[Vector]:
    """One global step a round: each patient's gradient at the incoming model."""
    if not isinstance(session, GivesPatientGradients):
        raise TrainingError(
            "FH-TRAIN-010",
            "the study's training method cannot give each patient's gradient.",
            why="Distributed noise of unit patient covers sums of clipped gradients only.",
            fix="Use training method supervised, or distributed_privacy of unit site.",
        )
    return session.patient_gradients(vector, is_cancelled)


def _release(
    cleared: Cleared | ClearedSum, mask: RoundMask | None, origin: Vector
) -> OutboundUpdate | OutboundMetrics | OutboundMasked:
    """Under the round's mask; as it is only where nothing is masked."""
    if mask is not None:
        return release_masked(
            cleared, mask=lambda given: mask.mask(given, origin), num_bytes=mask.num_bytes
        )
    if isinstance(cleared, ClearedSum):  # not reachable: noise comes with a mask
        raise PermissionError("a noised sum leaves under a mask only")
    return release(cleared)


def training_settings(manifest: Manifest) -> dict[str, float | int | bool]:
    """What of the strategy's wishes local training gets; clipping the whole update is the gate's."""
    return {k: v for k, v in manifest.strategy_config.items() if k != CLIPPING_NORM}


def clip_wish(manifest: Manifest, vector: Vector) -> UpdateClip | None:
    """Site-level privacy: how far the whole update may move (McMahan et al. 2018, algorithm 1)."""
    wish = manifest.strategy_config.get(CLIPPING_NORM)
    return None if wish is None else UpdateClip(origin=vector, norm=float(wish))


def rounding_here(manifest: Manifest, vector: Vector, bits: RoundingBits) -> Rounding | None:
    """How the update is rounded; None where it leaves in float32 or under masks."""
    if manifest.update_encoding == "float32":
        return None
    return Rounding(origin=vector, bits=bits(manifest))


def frozen_here(manifest: Manifest, vector: Vector, site_id: str) -> Frozen | None:
    """What this site gives back as it came; None where it trains every tensor."""
    names = frozen_tensors(manifest, site_id)
    if not names:
        return None
    return Frozen(names=names, origin=vector, ranges=tuple(ranges_of(manifest.spec, names)))


def answer_again(sealed: SealedAnswer, pinned: Pinned, manifest_sha256: str) -> SignedAnswer:
    """The sealed answer as it was: no new cost, since nothing new is said.

    Raises:
        GateRefusedError, IdentityError, EvidenceError: the stored bytes are not what this site signed.
    """
    envelope = Envelope.from_bytes(sealed.header)
    said = open_statement(Contribution, envelope, pinned.signing_key.public)
    outbound = release_again(
        sealed.payload,
        said.update_sha256,
        said.train_metrics,
        said.evaluate_metrics,
        num_words=said.num_elements if said.masked is not None else None,
        num_rounded=said.num_elements if said.update_encoding == "int8" else None,
    )
    return SignedAnswer(outbound=outbound, contribution=envelope, sealed_for=manifest_sha256)


def refuse_round(
    code: DropCode, header: Mapping[str, object], pinned: Pinned
) -> SignedAnswer | None:
    """A signed code for a manifest that verifies; None when there is no manifest to sign for."""
    from fedhealth.site.manifest_checks import ManifestRefusedError

    try:
        manifest, digest = verify_manifest(header, pinned)
    except ManifestRefusedError:
        return None
    return sign_answer(release_code(code), manifest, digest, pinned)


def sign_answer(  # noqa: PLR0917 - the facts of one answer
    outbound: Outbound,
    manifest: Manifest,
    manifest_sha256: str,
    pinned: Pinned,
    spend: PrivacySpend | None = None,
    commitment: Envelope | None = None,
) -> SignedAnswer:
    """The site's statement about what it sends, and what that cost its patients.

    `commitment` goes with a masked vector: what the other sites are shown of it.
    """
    contribution = Contribution(
        study_id=pinned.study.id,
        site_id=pinned.admission.site.site_id,
        manifest_sha256=manifest_sha256,
        run_name=manifest.run_name,
        round_number=manifest.round_number,
        attempt=manifest.attempt,
        kind=manifest.kind,
        privacy=spend,
        masked=None if commitment is None else SignedShareCommitment.of(commitment),
        **_said_about(outbound),
    )
    return SignedAnswer(outbound=outbound, contribution=contribution.sign(pinned.signing_key))


def _said_about(outbound: Outbound) -> dict[str, Any]:
    """The part of a contribution that depends on what the gate released."""
    if isinstance(outbound, OutboundUpdate):
        return {
            "update_sha256": outbound.digest,
            "num_elements": outbound.num_elements,
            "update_encoding": outbound.encoding,
            "train_metrics": dict(outbound.train_metrics),
            "evaluate_metrics": dict(outbound.evaluate_metrics),
        }
    if isinstance(outbound, OutboundMasked):
        return {"update_sha256": outbound.digest, "num_elements": outbound.num_words}
    if isinstance(outbound, OutboundMetrics):
        return {"num_elements": 0, "evaluate_metrics": dict(outbound.evaluate_metrics)}
    if isinstance(outbound, OutboundCode):
        return {"num_elements": 0, "drop_code": outbound.code}
    raise PermissionError("this outbound type does not answer a manifest")
