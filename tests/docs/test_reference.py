"""The generated reference is in date."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("cli.md", "configuration.md", "exit-codes.md", "plugins.md", "round-record.md")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = ROOT / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_the_generated_reference_is_in_date(page: str, generator: ModuleType) -> None:
    written = (ROOT / "docs" / "reference" / page).read_text("utf-8")
    assert written == generator.pages()[page], "run `make docs`"


def test_every_command_is_documented_with_every_option(generator: ModuleType) -> None:
    text = generator.pages()["cli.md"]
    for line in ("fedhealth study check", "fedhealth server run", "fedhealth site start", "--json"):
        assert line in text


def test_every_configuration_key_has_a_meaning(generator: ModuleType) -> None:
    rows = [r for r in generator.pages()["configuration.md"].splitlines() if r.startswith("| `")]
    assert [row for row in rows if row.rstrip(" |").count(" | ") < 3] == []
