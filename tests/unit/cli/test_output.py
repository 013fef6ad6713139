"""Text for people on stderr, one JSON object for programs on stdout."""

import json

import pytest

from fedhealth.cli.output import emit_json, say, table


def test_emit_json_is_one_versioned_line(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json("site-status", {"round": 3}, version=2)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    expected = {"schema": "fedhealth.site-status", "schema_version": 2, "round": 3}
    assert json.loads(out) == expected


def test_emit_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit_json("x", {"auc": float("nan")})


def test_say_keeps_stdout_clean(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_table_aligns_text_left_and_numbers_right() -> None:
    text = table(["site", "auc"], [["a", 0.5], ["long-name", None], ["b", 12]])
    assert text.splitlines() == [
        "site         auc",
        "---------  -----",
        "a          0.500",
        "long-name      -",
        "b             12",
    ]


def test_table_without_rows_is_its_headers() -> None:
    assert table(["site"], []).splitlines() == ["site", "----"]
