"""A crash between checkpoint and report must not lose a round's record."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedhealth.durable import read_json
from fedhealth.errors import PrivacyError
from fedhealth.report.record import RoundRecord, canonical_json
from fedhealth.server.home import ServerHome
from fedhealth.server.recorder import Recorder
from fedhealth.testing.example_rounds import example_run, run_with_site_level

RECORD = example_run()[0]


def recorder_of(server: ServerHome) -> Recorder:
    study, _ = server.require()
    return Recorder(server, study, study.runs[0])


@pytest.fixture
def server(new_consortium: Any) -> ServerHome:
    home: ServerHome = new_consortium("site-1", "site-2").server
    return home


@pytest.fixture
def parts(server: ServerHome) -> tuple[Recorder, Any]:
    study, _ = server.require()
    return recorder_of(server), server.run(study.runs[0].name)


def test_the_record_in_a_checkpoint_becomes_the_missing_report(parts: tuple[Recorder, Any]) -> None:
    recorder, folder = parts
    recorder.recover(canonical_json(RECORD))
    (written,) = folder.reports.glob("round-*.json")
    assert RoundRecord.model_validate_json(written.read_bytes()) == RECORD
    assert (folder.reports / "index.html").exists()
    recorder.waiting(1, 2)
    assert read_json(folder.status)["rounds_done"] == RECORD.round_number


def test_a_server_reads_the_rounds_before_its_start_once_and_its_own_never(
    server: ServerHome, parts: tuple[Recorder, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder = parts
    read, read_bytes = Counter[str](), Path.read_bytes

    def counting(path: Path) -> bytes:
        if path.parent == folder.reports:
            read[path.name] += 1
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    rounds = [RECORD.model_copy(update={"round_number": number}) for number in range(1, 21)]
    for record in rounds[:10]:
        first.recover(canonical_json(record))
    assert not read
    restarted = recorder_of(server)
    for record in rounds[10:]:
        restarted.recover(canonical_json(record))
    assert read == {f"round-{number:04d}.json": 1 for number in range(1, 11)}


def test_a_report_that_is_there_is_not_replaced(parts: tuple[Recorder, Any]) -> None:
    recorder, folder = parts
    recorder.recover(canonical_json(RECORD))
    (written,) = folder.reports.glob("round-*.json")
    before = written.stat().st_mtime_ns
    recorder.recover(canonical_json(RECORD))
    assert written.stat().st_mtime_ns == before


def test_the_initial_model_has_no_record_to_recover(parts: tuple[Recorder, Any]) -> None:
    recorder, folder = parts
    recorder.recover(b"")
    assert not folder.reports.exists()


def test_a_run_does_not_go_on_before_a_model_that_was_released_with_site_level_privacy(
    parts: tuple[Recorder, Any],
) -> None:
    """Going back would release a round twice and count it once; without that privacy it is allowed."""
    recorder, folder = parts
    recorder.recover(canonical_json(RECORD))
    recorder.check_no_release_is_lost(RECORD.round_number - 1)
    newest = next(r for r in reversed(run_with_site_level(3)) if r.site_level is not None)
    (folder.reports / "round-9999.json").write_bytes(canonical_json(newest))
    recorder.check_no_release_is_lost(newest.round_number)
    with pytest.raises(PrivacyError, match="FH-PRIVACY-091"):
        recorder.check_no_release_is_lost(newest.round_number - 1)
