"""The signed statements of enrolment and of a round, as closed schemas (docs/reference/round-record.md)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedhealth.config.privacy import Tuning
from fedhealth.config.study import Study
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.tensors import TensorEntry, TensorSpec
from fedhealth.contracts.update_encoding import UpdateEncoding
from fedhealth.evidence.commitments import ShareCommitment, SignedShareCommitment
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statement import (
    DecimalId,
    Hex64,
    Metrics,
    ModalityName,
    RunName,
    SiteId,
    Statement,
    TensorName,
    UtcTime,
    is_canonical,
    open_statement,
    parse_statement,
)
from fedhealth.privacy.accounting.events import Event

__all__ = [
    "Admission",
    "CohortMember",
    "Contribution",
    "DecimalId",
    "DistributedNoise",
    "Hex64",
    "Invitation",
    "JoinRequest",
    "LedgerPlace",
    "Manifest",
    "ManifestBlock",
    "ManifestTensor",
    "Metrics",
    "ModalityName",
    "PrivacySpend",
    "RosterEntry",
    "RosterSite",
    "RoundMasking",
    "RoundPrivacy",
    "RunName",
    "ShareCommitment",
    "SignedShareCommitment",
    "SiteId",
    "Statement",
    "StudyRoster",
    "TensorName",
    "UtcTime",
    "is_canonical",
    "manifest_tensors",
    "open_statement",
    "parse_statement",
]


class RosterEntry(Statement):
    """One admitted site, as everybody may know it. `train_size` is None where a study hides sizes under masks."""

    site_id: SiteId
    key_id: Hex64
    signing_key: str = Field(max_length=64)
    node_key_id: Hex64
    train_size: int | None = Field(ge=1, le=100_000_000)
    modalities: tuple[ModalityName, ...]
    variant: ModalityName | None = None


class Invitation(Statement):
    """From the consortium to a hospital: the study, where to dial, and the keys to pin."""

    study_yaml: str = Field(max_length=1_000_000)
    study_id: SiteId
    study_sha256: Hex64
    address: str = Field(pattern=r"^[A-Za-z0-9.:\[\]-]{1,253}:\d{1,5}$")
    ca_certificate: str = Field(max_length=20_000)
    server_key: str = Field(max_length=64)
    min_cohort: int = Field(ge=2)


class JoinRequest(Statement):
    """From a hospital to the consortium: public keys born at the site, and the declared training size.

    The size is None in a study that hides it: it then travels under the masks only. `variant` is which of the study's
    models the site trains; None: the study's own.
    """

    study_id: SiteId
    study_sha256: Hex64
    site_id: SiteId
    signing_key: str = Field(max_length=64)
    node_key: str = Field(max_length=1000, pattern=r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]+$")
    node_key_proof: str = Field(max_length=1000)
    train_size: int | None = Field(ge=1, le=100_000_000)
    modalities: tuple[ModalityName, ...]
    variant: ModalityName | None = None


class Admission(Statement):
    """From the consortium to one hospital: you are on the roster."""

    study_id: SiteId
    study_sha256: Hex64
    site: RosterEntry
    address: str = Field(max_length=260)
    admitted_at: UtcTime


class RosterSite(Statement):
    """One site of a study's roster: its id and its public signing key."""

    site_id: SiteId
    signing_key: str = Field(max_length=64)


class StudyRoster(Statement):
    """From the consortium to all hospitals: who is in the study. A person compares the fingerprints, then pins it."""

    study_id: SiteId
    study_sha256: Hex64
    sites: tuple[RosterSite, ...] = Field(min_length=1, max_length=1000)
    issued_at: UtcTime

    @model_validator(mode="after")
    def _distinct(self) -> "StudyRoster":
        if len({s.site_id for s in self.sites}) != len(self.sites):
            raise ValueError("a site is on the roster twice")
        if len({s.signing_key for s in self.sites}) != len(self.sites):
            raise ValueError("one key stands for two sites")
        return self


class ManifestTensor(Statement):
    """One entry of the tensor spec."""

    name: TensorName
    shape: tuple[Annotated[int, Field(ge=1, le=2**40)], ...] = Field(max_length=8)
    offset: int = Field(ge=0, le=2**40)
    dtype: Literal["float32"]


class ManifestBlock(Statement):
    """The tensors that only patients with one modality train; the round averages them over their owners."""

    modality: ModalityName
    tensors: tuple[TensorName, ...] = Field(min_length=1, max_length=20_000)


class LedgerPlace(Statement):
    """A place in a site's privacy ledger: number of lines, and the hash of the last one."""

    sequence: int = Field(ge=0, lt=2**53)
    head: Hex64


class CohortMember(Statement):
    """One site of a round's cohort.

    Attributes:
        ledger: the last place of its ledger that the server has seen.
        mask_key: its key of secure aggregation for this run, signed by itself; None without masks.
        modalities: what it declared when it joined; None where nothing in the round depends on it.
    """

    site_id: SiteId
    key_id: Hex64
    ledger: LedgerPlace | None = None
    mask_key: Envelope | None = None
    modalities: tuple[ModalityName, ...] | None = Field(default=None, max_length=1000)


class RoundPrivacy(Statement):
    """What the server proposes for every patient; the site holds it against its own study and policy."""

    unit: Literal["patient"]
    target_epsilon: float | None = Field(gt=0)
    noise_multiplier: float | None = Field(gt=0)
    clipping_norm: float = Field(gt=0)
    tuning: Tuning = "not_stated"

    @classmethod
    def of(cls, study: Study) -> "RoundPrivacy | None":
        """What every manifest of this study says about patients' privacy; None without any."""
        if study.privacy is None:
            return None
        return cls(
            unit="patient",
            target_epsilon=study.privacy.target_epsilon,
            noise_multiplier=study.privacy.noise_multiplier,
            clipping_norm=study.privacy.clipping_norm,
            tuning=study.privacy.tuning,
        )


class DistributedNoise(Statement):
    """Noise that every site adds its share of, under the masks: as the study has it."""

    unit: Literal["patient", "site"]
    clipping_norm: float = Field(gt=0)
    noise_multiplier: float = Field(gt=0)
    modulus_bits: int = Field(ge=4, le=62)
    num_sites: int = Field(ge=3, le=1000)
    num_honest: int = Field(ge=1, le=1000)


class RoundMasking(Statement):
    """How updates of this round are masked. Everything but the threshold follows from the study.

    Attributes:
        threshold: sites whose shares it takes to remove the masks.
        min_survivors: fewest sites that a sum may be about.
        bits: of one quantised value.
        value_range: largest change of a value that is not cut.
        max_weight: largest weight of a site; 1 when all count the same.
        kept_share: of the coordinates that travel.
        distributed: noise under the masks; None without.
    """

    protocol: Literal["fedhealth-secagg/1"] = "fedhealth-secagg/1"
    threshold: int = Field(ge=1, le=1000)
    min_survivors: int = Field(ge=2, le=1000)
    bits: int = Field(ge=2, le=24)
    value_range: float = Field(gt=0)
    max_weight: int = Field(ge=1, le=100_000_000)
    kept_share: float = Field(gt=0, le=1)
    distributed: DistributedNoise | None = None


class PrivacySpend(Statement):
    """What a site's answer cost its patients, from its ledger.

    Attributes:
        round_events: what this answer released about patients.
        study_events: all that this study reserved on these data so far, this answer included, equal ones merged.
        delta: at which epsilon is to be derived.
        clipping_norm: of one patient's gradient; None without patient-level privacy.
        ledger: the ledger's place after this round's reservation.
    """

    round_events: tuple[Event, ...] = Field(max_length=100)
    study_events: tuple[Event, ...] = Field(max_length=1000)
    delta: float = Field(gt=0, lt=1)
    clipping_norm: float | None = Field(default=None, gt=0)
    ledger: LedgerPlace


class Manifest(Statement):
    """What the server asks of every site of one round. The same bytes go to all.

    `blocks` are there in a training round that averages encoders over the sites that declared their modality.
    `summed_modalities` are there in a masked one that averages them over all sites, without noise: modalities with
    tensors of their own, which a site that lacks the modality gives back as they came.
    `update_encoding` is how sites write their updates in a training round without masks. `frozen_sha256` is the digest
    of what nobody trains and so never travels, such as the random factors of low-rank changes; None without any.
    """

    study_id: SiteId
    study_sha256: Hex64
    run_name: RunName
    flower_run_id: DecimalId
    round_number: int = Field(ge=1, le=1_000_000)
    attempt: int = Field(ge=1, le=1_000_000)
    kind: Literal["train", "evaluate"]
    model_sha256: Hex64
    frozen_sha256: Hex64 | None = None
    tensors: tuple[ManifestTensor, ...] = Field(min_length=1, max_length=20_000)
    cohort: tuple[CohortMember, ...] = Field(min_length=1, max_length=1000)
    blocks: tuple[ManifestBlock, ...] = Field(default=(), max_length=1000)
    summed_modalities: tuple[ModalityName, ...] = Field(default=(), max_length=1000)
    min_cohort: int = Field(ge=2, le=1000)
    strategy_config: dict[Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")], float | int | bool]
    privacy: RoundPrivacy | None = None
    masking: RoundMasking | None = None
    update_encoding: UpdateEncoding = "float32"
    deadline_s: float = Field(gt=0, le=604_800)
    opened_at: UtcTime

    @model_validator(mode="after")
    def _contiguous(self) -> "Manifest":
        offset = 0
        for tensor in self.tensors:
            if tensor.offset != offset:
                raise ValueError("offsets have gaps")
            offset += _entry(tensor).num_elements
        if len({t.name for t in self.tensors}) != len(self.tensors):
            raise ValueError("tensor names repeat")
        if len({m.site_id for m in self.cohort}) != len(self.cohort):
            raise ValueError("a site is in the cohort twice")
        if len({m.key_id for m in self.cohort}) != len(self.cohort):
            raise ValueError("one key stands for two sites")  # a cohort could be padded with itself
        return self

    @model_validator(mode="after")
    def _encoding_fits(self) -> "Manifest":
        if self.update_encoding != "float32" and (
            self.masking is not None or self.kind == "evaluate"
        ):
            raise ValueError("only an update without masks has another form than float32")
        return self

    @model_validator(mode="after")
    def _blocks_fit(self) -> "Manifest":
        named = [name for block in self.blocks for name in block.tensors]
        if len(set(named)) != len(named) or not set(named) <= {t.name for t in self.tensors}:
            raise ValueError("a tensor is in two blocks, or is none of the model's")
        if len({block.modality for block in self.blocks}) != len(self.blocks):
            raise ValueError("a modality has two blocks")
        if self.blocks and self.summed_modalities:
            raise ValueError("a round averages by modality, or it does not")
        if len(set(self.summed_modalities)) != len(self.summed_modalities):
            raise ValueError("a modality is summed twice")
        says_who = bool(self.blocks or self.summed_modalities)
        if any((m.modalities is None) == says_who for m in self.cohort):
            raise ValueError("modalities of sites go with blocks or sums of them, and only there")
        return self

    @property
    def spec(self) -> TensorSpec:
        """The tensor spec."""
        return TensorSpec(entries=tuple(_entry(tensor) for tensor in self.tensors))


def _entry(tensor: ManifestTensor) -> TensorEntry:
    return TensorEntry(
        name=tensor.name, shape=tensor.shape, offset=tensor.offset, dtype=tensor.dtype
    )


def manifest_tensors(spec: TensorSpec) -> tuple[ManifestTensor, ...]:
    """The tensor spec in a manifest's form."""
    return tuple(
        ManifestTensor(name=e.name, shape=e.shape, offset=e.offset, dtype="float32")
        for e in spec.entries
    )


class Contribution(Statement):
    """A site's signed answer to one manifest: the digest of the update that goes with it, or a code.

    `masked` is set when that update is a masked vector with sealed shares: the site's commitment to both, which
    the other sites are shown. `num_elements` then counts the words of the vector. `update_sha256` is always of the
    bytes that left; `update_encoding` says how an update without masks is written in them.
    """

    study_id: SiteId
    site_id: SiteId
    manifest_sha256: Hex64
    run_name: RunName
    round_number: int = Field(ge=1)
    attempt: int = Field(ge=1)
    kind: Literal["train", "evaluate"]
    drop_code: DropCode | None = None
    update_sha256: Hex64 | None = None
    num_elements: int = Field(ge=0)
    update_encoding: UpdateEncoding = "float32"
    train_metrics: Metrics = Field(default_factory=dict)
    evaluate_metrics: Metrics = Field(default_factory=dict)
    privacy: PrivacySpend | None = None
    masked: SignedShareCommitment | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Contribution":
        has_update = self.update_sha256 is not None
        expects = self.drop_code is None and (self.kind == "train" or self.masked is not None)
        if has_update != expects or has_update != (self.num_elements > 0):
            raise ValueError(
                "an update goes with a train contribution without a code, and only there"
            )
        if self.update_encoding != "float32" and (not has_update or self.masked is not None):
            raise ValueError("only an update without masks has another form than float32")
        if self.masked is not None and (self.train_metrics or self.evaluate_metrics):
            raise ValueError("beside a masked vector nothing is told in the clear")
        return self
