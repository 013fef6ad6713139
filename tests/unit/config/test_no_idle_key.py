"""A key that nothing reads is a promise that nobody keeps."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from fedhealth.config.explain import _models_in
from fedhealth.config.load import KINDS

PACKAGE = Path(__file__).parents[3] / "fedhealth"
MODELS = {
    PACKAGE / "config" / name
    for name in ("base.py", "data.py", "site.py", "server.py", "study.py", "secure_aggregation.py")
}
FOR_PEOPLE = {"title", "unit", "schema_version"}


def keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for inner in _models_in(field.annotation):
            yield from keys(inner)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_key_is_read_somewhere(kind: str) -> None:
    sources = [path for path in PACKAGE.rglob("*.py") if path not in MODELS]
    text = "\n".join(path.read_text("utf-8") for path in sources)
    text += (PACKAGE / "config" / "data.py").read_text("utf-8").partition("def to_contract")[2]
    idle = {k for k in keys(KINDS[kind]) if not re.search(rf"\.{k}\b", text)}
    assert idle - FOR_PEOPLE == set()
