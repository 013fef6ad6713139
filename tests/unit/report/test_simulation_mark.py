"""A record says that it is a simulation's only when it is: real records keep their bytes, and the two never mix."""

from pathlib import Path

import pytest

from fedhealth.report.record import RoundRecord, canonical_json, round_order
from fedhealth.report.run_record import RunRecord, run_record
from fedhealth.report.write import read_round, write_pages, write_record, write_round
from fedhealth.testing.example_rounds import example_run

REAL = example_run()
SIMULATED = [record.model_copy(update={"is_simulation": True}) for record in REAL]


def test_a_real_record_does_not_name_the_mark() -> None:
    assert b"is_simulation" not in canonical_json(REAL[0])
    assert b"is_simulation" not in canonical_json(run_record(REAL))


def test_the_mark_survives_writing_and_reading() -> None:
    data = canonical_json(SIMULATED[0])
    assert b'"is_simulation":true' in data
    assert RoundRecord.model_validate_json(data) == SIMULATED[0]
    run = run_record(SIMULATED)
    assert run.is_simulation
    assert RunRecord.model_validate_json(canonical_json(run)) == run


def test_a_mark_of_false_is_not_canonical(tmp_path: Path) -> None:
    from fedhealth.errors import EvidenceError

    path = tmp_path / "round-0001.json"
    path.write_bytes(canonical_json(REAL[0]).replace(b'"kind"', b'"is_simulation":false,"kind"', 1))
    with pytest.raises(EvidenceError, match="FH-REPORT-002"):
        read_round(path)


def test_simulated_rounds_do_not_stand_beside_real_ones() -> None:
    with pytest.raises(ValueError, match="one run"):
        run_record([REAL[0], *SIMULATED[1:]])


def test_pages_written_at_the_end_are_those_written_after_every_round(tmp_path: Path) -> None:
    for made in sorted(REAL, key=round_order):
        record = RoundRecord.model_validate_json(
            canonical_json(made)
        )  # metrics in the file's order
        write_round(tmp_path / "each", record, study_title="A title")
        write_record(tmp_path / "end", record)
    assert not list((tmp_path / "end").glob("*.html"))
    write_pages(tmp_path / "end", "A title")
    each, end = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("each", "end")
    )
    assert each == end
