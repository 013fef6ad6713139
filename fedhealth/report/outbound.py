"""Everything that a hospital sends, field by field, and why it may leave: printed into the reference.

A test walks the schemas of the gate and of the signed statements, and fails on a field that is not listed here.
What is not a field (when a message comes, how long it is) is named in SECURITY.md; no epsilon covers it.
"""

from enum import StrEnum
from typing import Final


class Leaves(StrEnum):
    """Why a field may leave a hospital; `LEAVES` has the meaning of each."""

    PUBLIC = "public"
    CHARGED = "charged"
    CRYPTOGRAPHIC = "cryptographic"
    CODE = "code"


LEAVES: Final[dict[Leaves, str]] = {
    Leaves.PUBLIC: "follows from the study, the manifest or a declaration: the same without any one patient",
    Leaves.CHARGED: "computed from patients; the ledger holds an event for it before it leaves, bounded or not",
    Leaves.CRYPTOGRAPHIC: "a key, a signature, or a digest of something that is itself in this table",
    Leaves.CODE: "one of a closed list of codes; it can depend on the data, and no epsilon covers that",
}

_PAYLOAD = "the tensors that the manifest names: trained on patients, one training event a round"
_MASKED = (
    "the tensors that the manifest names, weight and metrics, under masks: uniform numbers without other hospitals' "
    "shares; then shares of those masks, sealed for each other hospital"
)
_METRICS = "released values on patients: a noised release, or an event without a bound"
_ROW = "statistics of test patients, rounded: an event without a bound. Only with release.benefit, without an epsilon"
_ECHO = "repeats the manifest"
_EVENT = "settings of the mechanism, from the study and the declared size"
_FORM: Final = "how the bytes of an update are written, from the study"

OUTBOUND: Final[dict[str, tuple[Leaves, str]]] = {
    "OutboundUpdate.kind": (Leaves.PUBLIC, "one of a closed list of kinds"),
    "OutboundUpdate.payload": (Leaves.CHARGED, _PAYLOAD),
    "OutboundUpdate.num_elements": (Leaves.PUBLIC, "size of the model that the manifest names"),
    "OutboundUpdate.encoding": (Leaves.PUBLIC, _FORM),
    "OutboundUpdate.train_metrics": (Leaves.CHARGED, _METRICS),
    "OutboundUpdate.evaluate_metrics": (Leaves.CHARGED, _METRICS),
    "OutboundMetrics.kind": (Leaves.PUBLIC, "one of a closed list of kinds"),
    "OutboundMetrics.payload": (Leaves.PUBLIC, "empty"),
    "OutboundMetrics.evaluate_metrics": (Leaves.CHARGED, _METRICS),
    "OutboundMasked.kind": (Leaves.PUBLIC, "one of a closed list of kinds"),
    "OutboundMasked.payload": (
        Leaves.CHARGED,
        _MASKED,
    ),
    "OutboundMasked.num_words": (Leaves.PUBLIC, "length of the vector, from study and manifest"),
    "OutboundAgreement.kind": (Leaves.PUBLIC, "one of a closed list of kinds"),
    "OutboundAgreement.payload": (Leaves.PUBLIC, "empty"),
    "OutboundShares.kind": (Leaves.PUBLIC, "one of a closed list of kinds"),
    "OutboundShares.payload": (
        Leaves.CRYPTOGRAPHIC,
        "shares of mask seeds, for the one list of survivors that the hospital accepted",
    ),
    "OutboundCode.kind": (Leaves.PUBLIC, "one of a closed list of kinds"),
    "OutboundCode.payload": (Leaves.PUBLIC, "empty"),
    "OutboundCode.code": (Leaves.CODE, "why the hospital does not contribute"),
    "OutboundBenefit.kind": (Leaves.PUBLIC, "one of a closed list of kinds"),
    "OutboundBenefit.payload": (Leaves.PUBLIC, "empty"),
    "OutboundBenefit.results": (Leaves.CHARGED, _ROW),
    "OutboundBenefit.gains": (Leaves.CHARGED, _ROW),
    "OutboundKeys.kind": (Leaves.PUBLIC, "one of a closed list of kinds"),
    "OutboundKeys.payload": (
        Leaves.PUBLIC,
        "the signed join request, listed below; or the public key of a run's masks",
    ),
    "OutboundStatus.kind": (Leaves.PUBLIC, "one of a closed list of kinds"),
    "OutboundStatus.payload": (Leaves.PUBLIC, "version of the worker's protocol"),
    "Envelope.payload_type": (Leaves.PUBLIC, "kind of the statement"),
    "Envelope.payload": (Leaves.PUBLIC, "the statement itself, listed below"),
    "Envelope.key_id": (Leaves.CRYPTOGRAPHIC, "digest of the signing key"),
    "Envelope.signature": (Leaves.CRYPTOGRAPHIC, "signature of the statement"),
    "JoinRequest.study_id": (Leaves.PUBLIC, "repeats the invitation"),
    "JoinRequest.study_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the study file"),
    "JoinRequest.site_id": (Leaves.PUBLIC, "name that the hospital chose for itself"),
    "JoinRequest.signing_key": (Leaves.CRYPTOGRAPHIC, "public key, made at the site"),
    "JoinRequest.node_key": (Leaves.CRYPTOGRAPHIC, "public key, made at the site"),
    "JoinRequest.node_key_proof": (Leaves.CRYPTOGRAPHIC, "signature"),
    "JoinRequest.train_size": (
        Leaves.PUBLIC,
        "a number that a person declares; the number of patients stays at the site. Empty in a study that hides it",
    ),
    "JoinRequest.variant": (Leaves.PUBLIC, "which of the study's models a person chose"),
    "JoinRequest.modalities": (Leaves.PUBLIC, "kinds of data that a person declares"),
    "Contribution.study_id": (Leaves.PUBLIC, _ECHO),
    "Contribution.site_id": (Leaves.PUBLIC, "name of the hospital"),
    "Contribution.manifest_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the manifest"),
    "Contribution.run_name": (Leaves.PUBLIC, _ECHO),
    "Contribution.round_number": (Leaves.PUBLIC, _ECHO),
    "Contribution.attempt": (Leaves.PUBLIC, _ECHO),
    "Contribution.kind": (Leaves.PUBLIC, _ECHO),
    "Contribution.drop_code": (Leaves.CODE, "why the hospital does not contribute"),
    "Contribution.update_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the update that goes with it"),
    "Contribution.num_elements": (Leaves.PUBLIC, "size of the model that the manifest names, or 0"),
    "Contribution.update_encoding": (Leaves.PUBLIC, _FORM),
    "Contribution.train_metrics": (Leaves.CHARGED, _METRICS),
    "Contribution.evaluate_metrics": (Leaves.CHARGED, _METRICS),
    "ShareCommitment.manifest_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the manifest"),
    "ShareCommitment.site_id": (Leaves.PUBLIC, "name of the hospital"),
    "ShareCommitment.vector_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the masked vector"),
    "ShareCommitment.share_sha256": (Leaves.CRYPTOGRAPHIC, "digests of the sealed shares"),
    "SignedShareCommitment.key_id": (Leaves.CRYPTOGRAPHIC, "digest of the signing key"),
    "SignedShareCommitment.signature": (Leaves.CRYPTOGRAPHIC, "signature of the commitment"),
    "MaskKey.study_id": (Leaves.PUBLIC, "repeats the study"),
    "MaskKey.study_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the study file"),
    "MaskKey.run_name": (Leaves.PUBLIC, "repeats the request"),
    "MaskKey.site_id": (Leaves.PUBLIC, "name of the hospital"),
    "MaskKey.public_key": (Leaves.CRYPTOGRAPHIC, "public key of a run's masks, made at the site"),
    "Agreement.manifest_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the manifest"),
    "Agreement.site_id": (Leaves.PUBLIC, "name of the hospital"),
    "Agreement.survivors": (Leaves.PUBLIC, "the server's list of hospitals, agreed to"),
    "Shares.manifest_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the manifest"),
    "Shares.site_id": (Leaves.PUBLIC, "name of the hospital"),
    "Shares.shares_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the shares"),
    "BenefitRow.is_simulation": (
        Leaves.PUBLIC,
        "whether the hospitals were simulated by one party",
    ),
    "BenefitRow.study_id": (Leaves.PUBLIC, "repeats the study"),
    "BenefitRow.study_sha256": (Leaves.CRYPTOGRAPHIC, "digest of the study file"),
    "BenefitRow.site_id": (Leaves.PUBLIC, "name of the hospital"),
    "BenefitRow.primary": (Leaves.PUBLIC, "follows from the study's task"),
    "BenefitRow.larger_is_better": (Leaves.PUBLIC, "follows from the study's task"),
    "BenefitRow.margin": (Leaves.PUBLIC, "the same in every study"),
    "BenefitRow.fewest": (Leaves.PUBLIC, "the same in every study"),
    "BenefitRow.personal_runs": (Leaves.PUBLIC, "runs with personalisation, from the study"),
    "BenefitRow.issued_at": (Leaves.PUBLIC, "when the command was typed"),
    "ReleasedMetrics.method": (Leaves.PUBLIC, "run of the study, or training alone"),
    "ReleasedMetrics.metrics": (Leaves.CHARGED, _ROW),
    "ReleasedGain.method": (Leaves.PUBLIC, "run of the study, or training alone"),
    "ReleasedGain.over": (Leaves.PUBLIC, "run of the study, or training alone"),
    "ReleasedGain.metric": (Leaves.PUBLIC, "name of a metric that the study lists"),
    "ReleasedGain.value": (Leaves.CHARGED, _ROW),
    "ReleasedGain.low": (Leaves.CHARGED, _ROW),
    "ReleasedGain.high": (Leaves.CHARGED, _ROW),
    "ReleasedGain.p_value": (Leaves.CHARGED, _ROW),
    "ReleasedGain.standard_error": (Leaves.CHARGED, _ROW),
    "PrivacySpend.delta": (Leaves.PUBLIC, "from the study, or from the declared size"),
    "PrivacySpend.clipping_norm": (Leaves.PUBLIC, "from the study"),
    "LedgerPlace.sequence": (Leaves.PUBLIC, "counts what was asked of the site, not patients"),
    "LedgerPlace.head": (
        Leaves.CRYPTOGRAPHIC,
        "digest of a line of the ledger, without patients' data",
    ),
    "PoissonSubsampledGaussian.kind": (Leaves.PUBLIC, _EVENT),
    "PoissonSubsampledGaussian.unit": (Leaves.PUBLIC, _EVENT),
    "PoissonSubsampledGaussian.adjacency": (Leaves.PUBLIC, _EVENT),
    "PoissonSubsampledGaussian.sampler": (Leaves.PUBLIC, _EVENT),
    "PoissonSubsampledGaussian.sampling_rate": (Leaves.PUBLIC, _EVENT),
    "PoissonSubsampledGaussian.noise_multiplier": (Leaves.PUBLIC, _EVENT),
    "PoissonSubsampledGaussian.steps": (Leaves.PUBLIC, "fixed before training"),
    "PoissonSubsampledGaussian.population": (Leaves.PUBLIC, _EVENT),
    "PoissonSubsampledGaussian.split_id": (
        Leaves.PUBLIC,
        "names the study's split, not its patients",
    ),
    "PoissonSubsampledGaussian.generator": (Leaves.PUBLIC, "which generator made the noise"),
    "GaussianRelease.kind": (Leaves.PUBLIC, _EVENT),
    "GaussianRelease.unit": (Leaves.PUBLIC, _EVENT),
    "GaussianRelease.adjacency": (Leaves.PUBLIC, _EVENT),
    "GaussianRelease.sampler": (Leaves.PUBLIC, _EVENT),
    "GaussianRelease.noise_multiplier": (Leaves.PUBLIC, _EVENT),
    "GaussianRelease.steps": (Leaves.PUBLIC, "number of releases that were planned"),
    "GaussianRelease.population": (Leaves.PUBLIC, _EVENT),
    "GaussianRelease.split_id": (Leaves.PUBLIC, "names the study's split, not its patients"),
    "GaussianRelease.generator": (Leaves.PUBLIC, "which generator made the noise"),
    "DistributedSkellam.kind": (Leaves.PUBLIC, _EVENT),
    "DistributedSkellam.unit": (Leaves.PUBLIC, _EVENT),
    "DistributedSkellam.adjacency": (Leaves.PUBLIC, _EVENT),
    "DistributedSkellam.sampler": (Leaves.PUBLIC, _EVENT),
    "DistributedSkellam.sampling_rate": (Leaves.PUBLIC, _EVENT),
    "DistributedSkellam.l1_sensitivity": (Leaves.PUBLIC, _EVENT),
    "DistributedSkellam.l2_sensitivity": (Leaves.PUBLIC, _EVENT),
    "DistributedSkellam.variance": (Leaves.PUBLIC, _EVENT),
    "DistributedSkellam.num_honest": (Leaves.PUBLIC, "sites whose noise the study counts on"),
    "DistributedSkellam.steps": (Leaves.PUBLIC, "number of sums that were planned"),
    "DistributedSkellam.population": (Leaves.PUBLIC, _EVENT),
    "DistributedSkellam.split_id": (Leaves.PUBLIC, "names the study's split, not its patients"),
    "DistributedSkellam.generator": (Leaves.PUBLIC, "which generator made the noise"),
    "UnboundedRelease.kind": (Leaves.PUBLIC, "says that no noise was asked for"),
    "UnboundedRelease.unit": (Leaves.PUBLIC, _EVENT),
    "UnboundedRelease.adjacency": (Leaves.PUBLIC, _EVENT),
    "UnboundedRelease.sampler": (Leaves.PUBLIC, _EVENT),
    "UnboundedRelease.steps": (Leaves.PUBLIC, "number of releases that were asked for"),
}
