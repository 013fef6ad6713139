"""Nothing leaves a hospital that is neither public nor charged to its ledger: the schemas, walked field by field."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from fedhealth.evidence.benefit_row import BenefitRow, ReleasedGain
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Contribution, JoinRequest
from fedhealth.gate.outbound import Outbound
from fedhealth.report.outbound import LEAVES, OUTBOUND, Leaves
from fedhealth.secagg.statements import Agreement, MaskKey, Shares

STATEMENTS: tuple[type[BaseModel], ...] = (
    Envelope,
    JoinRequest,
    Contribution,
    MaskKey,
    Agreement,
    Shares,
    BenefitRow,
)
CHARGED_PAYLOADS = {"OutboundUpdate.payload", "OutboundMasked.payload"}
ROW_NUMBERS = {"OutboundBenefit.results", "OutboundBenefit.gains"} | {
    f"ReleasedGain.{name}"
    for name, field in ReleasedGain.model_fields.items()
    if field.annotation is float
}


def leaves(model: type) -> Iterator[tuple[str, Any]]:
    """Each leaf field of a schema as ``Class.field`` with its type; models inside come with their own name."""
    if issubclass(model, BaseModel):
        fields = {name: field.annotation for name, field in model.model_fields.items()}
    else:
        hints = typing.get_type_hints(model)
        fields = {field.name: hints[field.name] for field in dataclasses.fields(model)}
    for name, annotation in fields.items():
        inner = list(models_in(annotation))
        for nested in inner:
            yield from leaves(nested)
        if not inner:
            yield f"{model.__name__}.{name}", annotation


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """All models in a type form: in unions, tuples and `Annotated` too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def outbound_types() -> list[type]:
    found: list[type] = []
    waiting: list[type] = [Outbound]
    while waiting:
        kinds = waiting.pop().__subclasses__()
        found += kinds
        waiting += kinds
    return [kind for kind in found if kind.__module__.startswith("fedhealth.")]


def everything() -> dict[str, Any]:
    return {
        path: annotation
        for model in (*outbound_types(), *STATEMENTS)
        for path, annotation in leaves(model)
    }


def test_every_field_that_leaves_is_listed_and_every_listed_field_exists() -> None:
    found = set(everything())
    assert found - set(OUTBOUND) == set(), "neither charged nor public"
    assert set(OUTBOUND) - found == set(), "no such field any more"


def test_every_type_of_the_gate_is_walked() -> None:
    names = {kind.__name__ for kind in outbound_types()}
    assert {"OutboundUpdate", "OutboundMetrics", "OutboundCode", "OutboundKeys"} < names


def test_a_new_field_of_a_statement_is_found() -> None:
    class Extra(BaseModel):
        mean_age: float

    class Talkative(Contribution):
        num_patients: int = 0
        extra: tuple[Extra, ...] | None = None

    found = {path for path, _ in leaves(Talkative)}
    assert {"Talkative.num_patients", "Extra.mean_age"} <= found
    assert not {"Talkative.num_patients", "Extra.mean_age"} & set(OUTBOUND)


def test_a_new_field_of_an_outbound_message_is_found() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OutboundGossip(Outbound):
        count: int = 0

    assert "OutboundGossip.count" in {path for path, _ in leaves(OutboundGossip)}


def test_events_of_the_ledger_are_walked_one_by_one() -> None:
    found = {path for path, _ in leaves(Contribution)}
    assert "PoissonSubsampledGaussian.sampling_rate" in found
    assert "UnboundedRelease.steps" in found


def test_what_is_computed_from_patients_is_charged() -> None:
    computed = {
        path
        for path, annotation in everything().items()
        if "metrics" in path or path in ROW_NUMBERS or (path in CHARGED_PAYLOADS and annotation)
    }
    assert {path for path, (kind, _) in OUTBOUND.items() if kind is Leaves.CHARGED} == computed


@pytest.mark.parametrize("model", STATEMENTS[1:], ids=lambda m: m.__name__)
def test_public_text_is_of_a_bounded_pattern(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    definitions = {model.__name__: schema, **schema.get("$defs", {})}
    for name, definition in definitions.items():
        for field, form in definition.get("properties", {}).items():
            kind, _ = OUTBOUND.get(f"{name}.{field}", (Leaves.CRYPTOGRAPHIC, ""))
            if kind is not Leaves.CRYPTOGRAPHIC:
                assert not list(free_strings(form)), f"{name}.{field}"


def free_strings(form: Any) -> Iterator[dict[str, Any]]:
    """Strings in a JSON schema that are neither an enum nor of a pattern."""
    if isinstance(form, dict):
        closed = {"pattern", "enum", "const"} & set(form)
        if form.get("type") == "string" and not closed:
            yield form
        for value in form.values():
            yield from free_strings(value)
    elif isinstance(form, list):
        for value in form:
            yield from free_strings(value)


def test_every_reason_is_given() -> None:
    assert set(LEAVES) == set(Leaves)
    assert all(reason for _, reason in OUTBOUND.values())
