"""`server roster` and `site pin`: who is in the study, shown to a person before it is believed."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedhealth.cli.app import run
from fedhealth.errors import ExitCode

from ..conftest import study_content  # noqa: TID252 - tests are no installed package

MASKED = study_content(min_cohort=3) | {"secure_aggregation": {}}
SITES = ("site-1", "site-2", "site-3")


def test_a_roster_is_written_shown_and_pinned(
    new_consortium: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    consortium = new_consortium(*SITES, content=MASKED)
    path = tmp_path / "roster.json"
    assert (
        run(
            [
                "server",
                "roster",
                "--home",
                str(consortium.server.root),
                "--out",
                str(path),
                "--json",
            ]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    home = consortium.sites["site-2"]
    home.study("scripted").roster.unlink()
    assert run(["site", "pin", str(path), "--home", str(home.root), "--yes", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["key_ids"] == said["key_ids"]
    assert captured.err.count("new ") == len(SITES)
    assert set(consortium.pinned("site-2").roster) == set(SITES)


def test_without_an_answer_nothing_is_pinned(new_consortium: Any, tmp_path: Path) -> None:
    consortium = new_consortium(*SITES, content=MASKED)
    path = tmp_path / "roster.json"
    run(["server", "roster", "--home", str(consortium.server.root), "--out", str(path)])
    home = consortium.sites["site-2"]
    home.study("scripted").roster.unlink()
    assert run(["site", "pin", str(path), "--home", str(home.root)]) != 0
    assert not home.study("scripted").roster.exists()


def test_a_roster_of_another_study_is_refused_with_exit_7(
    new_consortium: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = new_consortium(*SITES, content=MASKED)
    theirs = new_consortium(*SITES, content=MASKED, name="other")
    path = tmp_path / "roster.json"
    run(["server", "roster", "--home", str(theirs.server.root), "--out", str(path)])
    home = ours.sites["site-1"]
    code = run(["site", "pin", str(path), "--home", str(home.root), "--yes"])
    assert code == ExitCode.TRANSPORT_OR_IDENTITY
    assert "FH-IDENTITY" in capsys.readouterr().err
