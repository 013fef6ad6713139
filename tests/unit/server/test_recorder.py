"""A crash between checkpoint and report must not lose a round's record."""

from typing import Any

import pytest

from fedhealth.durable import read_json
from fedhealth.errors import PrivacyError
from fedhealth.report.record import RoundRecord, canonical_json
from fedhealth.server.recorder import Recorder
from fedhealth.testing.example_rounds import example_run, run_with_site_level

RECORD = example_run()[0]


@pytest.fixture
def parts(new_consortium: Any) -> tuple[Recorder, Any]:
    consortium = new_consortium("site-1", "site-2")
    study, _ = consortium.server.require()
    folder = consortium.server.run(study.runs[0].name)
    return Recorder(consortium.server, study, study.runs[0]), folder


def test_the_record_in_a_checkpoint_becomes_the_missing_report(parts: tuple[Recorder, Any]) -> None:
    recorder, folder = parts
    recorder.recover(canonical_json(RECORD))
    (written,) = folder.reports.glob("round-*.json")
    assert RoundRecord.model_validate_json(written.read_bytes()) == RECORD
    assert (folder.reports / "index.html").exists()
    recorder.waiting(1, 2)
    assert read_json(folder.status)["rounds_done"] == RECORD.round_number


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
