"""Put a round's record and pages on disk, each file in one step. Called by the server when a round closes."""

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fedhealth.durable import write_atomically
from fedhealth.errors import EvidenceError
from fedhealth.report.record import (
    RoundRecord,
    canonical_json,
    round_order,
    round_stem,
)
from fedhealth.report.render import render_round, render_run
from fedhealth.report.run_record import RunRecord, run_record

log = logging.getLogger("fedhealth.report")
_MODE = 0o644  # a report is made to be handed on; the folder above it decides who may enter


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPaths:
    """Where a round was written."""

    record: Path
    page: Path
    run_record: Path
    index: Path


def write_round(folder: Path, record: RoundRecord, study_title: str | None = None) -> RoundPaths:
    """Write one round's record and page, then the run's record and page over all rounds in the folder.

    Args:
        folder: one run's reports; made if absent.
        record: the round.
        study_title: heading of the run page; the study id without it. It is in no record.

    Raises:
        EvidenceError: FH-REPORT-001 or 002 an earlier record in the folder does not read, FH-REPORT-003 it
            belongs to another run.
    """
    earlier = [r for r in read_rounds(folder) if round_order(r) != round_order(record)]
    records = sorted([*earlier, record], key=round_order)
    run = _run_record(records)
    write_record(folder, record)
    page = _write_page(folder, records, record)
    run_paths = _write_run(folder, records, run, study_title)
    log.info("report of round %d written", record.round_number)
    return RoundPaths(
        record=folder / f"{round_stem(record)}.json",
        page=page,
        run_record=run_paths[0],
        index=run_paths[1],
    )


def write_record(folder: Path, record: RoundRecord, study_title: str | None = None) -> None:
    """Write one round's record without any page: `write_pages` makes all of them at the end of a simulation."""
    del study_title
    write_atomically(folder / f"{round_stem(record)}.json", canonical_json(record), mode=_MODE)


def write_pages(folder: Path, study_title: str | None = None) -> None:
    """Write the pages of all records of a folder, and the run's record; nothing where there is no record yet.

    Raises:
        EvidenceError: as `write_round`.
    """
    records = read_rounds(folder)
    if not records:
        return
    run = _run_record(records)
    for record in records:
        _write_page(folder, records, record)
    _write_run(folder, records, run, study_title)


def _run_record(records: list[RoundRecord]) -> RunRecord:
    try:
        return run_record(records)
    except ValueError as error:
        raise EvidenceError(
            "FH-REPORT-003",
            "the folder holds rounds of another run or study.",
            fix="Give every run a folder of its own.",
        ) from error


def _write_page(folder: Path, records: list[RoundRecord], record: RoundRecord) -> Path:
    history = [r for r in records if round_order(r) < round_order(record)]
    page = render_round(record, previous=previous_round(records, record), history=history)
    path = folder / f"{round_stem(record)}.html"
    write_atomically(path, page.encode(), mode=_MODE)
    return path


def _write_run(
    folder: Path, records: list[RoundRecord], run: RunRecord, study_title: str | None
) -> tuple[Path, Path]:
    record_path, index = folder / "run.json", folder / "index.html"
    write_atomically(record_path, canonical_json(run), mode=_MODE)
    page = render_run(study_title or run.study_id, records)
    write_atomically(index, page.encode(), mode=_MODE)
    return record_path, index


def previous_round(records: list[RoundRecord], record: RoundRecord) -> RoundRecord | None:
    """The last complete training round before this one, among ordered records."""
    before = [
        r
        for r in records
        if round_order(r) < round_order(record) and r.status == "complete" and r.kind == "train"
    ]
    return before[-1] if before else None


def read_rounds(folder: Path) -> list[RoundRecord]:
    """All round records of a folder, in the order of the rounds. Raises as `read_round`."""
    return sorted((read_round(path) for path in folder.glob("round-*.json")), key=round_order)


def read_round(path: Path) -> RoundRecord:
    """Read and check one record.

    Raises:
        EvidenceError: FH-REPORT-001 it does not keep the schema, FH-REPORT-002 its bytes are not canonical,
            so somebody has edited it.
    """
    data = path.read_bytes()
    try:
        record = RoundRecord.model_validate_json(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])[:80]
        raise EvidenceError(
            "FH-REPORT-001",
            f"{path.name} is not a round record (at {where or 'the top'}).",
            fix="Read it with the version of fedhealth that wrote it (`versions` and `schema_id` are in the file), or "
            "take the file from the server again.",
        ) from None
    if canonical_json(record) != data:
        raise EvidenceError(
            "FH-REPORT-002",
            f"{path.name} is not in canonical form.",
            why="fedhealth writes canonical JSON only, so this file was changed after it was written.",
            fix="Take the file from the server again.",
        )
    return record
