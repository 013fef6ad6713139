"""One round at a hospital. Read this first: it is the list of its steps.

Nothing here knows about sockets or Flower; `worker.py` calls it and `door.py` sends what it returns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.local_training import LocalSession, Metrics, RoundTask, Vector
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Contribution, Manifest
from fedhealth.gate.gate import ReleaseTerms, release_code, release_metrics, release_update
from fedhealth.gate.outbound import Outbound, OutboundCode, OutboundMetrics, OutboundUpdate
from fedhealth.site.home import Pinned
from fedhealth.site.manifest_checks import AnsweredRounds, accept_model, verify_manifest
from fedhealth.site.sessions import Sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAnswer:
    """What goes to the door: something the gate made, and the site's signature over its digest."""

    outbound: Outbound
    contribution: Envelope = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRequest:
    """What came through the socket: a signed manifest (not yet believed) and the global vector."""

    header: Mapping[str, object]
    payload: bytearray = field(repr=False)
    is_cancelled: Callable[[], bool]


def local_round(
    request: RoundRequest, pinned: Pinned, sessions: Sessions, answered: AnsweredRounds
) -> SignedAnswer:
    """Verify, evaluate the incoming model, train, gate, sign.

    Raises:
        ManifestRefusedError: the manifest or the model is not what this site agreed to.
        GateRefusedError: the result may not leave.
        SiteDataError, TrainingError: the cohort cannot be trained on.
        CancelledTrainingError: the deadline passed.
    """
    manifest, digest = verify_manifest(request.header, pinned)
    answered.check(manifest)
    session, spec = sessions.open(manifest.run_name)
    vector = accept_model(manifest, request.payload, spec)
    answered.remember(manifest, digest)
    sessions.keep_global_model(manifest, vector)
    terms = ReleaseTerms(
        spec=manifest.spec,
        metrics=pinned.study.release.metrics,
        metric_digits=pinned.study.release.metric_digits,
    )
    evaluated = session.evaluate(vector)
    if manifest.kind == "evaluate":
        return sign_answer(release_metrics(evaluated, terms=terms), manifest, digest, pinned)
    released = _train(session, vector, manifest, request.is_cancelled, evaluated, terms)
    session.commit(manifest.round_number)
    return sign_answer(released, manifest, digest, pinned)


def _train(  # noqa: PLR0917 - the facts of one round
    session: LocalSession,
    vector: Vector,
    manifest: Manifest,
    is_cancelled: Callable[[], bool],
    evaluated: Metrics,
    terms: ReleaseTerms,
) -> OutboundUpdate:
    task = RoundTask(
        run_name=manifest.run_name,
        round_number=manifest.round_number,
        attempt=manifest.attempt,
        strategy_config=manifest.strategy_config,
        is_cancelled=is_cancelled,
    )
    update = session.train(vector, task)
    return release_update(
        update.tensors, train_metrics=update.metrics, evaluate_metrics=evaluated, terms=terms
    )


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


def sign_answer(
    outbound: Outbound, manifest: Manifest, manifest_sha256: str, pinned: Pinned
) -> SignedAnswer:
    """The site's statement about what it sends."""
    contribution = Contribution(
        study_id=pinned.study.id,
        site_id=pinned.admission.site.site_id,
        manifest_sha256=manifest_sha256,
        run_name=manifest.run_name,
        round_number=manifest.round_number,
        attempt=manifest.attempt,
        kind=manifest.kind,
        **_said_about(outbound),
    )
    return SignedAnswer(outbound=outbound, contribution=contribution.sign(pinned.signing_key))


def _said_about(outbound: Outbound) -> dict[str, Any]:
    """The part of a contribution that depends on what the gate released."""
    if isinstance(outbound, OutboundUpdate):
        return {
            "update_sha256": outbound.digest,
            "num_elements": outbound.num_elements,
            "train_metrics": dict(outbound.train_metrics),
            "evaluate_metrics": dict(outbound.evaluate_metrics),
        }
    if isinstance(outbound, OutboundMetrics):
        return {"num_elements": 0, "evaluate_metrics": dict(outbound.evaluate_metrics)}
    if isinstance(outbound, OutboundCode):
        return {"num_elements": 0, "drop_code": outbound.code}
    raise PermissionError("this outbound type does not answer a manifest")
