"""The model card: what a model is, what is known of it, and what it is not for. Filled from records, never by hand.

Called by `server.export` and `site.export`. After Mitchell et al. 2019, "Model Cards for Model Reporting". It holds
public facts only: no path, no value of a patient, no count that a site did not declare.
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from fedhealth.config.study import Study
from fedhealth.report.model_card_inputs import inputs_of, predicted_by
from fedhealth.report.privacy_facts import (
    Accountant,
    Adjacency,
    SiteLevelFact,
    SitePrivacyFact,
    has_noised_metrics,
)
from fedhealth.report.record import RoundRecord, SiteStatus, round_order
from fedhealth.report.schema import Closed, Count, Hex64, Metrics, PluginName, SlugId, Version

CARD_SCHEMA: Literal["fedhealth/model-card/v1"] = "fedhealth/model-card/v1"
Line = Annotated[
    str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f<>]*$")
]
"""Text of a person, without markup and control characters."""
INTENDED_USE: Final = "Research on the question of the study. Not for clinical use."
LIMITS: Final = (
    "It was judged on validation patients of the hospitals that trained it; elsewhere it may be worse.",
    "Nothing here shows that it is safe, unbiased or better than what hospitals do now.",
)


class StudyOfCard(Closed):
    """Where the model comes from."""

    study_id: SlugId
    study_title: Annotated[str, Field(max_length=200)]
    study_sha256: Hex64
    run_name: SlugId
    strategy: PluginName
    personalisation: PluginName
    task: PluginName
    rounds_done: Count
    num_rounds: Count


class DataOfCard(Closed):
    """What goes in and comes out, by the data contract, and public counts.

    `unseen` are modalities that nobody trained this model on: they are left out of its predictions.
    `num_patients` is the sum of what the sites declared; None where masks hide it.
    """

    inputs: dict[Annotated[str, Field(max_length=64)], tuple[str, ...]]
    unseen: tuple[str, ...] = ()
    predicts: str
    num_sites: Count | None = None
    num_patients: Count | None = None


class MetricsOfCard(Closed):
    """Means over the sites' validation patients, as the record of the round that judged this model has them.

    `are_noised`: sites added noise to them for their patients' privacy.
    """

    values: Metrics
    are_noised: bool
    num_sites: Count
    round_number: Count


class PrivacyStatement(Closed):
    """One account of the record: for the patients of a site, or for whole sites (`site_id` None)."""

    unit: Literal["patient", "site"]
    site_id: SlugId | None = None
    epsilon: Annotated[float, Field(ge=0)] | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    adjacency: Adjacency
    accountant: Accountant
    accountant_version: Version


class ModelCard(Closed):
    """The card; `model_sha256` is the digest of the shared tensors in the round records.

    Attributes:
        has_records: whether round records were at hand; without them nothing is said about metrics and privacy.
        is_simulation: whether one party played all hospitals, as a record or the home of the model says.
        patient_privacy_asked: whether the study protects every patient.
        personal_tensors: how many tensors are this site's own; 0 in a global model.
        personal_tensors_are_private: whether their training was covered by the patients' account.
        missing_tensors: how many tensors only sites have; with any, the model cannot predict by itself.
    """

    schema_id: Literal["fedhealth/model-card/v1"] = CARD_SCHEMA
    kind: Literal["global", "site"]
    site_id: SlugId | None = None
    study: StudyOfCard
    data: DataOfCard
    model_sha256: Hex64
    weights_sha256: Hex64
    has_records: bool
    is_simulation: bool
    metrics: MetricsOfCard | None
    patient_privacy_asked: bool
    privacy: tuple[PrivacyStatement, ...]
    secure_aggregation: bool
    personal_tensors: Count
    personal_tensors_are_private: bool
    missing_tensors: Count
    intended_use: Line
    limits: tuple[Line, ...]
    authors: Line
    fedhealth_version: Version


class WordsOfCard(Closed):
    """What a person says: everything else comes from records."""

    intended_use: Line = INTENDED_USE
    limits: tuple[Line, ...] = LIMITS
    authors: Line = "The hospitals of the study"


class ModelFacts(Closed):
    """What the exporter knows of the model itself."""

    kind: Literal["global", "site"]
    site_id: SlugId | None = None
    study_sha256: Hex64
    run_name: SlugId
    rounds_done: Count
    model_sha256: Hex64
    weights_sha256: Hex64
    personal_tensors: Count
    personal_tensors_are_private: bool
    missing_tensors: Count
    fedhealth_version: Version
    is_simulation: bool = False
    unseen_modalities: tuple[str, ...] = ()


def model_card(
    study: Study, facts: ModelFacts, records: Sequence[RoundRecord], words: WordsOfCard
) -> ModelCard:
    """The card of a model.

    Args:
        study: the study of the model.
        facts: what the exporter knows of it.
        records: of its run, in any order; none where they are not at hand.
        words: of the person who exports.

    Raises:
        ValueError: a record is of another study or run.
    """
    if any((r.study_sha256, r.run_name) != (facts.study_sha256, facts.run_name) for r in records):
        raise ValueError("a record of another study or run")
    run = study.run(facts.run_name)
    ordered = sorted(records, key=round_order)
    return ModelCard(
        kind=facts.kind,
        site_id=facts.site_id,
        study=StudyOfCard(
            study_id=study.id,
            study_title=study.title,
            study_sha256=facts.study_sha256,
            run_name=run.name,
            strategy=run.strategy.name,
            personalisation=run.personalisation,
            task=study.task.name,
            rounds_done=facts.rounds_done,
            num_rounds=run.num_rounds,
        ),
        data=_data(study, ordered, facts.unseen_modalities),
        model_sha256=facts.model_sha256,
        weights_sha256=facts.weights_sha256,
        has_records=bool(ordered),
        is_simulation=facts.is_simulation or any(record.is_simulation for record in ordered),
        metrics=_metrics(ordered, facts.model_sha256),
        patient_privacy_asked=study.privacy is not None,
        privacy=_privacy(ordered),
        secure_aggregation=study.secure_aggregation is not None,
        personal_tensors=facts.personal_tensors,
        personal_tensors_are_private=facts.personal_tensors_are_private,
        missing_tensors=facts.missing_tensors,
        intended_use=words.intended_use,
        limits=words.limits,
        authors=words.authors,
        fedhealth_version=facts.fedhealth_version,
    )


def _data(study: Study, records: Sequence[RoundRecord], unseen: tuple[str, ...]) -> DataOfCard:
    """Sites that contributed to a training round, with the sizes that they declared."""
    sizes = {
        site.site_id: site.declared_train_size
        for record in records
        if record.kind == "train"
        for site in record.sites
        if site.status is SiteStatus.CONTRIBUTED
    }
    known = [size for size in sizes.values() if size is not None]
    return DataOfCard(
        inputs=inputs_of(study),
        unseen=unseen,
        predicts=predicted_by(study),
        num_sites=len(sizes) if records else None,
        num_patients=sum(known) if sizes and len(known) == len(sizes) else None,
    )


def _metrics(records: Sequence[RoundRecord], model_sha256: str) -> MetricsOfCard | None:
    """Of the last round whose incoming model this is: rounds judge what comes in, the closing one the result."""
    judged = [
        r
        for r in records
        if r.model_in_sha256 == model_sha256
        and r.status == "complete"
        and r.aggregate_evaluate_metrics
    ]
    if not judged:
        return None
    last = judged[-1]
    return MetricsOfCard(
        values=last.aggregate_evaluate_metrics,
        are_noised=any(
            site.privacy is not None and has_noised_metrics(site.privacy.round_events)
            for site in last.sites
        ),
        num_sites=last.count(SiteStatus.CONTRIBUTED),
        round_number=last.round_number,
    )


def _privacy(records: Sequence[RoundRecord]) -> tuple[PrivacyStatement, ...]:
    """The newest account of every site, and of the run at the server."""
    patients: dict[str, SitePrivacyFact] = {}
    sites: SiteLevelFact | None = None
    for record in records:
        sites = record.site_level or sites
        patients |= {s.site_id: s.privacy for s in record.sites if s.privacy is not None}
    said = [_statement(patients[site_id], site_id) for site_id in sorted(patients)]
    return (*said, *([] if sites is None else [_statement(sites, None)]))


def _statement(fact: SitePrivacyFact | SiteLevelFact, site_id: str | None) -> PrivacyStatement:
    return PrivacyStatement(
        unit=fact.unit,
        site_id=site_id,
        epsilon=fact.epsilon,
        delta=fact.delta,
        adjacency=fact.adjacency,
        accountant=fact.accountant,
        accountant_version=fact.accountant_version,
    )
