"""The round record is closed: no free text, no contradiction, one attestation class a field."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.report import wording
from fedhealth.report.attestation import Attestation, attestations
from fedhealth.report.record import (
    NotEvidenced,
    RoundRecord,
    SiteFact,
    SiteStatus,
    canonical_json,
    mean_metrics,
    record_digest,
)
from fedhealth.report.run_record import RunRecord, run_record
from fedhealth.report.schema import MetricName
from fedhealth.testing.example_rounds import (
    bare_run,
    example_run,
    run_with_site_level,
    run_without_privacy,
)

ROUNDS = example_run()


def string_paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a record holds strings, as values."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from string_paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from string_paths(item, (*path, index))


def replaced(value: Any, path: tuple[str | int, ...], new: object) -> Any:
    if not path:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)  # type: ignore[call-overload, index]
    return copy


DUMPS = [
    record.model_dump(mode="json")
    for record in [*ROUNDS, run_with_site_level(4)[0], run_without_privacy()[0]]
]
# One path for each place in the schema: which hospital it is makes no difference.
PATHS = sorted(
    {
        tuple("[]" if isinstance(part, int) else part for part in path): path
        for dump in DUMPS
        for path in string_paths(dump)
    }.values(),
    key=str,
)


def has(value: Any, path: tuple[str | int, ...]) -> bool:
    try:
        for key in path:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        return False
    return isinstance(value, str)


# A sentence, a name, a path, markup: whatever holds a character that no id, digest or version has.
FREE_TEXT = st.text(max_size=60).filter(
    lambda text: not text or any(not (c.isascii() and (c.isalnum() or c in "-_.:+")) for c in text)
)


@given(data=st.data(), text=FREE_TEXT)
@settings(max_examples=300, deadline=None)
def test_no_field_takes_free_text(data: st.DataObject, text: str) -> None:
    path = data.draw(st.sampled_from(PATHS))
    dump = next(dump for dump in DUMPS if has(dump, path))
    with pytest.raises(ValidationError):
        RoundRecord.model_validate(replaced(dump, path, text))


@pytest.mark.parametrize(
    "text", ["DOE^JOHN", "John Doe", "<script>", "1950-01-01 ", "x" * 300, "a\n"]
)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_no_field_takes_a_name_markup_or_a_trailing_newline(
    path: tuple[str | int, ...], text: str
) -> None:
    dump = next(dump for dump in DUMPS if has(dump, path))
    with pytest.raises(ValidationError):
        RoundRecord.model_validate(replaced(dump, path, text))


def test_metric_names_are_a_closed_list() -> None:
    assert set(get_args(MetricName)) == set(METRIC_RANGES)
    dump = replaced(DUMPS[0], ("aggregate_train_metrics",), {"patient_name": 1.0})
    with pytest.raises(ValidationError):
        RoundRecord.model_validate(dump)


def test_unknown_fields_are_refused_at_every_level() -> None:
    account = ("sites", 0, "privacy")
    for path in [
        *((), ("sites", 0), ("tensors", 0), ("timings",), ("versions",), ("patient_privacy",)),
        *(account, (*account, "round_events", 0), ("site_level",), ("site_level", "run_events", 0)),
    ]:
        dump: Any = DUMPS[len(ROUNDS)]  # a round with every kind of account
        inner: Any = dump
        for key in path:
            inner = inner[key]
        with pytest.raises(ValidationError):
            RoundRecord.model_validate(replaced(dump, path, {**inner, "note": 1}))


@pytest.mark.parametrize("model", [RoundRecord, RunRecord])
def test_every_field_carries_one_attestation_class(model: type[BaseModel]) -> None:
    classes = attestations(model)
    assert classes
    assert set(classes.values()) <= set(Attestation)


def test_field_without_a_class_is_found() -> None:
    class Forgetful(BaseModel):
        value: int

    with pytest.raises(TypeError, match="value carries 0"):
        attestations(Forgetful)


def test_what_only_a_site_can_know_is_not_shown_as_more_than_its_word() -> None:
    classes = attestations(RoundRecord)
    assert classes["sites[].train_metrics"] is Attestation.SITE_ATTESTED
    assert classes["sites[].evaluate_metrics"] is Attestation.SITE_ATTESTED
    assert classes["aggregate_evaluate_metrics"] is Attestation.SITE_ATTESTED
    assert classes["sites[].declared_train_size"] is Attestation.DECLARED
    assert classes["sites[].privacy.round_events"] is Attestation.SITE_ATTESTED
    assert classes["sites[].privacy.study_events"] is Attestation.SITE_ATTESTED
    assert classes["sites[].privacy.delta"] is Attestation.SITE_ATTESTED
    assert classes["site_level.run_events"] is Attestation.SERVER_OBSERVED


@pytest.mark.parametrize("record", ROUNDS, ids=lambda r: f"{r.round_number}-{r.attempt}-{r.kind}")
def test_canonical_json_reads_back_to_the_same_record_and_bytes(record: RoundRecord) -> None:
    data = canonical_json(record)
    again = RoundRecord.model_validate_json(data)
    assert again == record
    assert canonical_json(again) == data
    assert record_digest(again) == record_digest(record)


CONTRADICTIONS: dict[str, tuple[int, tuple[str | int, ...], object]] = {
    "a void round with another model": (2, ("model_out_sha256",), "0" * 64),
    "an evaluation with another model": (4, ("model_out_sha256",), "0" * 64),
    "a void round without a reason": (2, ("void_reason",), None),
    "a complete round with a reason": (0, ("void_reason",), "interrupted"),
    "a complete round below the minimum cohort": (0, ("min_cohort",), 5),
    "a contributor in a void round": (2, ("sites", 1, "status"), "contributed"),
    "an unused answer in a complete round": (0, ("sites", 1, "status"), "unused"),
    "a dropped site without a code": (1, ("sites", 2, "drop_code"), None),
    "a code without a drop": (0, ("sites", 0, "drop_code"), "deadline"),
    "a site twice": (0, ("sites", 1, "site_id"), "hospital-north"),
    "a tensor twice": (0, ("tensors", 1, "name"), "image.conv1.weight"),
    "another number of parameters": (0, ("num_parameters",), 994),
    "another tensor spec": (0, ("tensor_spec_sha256",), "0" * 64),
    "a Brier score above one": (0, ("sites", 0, "evaluate_metrics", "brier"), 1.01),
    "a metric that is not a number": (0, ("sites", 0, "evaluate_metrics", "brier"), float("nan")),
    "a mean that no site released": (0, ("aggregate_evaluate_metrics",), {"auc": 0.9}),
    "a training mean that no site released": (0, ("aggregate_train_metrics",), {"train_loss": 0.3}),
    "negative bytes": (0, ("sites", 0, "update_bytes"), -1),
    "a Flower run id as a number": (0, ("flower_run_id",), 12),
    "a repeated line of what is not evidenced": (0, ("not_evidenced", 1), "secure_aggregation"),
    "a privacy cost that is both known and open": (0, ("not_evidenced", 0), "privacy_accounting"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradiction_is_refused(name: str) -> None:
    index, path, value = CONTRADICTIONS[name]
    with pytest.raises(ValidationError):
        RoundRecord.model_validate(replaced(DUMPS[index], path, value))


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"train_metrics": {"train_loss": 0.3}}, "training patients"),
        ({"evaluate_metrics": {"auc": 0.8}}, "no bound for one patient"),
        ({"evaluate_metrics": {"calibration_error": 0.1}}, "no bound for one patient"),
        ({"evaluate_metrics": {"brier": 0.2}, "unpaid": True}, "did not pay for"),
    ],
)
def test_a_bounded_account_stands_beside_metrics_that_it_paid_for_only(
    metrics: dict[str, Any], reason: str
) -> None:
    dump = ROUNDS[0].sites[0].model_dump(mode="json")
    if metrics.pop("unpaid", False):  # the release of metrics is in another round
        dump["privacy"]["round_events"] = dump["privacy"]["round_events"][:1]
    with pytest.raises(ValidationError, match=reason):
        SiteFact.model_validate(dump | metrics)
    bare = run_without_privacy()[0].sites[0].model_dump(mode="json")
    SiteFact.model_validate(bare | metrics)  # claims no bound, may say anything


SITE_LEVEL_CONTRADICTIONS: dict[str, tuple[tuple[str | int, ...], object]] = {
    "the other mechanism's strategy": (("strategy",), "dp-ftrl"),
    "less noise than the event says": (("site_level", "noise_std"), 1.5 * 0.4 / 24 * 0.999),
    "more noise than the event says": (("site_level", "noise_std"), 1.5 * 0.4 / 24 * 1.001),
    "another denominator": (("site_level", "num_sites"), 25),
    "no denominator": (("site_level", "num_sites"), 0),
    "another clipping norm": (("site_level", "clipping_norm"), 0.5),
    "more releases than rounds": (("round_number",), 1),
    "three releases in a round": (("site_level", "round_events", 0, "steps"), 3),
    "no badge where there should be one": (("site_level", "shows_badge"), False),
    "a badge for hospitals that are not there": (("sites",), None),
}


@pytest.mark.parametrize("name", SITE_LEVEL_CONTRADICTIONS)
def test_a_site_level_account_that_contradicts_its_record_is_refused(name: str) -> None:
    dump = run_with_site_level(24)[1].model_dump(mode="json")
    assert RoundRecord.model_validate(dump).site_level is not None
    path, value = SITE_LEVEL_CONTRADICTIONS[name]
    value = dump["sites"][:19] if path == ("sites",) else value
    with pytest.raises(ValidationError):
        RoundRecord.model_validate(replaced(dump, path, value))


def test_mean_is_weighted_by_declared_size_over_metrics_that_all_released() -> None:
    sites = bare_run()[0].sites
    means = mean_metrics(sites, "evaluate")
    assert "auc" not in means  # st-anne's validation patients are of one class
    total = sum(site.declared_train_size for site in sites)
    expected = sum(s.declared_train_size * s.evaluate_metrics["brier"] for s in sites) / total
    assert means["brier"] == pytest.approx(expected)
    dropped = [site.model_copy(update={"status": SiteStatus.NOT_INVITED}) for site in sites]
    assert mean_metrics(dropped, "evaluate") == {}


def test_run_record_says_what_its_rounds_say_in_their_order() -> None:
    run = run_record(ROUNDS[::-1])
    assert [line.round_number for line in run.rounds] == [1, 2, 3, 3, 4]
    assert [line.status for line in run.rounds].count("void") == 1
    assert run.rounds[1].record_sha256 == record_digest(ROUNDS[1])
    assert (run.rounds[1].contributed, run.rounds[1].dropped) == (3, 1)


def test_run_record_refuses_rounds_of_two_runs() -> None:
    other = ROUNDS[1].model_copy(update={"run_name": "other-run"})
    with pytest.raises(ValueError, match="one run"):
        run_record([ROUNDS[0], other])


def test_every_code_has_its_words() -> None:
    from fedhealth.contracts.codes import DropCode
    from fedhealth.report.record import VoidReason

    assert set(wording.DROP) == set(DropCode)
    assert set(wording.VOID) == set(VoidReason)
    assert set(wording.NOT_EVIDENCED) == set(NotEvidenced)
    assert set(wording.STATUS) == set(SiteStatus) == set(wording.STATUS_SENTENCE)
    assert set(wording.ATTESTATION) == set(Attestation)
    assert set(wording.METRIC) == set(METRIC_RANGES)
