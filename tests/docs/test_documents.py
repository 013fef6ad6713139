"""Documents hold what they say: links, commands, test ids, and no claim that nobody can make."""

import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
import typer

from fedhealth.cli.app import Commands

ROOT = Path(__file__).parents[2]
CLAIMS = re.compile(r"\b(compliant|guaranteed|anonymous|anonymi[sz]ed|unhackable)\b", re.IGNORECASE)
DISCLAIMER = "claims we do not make"
MACHINE_PATHS = re.compile(r"(?<![\w./-])/(?:work|home|root|Users|tmp|mnt|opt)/[\w.-]+")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)(?:::([\w:]+))?`")
COMMAND = re.compile(r"^\$?\s*fedhealth ((?:[a-z]+ ?){1,2}.*)$")
REPOSITORY_TEXT = (".md", ".py", ".yaml", ".toml", ".html", ".j2", ".css")


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:  # an unpacked source archive has no repository
        return [p for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts]
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def documents() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sections(text: str) -> Iterator[tuple[str, str]]:
    title, lines = "", []
    for line in text.splitlines():
        if line.startswith("#"):
            yield title, "\n".join(lines)
            title, lines = line.lstrip("# ").lower(), []
        lines.append(line)
    yield title, "\n".join(lines)


@pytest.mark.parametrize("path", documents(), ids=name)
def test_links_resolve(path: Path) -> None:
    text = path.read_text("utf-8")
    local = [
        link for link in LINK.findall(text) if "://" not in link and not link.startswith("mailto:")
    ]
    missing = []
    for link in local:
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            missing.append(link)
    assert missing == []


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", documents(), ids=name)
def test_no_document_claims_what_nobody_can(path: Path) -> None:
    found = [
        (title, word)
        for title, text in sections(path.read_text("utf-8"))
        if DISCLAIMER not in title and name(path) != "CONTRIBUTING.md"
        for word in CLAIMS.findall(text)
    ]
    assert found == []


def test_no_page_or_message_in_the_package_claims_what_nobody_can() -> None:
    shipped = [p for p in tracked() if p.is_relative_to(ROOT / "fedhealth")]
    texts = [p for p in shipped if p.suffix in (".py", ".html", ".j2")]
    found = [(name(p), CLAIMS.findall(p.read_text("utf-8"))) for p in texts]
    assert [entry for entry in found if entry[1]] == []


def test_no_path_of_somebodys_machine_is_written_down() -> None:
    here = Path(__file__).resolve()
    found = {
        name(p): MACHINE_PATHS.findall(p.read_text("utf-8"))
        for p in tracked()
        if p.suffix in REPOSITORY_TEXT and p.resolve() != here
    }
    assert {key: value for key, value in found.items() if value} == {}


@pytest.mark.parametrize("path", documents(), ids=name)
def test_every_test_that_a_document_names_exists(path: Path) -> None:
    missing = []
    for file, test in TEST_ID.findall(path.read_text("utf-8")):
        module = ROOT / file
        text = module.read_text("utf-8") if module.is_file() else ""
        parts = [part for part in test.split("::") if part]
        if not text or not all(re.search(rf"(def|class) {part}\b", text) for part in parts):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_every_row_of_the_security_table_names_a_test() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    table = next(body for title, body in sections(text) if title.startswith("what is protected"))
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert rows
    assert [row for row in rows if not TEST_ID.search(row)] == []


def commands_in(path: Path) -> list[str]:
    text = path.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [match[1] for line in lines if (match := COMMAND.match(line.strip()))]


DOCUMENTED = [
    (path, command) for path in documents() for command in commands_in(path) if "──" not in command
]


@pytest.mark.parametrize(("path", "line"), DOCUMENTED, ids=[line for _, line in DOCUMENTED])
def test_every_command_in_a_code_block_exists(path: Path, line: str) -> None:
    words = line.partition("#")[0].split()
    assert words[0] in Commands.members, path
    command = typer.main.get_command(import_module(Commands.members[words[0]][0]).app)
    if isinstance(command, click.Group) and len(words) > 1 and not words[1].startswith("-"):
        assert words[1] in command.commands
        command = command.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_document_that_code_refers_to_exists() -> None:
    found = set()
    for path in tracked():
        if path.suffix == ".py":
            found |= set(
                re.findall(r"\b(docs/[\w/-]+\.md|docs/adr/\d{4})\b", path.read_text("utf-8"))
            )
    missing = [
        ref for ref in found if not list(ROOT.glob(ref if ref.endswith(".md") else f"{ref}-*"))
    ]
    assert missing == []


def test_every_decision_is_listed_and_has_its_four_parts() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text("utf-8")
    for path in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")):
        assert path.name in index
        titles = [title for title, _ in sections(path.read_text("utf-8"))]
        assert titles[2:] == ["context", "decision", "cost", "how we would know it was wrong"]


def test_every_document_is_reachable_from_the_index_or_the_readme() -> None:
    reachable = {ROOT / "README.md", ROOT / "docs" / "index.md"}
    while True:
        links = {
            (page.parent / link.partition("#")[0]).resolve()
            for page in reachable
            if page.suffix == ".md" and page.is_file()
            for link in LINK.findall(page.read_text("utf-8"))
            if "://" not in link
        }
        if links <= reachable:
            break
        reachable |= links
    docs = {path for path in documents() if path.is_relative_to(ROOT / "docs")}
    assert {name(path) for path in docs - reachable} == set()


def test_no_module_is_longer_than_the_style_guide_allows() -> None:
    longest = 400
    python = [p for p in tracked() if p.suffix == ".py" and not p.is_relative_to(ROOT / "tests")]
    lengths = {name(p): len(p.read_text("utf-8").splitlines()) for p in python}
    assert {key: value for key, value in lengths.items() if value > longest} == {}
