"""How far each field of a record can be trusted: every field carries one class, and the report prints it.

A field is never shown under a stronger class than its source.
"""

import typing
from collections.abc import Iterator
from enum import StrEnum
from types import UnionType
from typing import Any

from pydantic import BaseModel


class Attestation(StrEnum):
    """Where a value comes from."""

    PROVEN = "P"
    """Anyone recomputes it offline from the record, the study file or the model."""
    SERVER_OBSERVED = "S"
    """The consortium's server saw it."""
    SITE_ATTESTED = "A"
    """The site said it under its signing key; nobody else can check it."""
    DECLARED = "D"
    """A person wrote it down in the study or at admission."""
    NOT_EVIDENCED = "N"
    """Listed so that its absence can be seen."""


def attestations(model: type[BaseModel]) -> dict[str, Attestation]:
    """Class of each leaf field by path, such as ``sites[].key_id``.

    Raises:
        TypeError: a leaf field carries no class, or more than one.
    """
    return dict(_walk(model, ""))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Attestation]]:
    for name, field in model.model_fields.items():
        classes = [item for item in field.metadata if isinstance(item, Attestation)]
        nested, is_list = _nested_model(field.annotation)
        path = f"{prefix}{name}{'[]' if is_list and not classes else ''}"
        if nested is not None and not classes:  # a model with a class is a leaf: all of it is
            yield from _walk(nested, f"{path}.")
            continue
        if len(classes) != 1:
            raise TypeError(f"{path} carries {len(classes)} attestation classes")
        yield path, classes[0]


def _nested_model(annotation: Any) -> tuple[type[BaseModel] | None, bool]:  # noqa: ANN401 - a type form
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin = typing.get_origin(annotation)
    for argument in typing.get_args(annotation):
        nested, _ = _nested_model(argument)
        if nested is not None:
            return nested, origin not in {typing.Union, UnionType}
    return None, False
