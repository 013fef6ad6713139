"""YAML text to plain values and line numbers, for `config.load`. Nothing here knows a configuration model.

The reader takes the part of YAML 1.2 that configuration needs: blocks, lists, text, numbers, true/false, null.
Anchors, aliases, tags, tabs and several documents are refused, so a file means what it looks like, cannot
grow when it is read, and cannot build objects. `1e-3` is a number and `no` is text, unlike in YAML 1.1.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_FILE_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 24
MAX_PROBLEMS: Final = 50
"""A study nests about eight deep; more is a mistake or an attack on the reader's stack."""

Location = tuple[str | int, ...]

_PLAIN: Final = {
    "tag:yaml.org,2002:null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "tag:yaml.org,2002:int": (re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
        list("-+.0123456789"),
    ),
}


class Loader(yaml.SafeLoader):
    """SafeLoader with the YAML 1.2 core rules for plain scalars."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes by the same rules, so that what it writes reads back the same."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's hook
        """Write repeated values out: our reader refuses aliases."""
        return True


for _tag, (_pattern, _first) in _PLAIN.items():
    Loader.add_implicit_resolver(_tag, _pattern, _first)
    Dumper.add_implicit_resolver(_tag, _pattern, _first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a file: where, what, and what to write instead."""

    line: int
    code: str
    what: str
    fix: str


class UnreadableSourceError(Exception):
    """The text cannot be turned into values; `problems` says why. Caught by `config.load`."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A parsed file: plain values, the line of each of them, and repeated keys."""

    values: object
    root: Node | None
    problems: tuple[Problem, ...]

    def line_of(self, location: Location) -> int:
        """Line (from 1) of the deepest part of `location` that the file has; parts it lacks are skipped.

        Skipping lets pydantic's locations in: they also name union members, which are not in the file.
        """
        node, line = self.root, 1
        for part in location:
            child = _child(node, part)
            if child is not None:
                node, line = child
        return line

    def path_of(self, location: Location, *, keep_last: bool = False) -> str:
        """`location` as people write it, such as `runs[0].strategy`, without union members.

        `keep_last` keeps the last part though the file lacks it: a missing key.
        """
        node, text = self.root, ""
        for index, part in enumerate(location):
            child = _child(node, part)
            is_last = index == len(location) - 1
            if child is None and not (is_last and keep_last):
                continue
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
            node = child[0] if child is not None else None
        return text


def parse(text: str) -> Source:
    """Parse a file's text.

    Raises:
        UnreadableSourceError: not the YAML that is accepted here.
    """
    _refuse_tabs(text)
    try:
        _refuse_features(text)
        root = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise UnreadableSourceError([_syntax_problem(error)]) from error
    problems: list[Problem] = []
    values = _value(root, problems)
    return Source(values=values, root=root, problems=tuple(problems[:MAX_PROBLEMS]))


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        UnreadableSourceError: FH-CONFIG-001 missing, not a file, over 1 MB or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            payload = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _unreadable(f"cannot be read ({reason})", "Check the name of the file.") from error
    if len(payload) > MAX_FILE_BYTES:
        raise _unreadable("is larger than 1 MB", "Configuration is small; is this another file?")
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable("is not UTF-8 text", "Save the file as UTF-8.") from error


def _unreadable(what: str, fix: str) -> UnreadableSourceError:
    return UnreadableSourceError([Problem(line=1, code="FH-CONFIG-001", what=what, fix=fix)])


def _refuse_tabs(text: str) -> None:
    lines = [number for number, line in enumerate(text.splitlines(), 1) if "\t" in line]
    if lines:
        raise UnreadableSourceError(
            [
                Problem(line=n, code="FH-CONFIG-002", what="has a tab", fix="Write spaces instead.")
                for n in lines[:MAX_PROBLEMS]
            ]
        )


def _refuse_features(text: str) -> None:
    """Walk the event stream, which is flat, before anything recursive touches the file."""
    problems: list[Problem] = []
    depth = documents = 0
    for event in yaml.parse(text, Loader=Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        feature = _refused_feature(event, depth, documents)
        if feature:
            what, fix = feature
            problems.append(Problem(line=line, code="FH-CONFIG-004", what=what, fix=fix))
        if depth > MAX_DEPTH or len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise UnreadableSourceError(problems)


def _refused_feature(event: yaml.Event, depth: int, documents: int) -> tuple[str, str] | None:
    if depth > MAX_DEPTH:
        return f"is nested more than {MAX_DEPTH} deep", "Use the flat layout of the templates."
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        return "uses an anchor or alias (& or *)", "Write the value out; quote text with & or *."
    if getattr(event, "tag", None):
        return "uses a tag (!)", "Remove it; quote text that begins with !."
    if documents > 1 and isinstance(event, yaml.DocumentStartEvent):
        return "starts a second document (---)", "Keep one document in a file."
    return None


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or type(error).__name__
    return Problem(
        line=mark.line + 1 if mark else 1,
        code="FH-CONFIG-002",
        what=f"is not valid YAML here: {what}",
        fix="Check indentation, colons followed by a space, brackets and quotes.",
    )


def _value(node: Node | None, problems: list[Problem]) -> object:
    if isinstance(node, MappingNode):
        return _mapping(node, problems)
    if isinstance(node, SequenceNode):
        return [_value(child, problems) for child in node.value]
    return _scalar(node) if isinstance(node, ScalarNode) else None


def _mapping(node: MappingNode, problems: list[Problem]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            what, fix = "has a list or block as a key", "Keys are plain words."
            problems.append(Problem(line=line, code="FH-CONFIG-002", what=what, fix=fix))
            continue
        key = key_node.value
        if key in values:
            what, fix = f"repeats the key `{key}`", "Keep one of the two."
            problems.append(Problem(line=line, code="FH-CONFIG-003", what=what, fix=fix))
            continue
        values[key] = _value(value_node, problems)
    return values


def _scalar(node: ScalarNode) -> object:
    kind = node.tag.rpartition(":")[2]
    text: str = node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int" and len(text) <= 20:  # noqa: PLR2004 - longer than any 64-bit integer
        return int(text)
    return float(text) if kind in ("int", "float") else text


def _child(node: Node | None, part: str | int) -> tuple[Node, int] | None:
    if isinstance(node, MappingNode) and isinstance(part, str):
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.value == part:
                return value, key.start_mark.line + 1
    if isinstance(node, SequenceNode) and isinstance(part, int) and 0 <= part < len(node.value):
        child = node.value[part]
        return child, child.start_mark.line + 1
    return None
