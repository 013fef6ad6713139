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
from fedhealth.report.run_record import run_record

log = logging.getLogger("fedhealth.report")
_MODE = 0o644  # a report is made to be handed on; the folder above it decides who may enter


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPaths:
    """Where a round was written."""

    record: Path
    page: Path
    run_record: Path
    index: Path


def write_round(folder: Path, record: RoundRecord, *, study_title: str | None = None) -> RoundPaths:
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
    try:
        run = run_record(records)
    except ValueError as error:
        raise EvidenceError(
            "FH-REPORT-003",
            "the folder holds rounds of another run or study.",
            fix="Give every run a folder of its own.",
        ) from error
    stem = round_stem(record)
    paths = RoundPaths(
        record=folder / f"{stem}.json",
        page=folder / f"{stem}.html",
        run_record=folder / "run.json",
        index=folder / "index.html",
    )
    previous = previous_round(records, record)
    history = [r for r in earlier if round_order(r) < round_order(record)]
    write_atomically(paths.record, canonical_json(record), mode=_MODE)
    page = render_round(record, previous=previous, history=history)
    write_atomically(paths.page, page.encode(), mode=_MODE)
    write_atomically(paths.run_record, canonical_json(run), mode=_MODE)
    index = render_run(study_title or record.study_id, records)
    write_atomically(paths.index, index.encode(), mode=_MODE)
    log.info("report of round %d written", record.round_number)
    return paths


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
