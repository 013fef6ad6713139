"""Files on disk: whole or absent, and read back with suspicion."""

from pathlib import Path

import pytest

from fedhealth.errors import EvidenceError
from fedhealth.report.record import canonical_json, record_digest, round_order
from fedhealth.report.write import RunReports, read_round, read_rounds, write_round
from fedhealth.testing.example_rounds import example_run

ROUNDS = example_run()


def test_round_is_written_as_record_page_and_index(tmp_path: Path) -> None:
    paths = write_round(tmp_path, ROUNDS[0], study_title="A title")
    assert paths.record.name == "round-0001.json"
    assert paths.page.name == "round-0001.html"
    assert "A title" in paths.index.read_text()
    assert {p.name for p in tmp_path.iterdir()} == {
        "round-0001.json",
        "round-0001.html",
        "run.json",
        "index.html",
    }


def test_file_of_a_record_has_the_digest_that_its_page_names(tmp_path: Path) -> None:
    import hashlib

    paths = write_round(tmp_path, ROUNDS[0])
    digest = hashlib.sha256(paths.record.read_bytes()).hexdigest()
    assert digest == record_digest(ROUNDS[0])
    assert digest in paths.page.read_text()
    assert digest in paths.run_record.read_text()


def test_repeated_round_keeps_the_void_one(tmp_path: Path) -> None:
    for record in ROUNDS:
        write_round(tmp_path, record)
    assert read_rounds(tmp_path) == sorted(ROUNDS, key=round_order)


def test_writing_a_round_again_changes_nothing(tmp_path: Path) -> None:
    for record in ROUNDS:
        write_round(tmp_path, record)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write_round(tmp_path, ROUNDS[-1])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_run_that_goes_on_writes_what_reading_all_rounds_again_would_write(
    tmp_path: Path,
) -> None:
    reports = RunReports(tmp_path / "kept")
    for record in [*ROUNDS[:3], ROUNDS[2], *ROUNDS[3:]]:
        reports.write(record, "A title")
        write_round(tmp_path / "read", record, "A title")
    kept, read = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("kept", "read")
    )
    assert kept == read


def test_a_round_that_is_refused_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    reports = RunReports(tmp_path)
    reports.write(ROUNDS[0])
    with pytest.raises(EvidenceError, match="FH-REPORT-003"):
        reports.write(ROUNDS[1].model_copy(update={"run_name": "other-run"}))
    reports.write(ROUNDS[1])
    assert read_rounds(tmp_path) == ROUNDS[:2]


def test_read_refuses_a_record_that_was_edited(tmp_path: Path) -> None:
    path = write_round(tmp_path, ROUNDS[0]).record
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(EvidenceError, match="FH-REPORT-002"):
        read_round(path)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b'{"note": "DOE^JOHN"}'])
def test_read_refuses_what_is_no_record_without_repeating_it(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "round-0001.json"
    path.write_bytes(data)
    with pytest.raises(EvidenceError, match="FH-REPORT-001") as caught:
        read_round(path)
    assert "DOE" not in str(caught.value)


def test_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    write_round(tmp_path, ROUNDS[0])
    other = ROUNDS[1].model_copy(update={"run_name": "other-run"})
    with pytest.raises(EvidenceError, match="FH-REPORT-003"):
        write_round(tmp_path, other)


def test_record_bytes_do_not_depend_on_how_it_was_made(tmp_path: Path) -> None:
    path = write_round(tmp_path, ROUNDS[3]).record
    assert path.read_bytes() == canonical_json(read_round(path))
