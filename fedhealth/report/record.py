"""The record of one round: a closed schema without free text, from which report pages are made.

The server writes one when a round closes. No field can hold a sentence: every string is an enum, a digest, an
id or a bounded pattern, so that nothing about a patient can travel in it. `record_digest` is the SHA-256 of
the file's bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from math import prod
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from fedhealth.config.personalisation import PersonalisationName
from fedhealth.contracts.aggregation import SiteLevelMechanism
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.contracts.update_encoding import UpdateEncoding
from fedhealth.evidence.signing import canonical_json as _canonical_json
from fedhealth.privacy.accounting.metrics import METRIC_BOUNDS
from fedhealth.report.coverage import ModalityCoverage
from fedhealth.report.masking_facts import MaskingFact, check_round
from fedhealth.report.privacy_facts import (
    PatientPrivacyFact,
    SiteLevelFact,
    SitePrivacyFact,
    has_noised_metrics,
)
from fedhealth.report.schema import (
    A,
    Closed,
    Count,
    D,
    DecimalId,
    Hex64,
    Metrics,
    N,
    P,
    PluginName,
    S,
    Seconds,
    SlugId,
    TensorName,
    UtcTime,
    Version,
    Watermarked,
)
from fedhealth.report.update_form import check_form

SCHEMA: Literal["fedhealth/round-record/v3"] = "fedhealth/round-record/v3"
RoundOrder = tuple[int, int, bool]
"""Round, attempt, is the closing evaluation."""
StrategySetting = Literal["clipping_norm", "proximal_mu", "effective_steps"]
"""What a strategy may tell a site: `contracts.aggregation.STRATEGY_CONFIG_ALLOWED`."""


class VoidReason(StrEnum):
    """Why a round gave no new model."""

    MINIMUM_COHORT = "minimum_cohort"
    MINIMUM_OWNERS = "minimum_owners"
    AGGREGATION_FAILED = "aggregation_failed"
    MASKS_NOT_REMOVED = "masks_not_removed"
    SUM_NOT_USABLE = "sum_not_usable"
    INTERRUPTED = "interrupted"


class SiteStatus(StrEnum):
    """What became of a site in a round. `unused`: it answered, but the round was void."""

    CONTRIBUTED = "contributed"
    UNUSED = "unused"
    DROPPED = "dropped"
    NOT_INVITED = "not_invited"


class NotEvidenced(StrEnum):
    """What this record says nothing about."""

    PRIVACY_ACCOUNTING = "privacy_accounting"
    SECURE_AGGREGATION = "secure_aggregation"
    SIGNATURES_IN_RECORD = "signatures_in_record"
    TAMPER_EVIDENT_LOG = "tamper_evident_log"
    COUNTERSIGNATURES = "countersignatures"
    DATA_QUALITY = "data_quality"
    LABEL_TRUTH = "label_truth"
    DATA_USED_IS_DATA_DECLARED = "data_used_is_data_declared"
    OTHER_OUTBOUND_PATHS = "other_outbound_paths"
    REIDENTIFICATION_FROM_MODEL = "reidentification_from_model"
    CLINICAL_SAFETY = "clinical_safety"
    ABSENCE_OF_BIAS = "absence_of_bias"
    LAWFULNESS_OF_PROCESSING = "lawfulness_of_processing"
    CONSENT = "consent"


class TensorFact(Closed):
    """One tensor of the model that travels; `offset` counts elements in the flat vector."""

    name: Annotated[TensorName, S]
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=2**40)], ...], Field(max_length=8), S]
    offset: Annotated[int, Field(ge=0, le=2**40), S]
    dtype: Annotated[Literal["float32"], S] = "float32"


class SiteFact(Closed):
    """One site in one round. Byte counts are None where nothing measured them, the size where masks hide it."""

    site_id: Annotated[SlugId, D]
    key_id: Annotated[Hex64, S]
    status: Annotated[SiteStatus, S]
    drop_code: Annotated[DropCode | None, S] = None
    contribution_sha256: Annotated[Hex64 | None, S] = None
    declared_train_size: Annotated[Count | None, D]
    update_bytes: Annotated[Count, S] = 0
    wire_bytes_in: Annotated[Count | None, S] = None
    wire_bytes_out: Annotated[Count | None, S] = None
    answered_after_s: Annotated[Seconds | None, S] = None
    train_metrics: Annotated[Metrics, A] = Field(default_factory=dict)
    evaluate_metrics: Annotated[Metrics, A] = Field(default_factory=dict)
    privacy: SitePrivacyFact | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.privacy is not None and not self.has_answered:
            raise ValueError("what a site has spent is known from a verified answer only")
        if (self.drop_code is not None) != (self.status is SiteStatus.DROPPED):
            raise ValueError("a dropped site has a drop code, and no other site has one")
        _check_ranges(self.train_metrics)
        _check_ranges(self.evaluate_metrics)
        if self.privacy is not None and self.privacy.is_bounded:
            _check_charged(self, self.privacy)
        return self

    @property
    def has_answered(self) -> bool:
        """Whether a verified answer came, used or not."""
        return self.status in {SiteStatus.CONTRIBUTED, SiteStatus.UNUSED}


class Timings(Closed):
    """Seconds that the server spent. `exchange_s` is from the first message out to the last answer in."""

    gather_s: Annotated[Seconds, S] = 0.0
    exchange_s: Annotated[Seconds, S] = 0.0
    aggregate_s: Annotated[Seconds, S] = 0.0
    checkpoint_s: Annotated[Seconds, S] = 0.0
    total_s: Annotated[Seconds, S] = 0.0


class Versions(Closed):
    """What ran at the server."""

    fedhealth: Annotated[Version, S]
    flwr: Annotated[Version, S]


class RoundRecord(Watermarked):
    """Everything that a round's report is made from."""

    schema_id: Annotated[Literal["fedhealth/round-record/v3"], P] = SCHEMA
    study_id: Annotated[SlugId, D]
    study_sha256: Annotated[Hex64, P]
    run_name: Annotated[SlugId, D]
    flower_run_id: Annotated[DecimalId, S]
    round_number: Annotated[int, Field(ge=1, le=1_000_000), S]
    attempt: Annotated[int, Field(ge=1, le=1_000_000), S]
    kind: Annotated[Literal["train", "evaluate"], S]
    status: Annotated[Literal["complete", "void"], S]
    void_reason: Annotated[VoidReason | None, S] = None
    opened_at: Annotated[UtcTime, S]
    closed_at: Annotated[UtcTime, S]
    deadline_s: Annotated[Seconds, D]
    timings: Timings
    manifest_sha256: Annotated[Hex64, S]
    model_in_sha256: Annotated[Hex64, S]
    model_out_sha256: Annotated[Hex64, S]
    tensor_spec_sha256: Annotated[Hex64, P]
    tensors: tuple[TensorFact, ...] = Field(min_length=1, max_length=20_000)
    num_parameters: Annotated[Count, P]
    strategy: Annotated[PluginName, D]
    strategy_config: Annotated[dict[StrategySetting, float], S] = Field(default_factory=dict)
    personalisation: Annotated[PersonalisationName, D]
    min_cohort: Annotated[int, Field(ge=2, le=1000), D]
    sites: tuple[SiteFact, ...] = Field(min_length=1, max_length=1000)
    aggregate_train_metrics: Annotated[Metrics, A] = Field(default_factory=dict)
    aggregate_evaluate_metrics: Annotated[Metrics, A] = Field(default_factory=dict)
    patient_privacy: PatientPrivacyFact | None = None
    site_level: SiteLevelFact | None = None
    masking: MaskingFact | None = None
    coverage: Annotated[tuple[ModalityCoverage, ...], Field(max_length=1000)] = ()
    update_encoding: Annotated[UpdateEncoding, D] = "float32"
    versions: Versions
    not_evidenced: Annotated[tuple[NotEvidenced, ...], N] = tuple(NotEvidenced)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_spec(self)
        _check_outcome(self)
        _check_ranges(self.aggregate_train_metrics)
        _check_ranges(self.aggregate_evaluate_metrics)
        _check_means(self)
        _check_site_level(self)
        _check_masking(self)
        _check_coverage(self)
        check_form(
            self.update_encoding,
            is_plain_training=self.kind == "train" and self.masking is None,
            shapes=[tensor.shape for tensor in self.tensors],
            sizes_bytes=[site.update_bytes for site in self.sites if site.has_answered],
        )
        if len({site.site_id for site in self.sites}) != len(self.sites):
            raise ValueError("a site is listed twice")
        if len(set(self.not_evidenced)) != len(self.not_evidenced):
            raise ValueError("not_evidenced repeats")
        if self.not_evidenced != unevidenced(self.sites, self.site_level, self.masking):
            raise ValueError("not_evidenced is not what this record leaves open")
        return self

    def left_out(self) -> frozenset[str]:
        """Also what says nothing here and what records from before have no field for."""
        usual = {
            "coverage": not self.coverage,
            "update_encoding": self.update_encoding == "float32",
        }
        own = frozenset(name for name, is_usual in usual.items() if is_usual)
        return Watermarked.left_out(self) | own

    def count(self, status: SiteStatus) -> int:
        """How many sites have that status."""
        return sum(site.status is status for site in self.sites)


def unevidenced(
    sites: Sequence[SiteFact],
    site_level: SiteLevelFact | None,
    masking: MaskingFact | None = None,
) -> tuple[NotEvidenced, ...]:
    """What a record with these accounts says nothing about.

    The privacy cost stays open unless every site that answered has a bounded account of its patients, or an account
    of whole sites earns a badge. With masks the server could not read single updates.
    """
    answered = [site.privacy for site in sites if site.has_answered]
    is_bounded = all(account is not None and account.is_bounded for account in answered)
    has_badge = site_level is not None and site_level.shows_badge
    has_bound = (bool(answered) and is_bounded) or has_badge
    covered = {NotEvidenced.PRIVACY_ACCOUNTING} if has_bound else set()
    if masking is not None:
        covered.add(NotEvidenced.SECURE_AGGREGATION)
    return tuple(item for item in NotEvidenced if item not in covered)


def round_order(record: RoundRecord) -> RoundOrder:
    """Sorts rounds as they happened: by round, attempt, and training before the closing evaluation."""
    return (record.round_number, record.attempt, record.kind == "evaluate")


def round_stem(record: RoundRecord) -> str:
    """File name of a round without suffix: ``round-0003``, ``round-0003-attempt-2``, ``round-0004-evaluate``."""
    stem = f"round-{record.round_number:04d}"
    if record.attempt > 1:
        stem += f"-attempt-{record.attempt}"
    return stem if record.kind == "train" else f"{stem}-evaluate"


def canonical_json(model: Closed) -> bytes:
    """RFC 8785 bytes: the same record gives the same bytes everywhere."""
    return _canonical_json(model.model_dump(mode="json"))


def record_digest(model: Closed) -> str:
    """SHA-256 of `canonical_json`, in hex."""
    return hashlib.sha256(canonical_json(model)).hexdigest()


def tensor_spec_digest(tensors: tuple[TensorFact, ...]) -> str:
    """SHA-256 of the canonical JSON of a tensor list, in hex: the model's shape in one value."""
    rows = [tensor.model_dump(mode="json") for tensor in tensors]
    return hashlib.sha256(_canonical_json(rows)).hexdigest()


def mean_metrics(sites: Sequence[SiteFact], kind: Literal["train", "evaluate"]) -> Metrics:
    """Mean over contributing sites, weighted by declared size, of the metrics that all of them released.

    For the closing evaluation, which no strategy aggregates.
    """
    used = [site for site in sites if site.status is SiteStatus.CONTRIBUTED]
    said = [site.train_metrics if kind == "train" else site.evaluate_metrics for site in used]
    total = sum(site.declared_train_size or 0 for site in used)
    if total == 0:
        return {}
    return {
        name: sum(
            (site.declared_train_size or 0) * metrics[name]
            for site, metrics in zip(used, said, strict=True)
        )
        / total
        for name in said[0]
        if all(name in metrics for metrics in said)
    }


def _check_ranges(metrics: Metrics) -> None:
    for name, value in metrics.items():
        low, high = METRIC_RANGES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} is out of its range")


def _check_charged(site: SiteFact, privacy: SitePrivacyFact) -> None:
    """Beside a bound there are only metrics that the account paid for."""
    if site.train_metrics:
        raise ValueError("metrics of training patients are not in a bounded account")
    if not site.evaluate_metrics.keys() <= METRIC_BOUNDS.keys():
        raise ValueError("a metric that has no bound for one patient is not in a bounded account")
    if site.evaluate_metrics and not has_noised_metrics(privacy.round_events):
        raise ValueError("metrics were released that the account did not pay for")


def _check_means(record: RoundRecord) -> None:
    """A mean is over what sites of this round released: nothing else is shown as one. Masks hide the single ones."""
    if record.masking is not None and record.masking.is_masked:
        return
    used = [site for site in record.sites if site.status is SiteStatus.CONTRIBUTED]
    train = {name for site in used for name in site.train_metrics}
    evaluate = {name for site in used for name in site.evaluate_metrics}
    if not (
        record.aggregate_train_metrics.keys() <= train
        and record.aggregate_evaluate_metrics.keys() <= evaluate
    ):
        raise ValueError("a mean of a metric that no site released")


def _check_site_level(record: RoundRecord) -> None:
    fact = record.site_level
    if fact is None:
        return
    # A strategy of somebody's own may carry either mechanism out; the built-in ones are named for theirs.
    if record.strategy in get_args(SiteLevelMechanism) and fact.mechanism != record.strategy:
        raise ValueError("the site-level mechanism is not the round's strategy")
    if fact.num_model_releases > record.round_number:
        raise ValueError("more models were released than there were rounds")
    if fact.shows_badge != fact.earns_badge(len(record.sites)):
        raise ValueError("a badge goes with enough admitted sites and a small epsilon, only there")


def _check_coverage(record: RoundRecord) -> None:
    invited = {s.site_id for s in record.sites if s.status is not SiteStatus.NOT_INVITED}
    for fact in record.coverage:
        if not set(fact.declared_by) <= invited:
            raise ValueError("a modality is declared by a hospital that was not invited")
        if fact.num_owners and (record.status == "void" or record.kind == "evaluate"):
            raise ValueError("an encoder was averaged where nothing was")
    if len({fact.modality for fact in record.coverage}) != len(record.coverage):
        raise ValueError("a modality is listed twice")


def _check_masking(record: RoundRecord) -> None:
    if record.masking is None:
        if any(site.declared_train_size is None for site in record.sites):
            raise ValueError("a size is hidden where nothing masks it")
        return
    check_round(
        record.masking,
        is_void=record.status == "void",
        used=[site.site_id for site in record.sites if site.status is SiteStatus.CONTRIBUTED],
        sizes=[site.declared_train_size for site in record.sites],
        tells=any(site.train_metrics or site.evaluate_metrics for site in record.sites),
    )


def _check_spec(record: RoundRecord) -> None:
    if max(Counter(tensor.name for tensor in record.tensors).values()) > 1:
        raise ValueError("a tensor is listed twice")
    if record.num_parameters != sum(prod(tensor.shape) for tensor in record.tensors):
        raise ValueError("num_parameters is not the sum over the tensors")
    if record.tensor_spec_sha256 != tensor_spec_digest(record.tensors):
        raise ValueError("tensor_spec_sha256 is not the digest of the tensors")


def _check_outcome(record: RoundRecord) -> None:
    contributed = record.count(SiteStatus.CONTRIBUTED)
    is_void = record.status == "void"
    if is_void != (record.void_reason is not None):
        raise ValueError("a void round has a reason, and no other round has one")
    if (is_void or record.kind == "evaluate") and record.model_in_sha256 != record.model_out_sha256:
        raise ValueError("a void round or an evaluation leaves the model as it was")
    if is_void and contributed:
        raise ValueError("no site contributes to a void round")
    if not is_void and contributed < record.min_cohort:
        raise ValueError("a complete round has at least the minimum cohort")
    if not is_void and record.count(SiteStatus.UNUSED):
        raise ValueError("a complete round uses every answer")
