"""The YAML that is accepted, and the YAML that is refused."""

from pathlib import Path

import pytest

from fedhealth.config.source import MAX_DEPTH, UnreadableSourceError, parse, read_text


def refused(text: str) -> list[tuple[int, str]]:
    with pytest.raises(UnreadableSourceError) as caught:
        parse(text)
    return [(problem.line, problem.code) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-.5", -0.5),
        ("010", 10),
        ("1:30", "1:30"),
        ("no", "no"),
        ("2024-01-31", "2024-01-31"),
        ("true", True),
        ("~", None),
        ("'7'", "7"),
        ("0x10", "0x10"),
    ],
)
def test_plain_words_mean_what_they_look_like(text: str, value: object) -> None:
    assert parse(f"key: {text}\n").values == {"key": value}


@pytest.mark.parametrize(
    "text",
    ["a: &x 1\nb: *x\n", "a: !!python/object/apply:os.system ['true']\n", "a: 1\n---\nb: 2\n"],
)
def test_anchors_tags_and_second_documents_are_refused(text: str) -> None:
    assert {code for _, code in refused(text)} == {"FH-CONFIG-004"}


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    rows = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    rows += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert refused("\n".join(rows))


def test_a_deep_file_is_refused_without_recursion() -> None:
    assert refused("[" * 100_000) == [(1, "FH-CONFIG-004")]
    assert refused("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_every_line_with_a_tab_is_named() -> None:
    assert refused("a: 1\n\tb: 2\nc:\t3\n") == [(2, "FH-CONFIG-002"), (3, "FH-CONFIG-002")]


def test_a_syntax_error_has_its_line() -> None:
    assert refused("a: 1\nb: [1, 2\nc: 3\n")[0][0] >= 2


def test_a_repeated_key_is_a_problem_and_the_first_one_holds() -> None:
    source = parse("a: 1\nb: 2\na: 3\n")
    assert source.values == {"a": 1, "b": 2}
    assert [(p.line, p.code) for p in source.problems] == [(3, "FH-CONFIG-003")]


def test_a_file_over_one_megabyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(UnreadableSourceError, match="1 problems"):
        read_text(path)


@pytest.mark.parametrize("payload", [b"\xff\xfe\x00a", b"id: \xe9\n"])
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(payload)
    with pytest.raises(UnreadableSourceError):
        read_text(path)


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(UnreadableSourceError):
            read_text(path)
