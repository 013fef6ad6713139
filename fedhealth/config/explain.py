"""Turn pydantic's errors into problems with a line, in words a hospital's administrator can act on."""

import difflib
from collections.abc import Iterator
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedhealth.config.source import Location, Problem, Source

_TYPES: Final = {
    "int": "Write a whole number, such as 3.",
    "float": "Write a number, such as 0.5.",
    "finite": "Write a number, such as 0.5.",
    "bool": "Write true or false.",
    "string": "Write text; put it in quotes if it looks like a number.",
    "tuple": "Write a list, such as [1, 2].",
    "list": "Write a list, such as [1, 2].",
    "dict": "Write an indented block of `key: value` lines.",
    "model": "Write an indented block of `key: value` lines.",
    "path": "Write the path of a folder, in quotes.",
}
_LIMITS: Final = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_LENGTHS: Final = {
    "too_short": ("min_length", "at least"),
    "string_too_short": ("min_length", "at least"),
    "too_long": ("max_length", "at most"),
    "string_too_long": ("max_length", "at most"),
}
_PATTERNS: Final = {
    r"^[a-z][a-z0-9-]{1,39}$": "2 to 40 lower-case letters, digits and dashes, a letter first: st-mary",
    r"^[a-z][a-z0-9_]{0,63}$": "lower-case letters, digits and underscores, a letter first: blood_pressure",
    r"^[a-z][a-z0-9_-]{0,63}$": "lower-case letters, digits, dashes, underscores, a letter first: fedavg",
    r"^[RL][AP][SI]$": "three letters such as RAS or LPS",
}
_VERSION_KEY: Final = ("schema_version",)


def explain(error: ValidationError, source: Source, model: type[BaseModel]) -> list[Problem]:
    """All problems of one validation, in pydantic's order; union members that tell the same are merged."""
    problems = {}
    for detail in error.errors(include_url=False, include_context=True):
        if _is_echo(detail):
            continue
        problem = _problem(detail, source, model)
        problems[problem.line, problem.what] = problem
    return list(problems.values())


def _is_echo(detail: ErrorDetails) -> bool:
    """A list whose items are wrong is also reported as too short, since wrong items are not counted."""
    if detail["type"] != "too_short" or not isinstance(detail["input"], list):
        return False
    return len(detail["input"]) >= int(detail["ctx"]["min_length"])


def _problem(detail: ErrorDetails, source: Source, model: type[BaseModel]) -> Problem:
    location: Location = detail["loc"]
    line = source.line_of(location)
    path = source.path_of(location) or "the file"
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return Problem(line=line, code="FH-CONFIG-005", **_unknown(path, str(location[-1]), known))
    if kind == "missing":
        field = _fields_at(model, location[:-1]).get(str(location[-1]))
        what, fix = (
            f"lacks the key `{source.path_of(location, keep_last=True)}`",
            _add(str(location[-1]), field),
        )
        return Problem(line=line, code="FH-CONFIG-006", what=what, fix=fix)
    if location == _VERSION_KEY:
        what = f"has schema_version {_shown(detail['input'])}"
        fix = "Write schema_version: 1, the one version that this release reads."
        return Problem(line=line, code="FH-CONFIG-009", what=what, fix=fix)
    if kind == "value_error":
        reason = str(detail["ctx"]["error"]).rstrip(".")
        fix = "Change the keys of that block to fit."
        return Problem(line=line, code="FH-CONFIG-008", what=f"`{path}`: {reason}", fix=fix)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        choices = str(detail["ctx"].get("expected_tags", "'table', 'volume'")).replace("'", "")
        what, fix = f"`{path}` is of no known kind", f"Write kind: followed by one of: {choices}."
        return Problem(line=line, code="FH-CONFIG-007", what=what, fix=fix)
    what = f"`{path}` is {_shown(detail['input'])}"
    return Problem(line=line, code="FH-CONFIG-007", what=what, fix=_remedy(detail))


def _unknown(path: str, key: str, known: dict[str, FieldInfo]) -> dict[str, str]:
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        fix = f"Did you mean `{near[0]}`?"
    elif known:
        fix = f"Keys here are: {', '.join(known)}."
    else:
        fix = "Remove it."
    return {"what": f"has the unknown key `{path}`", "fix": fix}


def _add(key: str, field: FieldInfo | None) -> str:
    description = f" {field.description}" if field is not None and field.description else ""
    return f"Add `{key}:`.{description}"


def _remedy(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"Write a number that is {words} {context[name]}."
    if kind == "literal_error":
        return _choose(str(context["expected"]), detail["input"])
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        return f"Write {_PATTERNS.get(pattern, f'text that fits {pattern}')}."
    if kind in _LENGTHS:
        name, words = _LENGTHS[kind]
        return f"Give {words} {context[name]}."
    return _TYPES.get(kind.partition("_")[0], f"{detail['msg']}.")


def _choose(expected: str, given: object) -> str:
    choices = expected.replace(" or ", ", ").replace("'", "").split(", ")
    near = difflib.get_close_matches(str(given), choices, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{hint}Write one of: {', '.join(choices)}."


def _shown(value: object) -> str:
    """A configuration value for a message, at most 60 characters."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a block"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    limit = 60
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _fields_at(model: type[BaseModel], location: Location) -> dict[str, FieldInfo]:
    """Fields of the model that sits at `location`; none if there is no model there."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:
            models = [m for field in fields for m in _models_in(field.annotation)]
        else:
            models = [m for m in models if part in _tags(m)]
    return {name: field for m in models for name, field in m.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _tags(model: type[BaseModel]) -> tuple[object, ...]:
    field = model.model_fields.get("kind")
    is_literal = field is not None and get_origin(field.annotation) is Literal
    return get_args(field.annotation) if field is not None and is_literal else ()
