"""The card says what the records say, and no more."""

from typing import Any

import pytest
from pydantic import ValidationError

from fedhealth.config.load import load_study
from fedhealth.config.study import Study
from fedhealth.config.template import template_path
from fedhealth.report.model_card import ModelCard, ModelFacts, WordsOfCard, model_card
from fedhealth.report.model_card_inputs import inputs_of, predicted_by
from fedhealth.report.model_card_page import card_markdown
from fedhealth.report.record import RoundRecord, SiteStatus
from fedhealth.testing.example_rounds import (
    bare_run,
    example_run,
    masked_run,
    run_with_site_level,
    run_without_privacy,
)


def study_of(records: list[RoundRecord]) -> Study:
    column = {"name": "age", "dtype": "float", "minimum": 0, "maximum": 120}
    run = {"name": records[0].run_name, "num_rounds": len(records)}
    return Study.model_validate(
        {
            "schema_version": 1,
            "id": records[0].study_id,
            "title": "A [title] with *marks*",
            "seed": 1,
            "data": {"modalities": [{"kind": "table", "name": "ehr", "columns": [column]}]},
            "training": {"local_steps": 1},
            "runs": [run],
        }
    )


def card_of(records: list[RoundRecord], *, given: list[RoundRecord] | None = None) -> ModelCard:
    facts = ModelFacts(
        kind="global",
        study_sha256=records[0].study_sha256,
        run_name=records[0].run_name,
        rounds_done=len(records),
        model_sha256=records[-1].model_out_sha256,
        weights_sha256="1" * 64,
        personal_tensors=0,
        personal_tensors_are_private=False,
        missing_tensors=0,
        fedhealth_version="1.2.3",
    )
    return model_card(study_of(records), facts, records if given is None else given, WordsOfCard())


def test_the_metrics_are_those_of_the_round_that_judged_this_model() -> None:
    records = example_run()
    card = card_of(records)
    assert records[-1].kind == "evaluate"
    assert card.metrics is not None
    assert card.metrics.values == records[-1].aggregate_evaluate_metrics
    assert card.metrics.num_sites == records[-1].count(SiteStatus.CONTRIBUTED)
    other = card.model_copy(update={"metrics": None})
    assert "No round released metrics of this model." in card_markdown(other)


def test_noised_metrics_are_called_noised() -> None:
    private, open_metrics = card_of(example_run()), card_of(run_without_privacy())
    assert private.metrics is not None
    assert private.metrics.are_noised
    assert "Noise was added to these numbers" in card_markdown(private)
    assert open_metrics.metrics is not None
    assert not open_metrics.metrics.are_noised
    assert "Noise was added" not in card_markdown(open_metrics)


def test_metrics_of_another_model_are_not_on_the_card() -> None:
    records = example_run()
    study = study_of(records)
    facts = ModelFacts(
        kind="global",
        study_sha256=records[0].study_sha256,
        run_name=records[0].run_name,
        rounds_done=1,
        model_sha256="2" * 64,
        weights_sha256="1" * 64,
        personal_tensors=0,
        personal_tensors_are_private=False,
        missing_tensors=0,
        fedhealth_version="1.2.3",
    )
    assert model_card(study, facts, records, WordsOfCard()).metrics is None


def test_every_site_that_spent_has_its_newest_account() -> None:
    records = example_run()
    card = card_of(records)
    newest = {
        site.site_id: site.privacy.epsilon
        for record in records
        for site in record.sites
        if site.privacy is not None
    }
    assert newest
    said = {s.site_id: s.epsilon for s in card.privacy if s.unit == "patient"}
    assert said == newest
    page = card_markdown(card)
    assert all(f"patients of site `{site_id}`" in page for site_id in newest)
    assert "add or remove one" in page


def test_site_level_privacy_is_said_as_such() -> None:
    card = card_of(run_with_site_level(4))
    assert [s.site_id for s in card.privacy if s.unit == "site"] == [None]
    assert "whole sites: epsilon" in card_markdown(card)


def test_a_run_without_a_bound_or_an_account_says_so() -> None:
    unbounded = card_of(run_without_privacy())
    assert {s.epsilon for s in unbounded.privacy} == {None}
    assert "no bound at delta" in card_markdown(unbounded)
    bare = card_of(bare_run())
    assert bare.privacy == ()
    assert "Differential privacy: none." in card_markdown(bare)


def test_patients_are_counted_as_declared_and_not_at_all_under_masks() -> None:
    records = run_without_privacy()
    sizes = {
        site.site_id: site.declared_train_size
        for r in records
        if r.kind == "train"
        for site in r.sites
        if site.status is SiteStatus.CONTRIBUTED
    }
    card = card_of(records)
    assert card.data.num_sites == len(sizes)
    assert card.data.num_patients == sum(size or 0 for size in sizes.values())
    assert card_of(masked_run()).data.num_patients is None


def test_units_limits_and_what_is_predicted_are_on_the_card() -> None:
    study = load_study(template_path("synthetic"))
    assert inputs_of(study)["ehr"][:2] == ("age (years, 18 to 100)", "sex (codes 0, 1)")
    assert "marker_1 (arbitrary, 0 to 100, required)" in inputs_of(study)["ehr"]
    assert inputs_of(study)["t1"] == (
        "NIfTI, brought to 32 x 32 x 32 voxels of 7.5 x 7.5 x 7.5 mm, RAS",
    )
    page = card_markdown(card_of(example_run()))
    assert "It predicts: label, codes 0, 1." in page
    assert "- `ehr`: age (0 to 120)" in page


@pytest.mark.parametrize(
    ("template", "predicted"),
    [
        ("heart", "label, codes 0, 1"),
        ("survival", "time to progressed (days), 0 to 1800 days"),
        ("segmentation", "mask lesion on t1, codes 0, 1"),
    ],
)
def test_every_kind_of_label_is_said(template: str, predicted: str) -> None:
    assert predicted_by(load_study(template_path(template))) == predicted


def test_without_records_nothing_is_claimed() -> None:
    card = card_of(example_run(), given=[])
    assert (card.metrics, card.privacy, card.data.num_sites) == (None, (), None)
    assert "Round records were not at hand" in card_markdown(card)


def test_a_simulation_is_called_one() -> None:
    records = example_run()
    played = [r.model_copy(update={"is_simulation": True}) for r in records]
    assert "A simulation: one party" in card_markdown(card_of(played))
    assert "A simulation: one party" not in card_markdown(card_of(records))


def test_a_record_of_another_run_is_refused() -> None:
    records = example_run()
    other = [r.model_copy(update={"run_name": "other"}) for r in records]
    with pytest.raises(ValueError, match="another study or run"):
        card_of(records, given=other)


def test_a_title_is_text_on_the_page() -> None:
    assert "# A \\[title\\] with \\*marks\\*" in card_markdown(card_of(example_run()))


@pytest.mark.parametrize("text", ["", "<b>", "a\x00b", "x" * 2001])
def test_words_are_plain_text(text: str) -> None:
    said: dict[str, Any] = {"authors": text}
    with pytest.raises(ValidationError):
        WordsOfCard.model_validate(said)
