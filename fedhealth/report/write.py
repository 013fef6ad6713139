"""Put a round's record and pages on disk, each file in one step. Called by the server when a round closes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from fedhealth.durable import write_atomically
from fedhealth.errors import EvidenceError
from fedhealth.report.record import (
    RoundOrder,
    RoundRecord,
    canonical_json,
    round_order,
    round_stem,
)
from fedhealth.report.render import render_round, render_run
from fedhealth.report.run_record import RoundLine, RunRecord, run_record

log = logging.getLogger("fedhealth.report")
_MODE = 0o644  # a report is made to be handed on; the folder above it decides who may enter


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPaths:
    """Where a round was written."""

    record: Path
    page: Path
    run_record: Path
    index: Path


@dataclass(slots=True)
class RunReports:
    """The reports of one run while it goes on: a round that was read or written is kept, and never read again.

    One process writes a run's reports; what another one changes in the folder meanwhile is found by the next that
    reads it.

    Args:
        folder: one run's reports; made if absent.
    """

    folder: Path
    _rounds: list[RoundRecord] | None = field(init=False, default=None)
    _lines: dict[RoundOrder, RoundLine] = field(init=False, default_factory=dict)

    def write(self, record: RoundRecord, study_title: str | None = None) -> RoundPaths:
        """Write one round's record and page, then the run's record and page over all rounds in the folder.

        Args:
            record: the round; one of the same number, attempt and kind is replaced.
            study_title: heading of the run page; the study id without it. It is in no record.

        Raises:
            EvidenceError: FH-REPORT-001 or 002 an earlier record in the folder does not read, FH-REPORT-003 it
                belongs to another run. Nothing was written.
        """
        order = round_order(record)
        kept = read_rounds(self.folder) if self._rounds is None else self._rounds
        others = [r for r in kept if round_order(r) != order]
        records = sorted([*others, record], key=round_order)
        lines = {key: line for key, line in self._lines.items() if key != order}
        run = _run_record(records, lines)
        write_record(self.folder, record)
        page = _write_page(self.folder, records, record)
        record_path, index = _write_run(self.folder, records, run, study_title)
        # As its file says it: pages name metrics in the order of the file.
        as_written = RoundRecord.model_validate_json(canonical_json(record))
        self._rounds = sorted([*others, as_written], key=round_order)
        self._lines = dict(zip(map(round_order, records), run.rounds, strict=True))
        log.info("report of round %d written", record.round_number)
        return RoundPaths(
            record=self.folder / f"{round_stem(record)}.json",
            page=page,
            run_record=record_path,
            index=index,
        )


def write_round(folder: Path, record: RoundRecord, study_title: str | None = None) -> RoundPaths:
    """`RunReports.write` of a single round; reads all others in the folder."""
    return RunReports(folder).write(record, study_title)


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


def _run_record(
    records: list[RoundRecord], known: Mapping[RoundOrder, RoundLine] = MappingProxyType({})
) -> RunRecord:
    try:
        return run_record(records, known)
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
    page = render_run(study_title or run.study_id, records, run=run)
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
