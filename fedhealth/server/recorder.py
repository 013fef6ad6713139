"""Writes what happens in a run the moment it happens: status for people, record and report for the DPO."""

import json
import logging
import os
from collections.abc import Callable

from fedhealth.config.study import RunPlan, Study
from fedhealth.durable import read_json, sync, write_json
from fedhealth.errors import PrivacyError
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Manifest
from fedhealth.report.record import RoundRecord, canonical_json, round_stem
from fedhealth.report.write import RunReports
from fedhealth.server.home import ServerHome
from fedhealth.server.outcomes import RoundOutcome, SiteOutcome
from fedhealth.server.records import read_wire_bytes, round_record, since
from fedhealth.server.roster import read_roster

log = logging.getLogger("fedhealth.server")


class Recorder:
    """`RunRecorder` on the server's files.

    Args:
        home: the server's home.
        study: its study.
        run: the run that is recorded.
        write: puts a record and its pages into the run's folder of reports, under the study's title.
        watch: is given the record of each round that closed, after it was written.
    """

    def __init__(
        self,
        home: ServerHome,
        study: Study,
        run: RunPlan,
        *,
        write: Callable[[RoundRecord, str], object] | None = None,
        watch: Callable[[RoundRecord], None] = lambda _: None,
    ) -> None:
        self._home = home
        self._study = study
        self._run = run
        self._folder = home.run(run.name)
        self._write = write or RunReports(self._folder.reports).write
        self._watch = watch
        self._answers: dict[str, str] = {}
        self._wire: dict[str, tuple[int, int]] = {}
        self._status = read_json(self._folder.status) or {
            "rounds_done": 0,
            "doing": "waiting for sites",
        }

    def waiting(self, present: int, wanted: int) -> None:
        """The cohort is not there yet."""
        self._say(f"{present} of {wanted} sites are there")

    def opened(self, manifest: Manifest) -> None:
        """A round begins: its number and attempt are on disk before any site is asked."""
        self._status |= {"round_number": manifest.round_number, "attempt": manifest.attempt}
        self._wire = read_wire_bytes(self._home.wire_counters)
        self._answers = dict.fromkeys((m.site_id for m in manifest.cohort), "working")
        self._show(manifest)

    def answered(self, manifest: Manifest, outcome: SiteOutcome) -> None:
        """A site answered. What it signed is kept, also when it does not count."""
        if outcome.envelope is not None:
            self._keep(manifest, outcome.envelope)
        site_id = outcome.line.entry.site_id
        self._answers[site_id] = outcome.drop_code.value if outcome.drop_code else "done"
        self._show(manifest)

    def recover(self, record: bytes) -> None:
        """Write the report of the last checkpointed round, if a crash came before it was written."""
        if not record:
            return
        parsed = RoundRecord.model_validate_json(record)
        if not (self._folder.reports / f"{round_stem(parsed)}.json").exists():
            self._write(parsed, self._study.title)
            self._status["rounds_done"] = parsed.round_number

    def check_no_release_is_lost(self, round_number: int) -> None:
        """Refuse to go on from an older checkpoint when a later model was released with site-level privacy.

        The strategy's account is in the checkpoint: going on would release a round twice and count it once.

        Raises:
            PrivacyError: FH-PRIVACY-091.
        """
        for path in self._folder.reports.glob("round-*.json"):
            record = RoundRecord.model_validate_json(path.read_bytes())
            is_later = record.kind == "train" and record.round_number > round_number
            if is_later and record.status == "complete" and record.site_level is not None:
                raise PrivacyError(
                    "FH-PRIVACY-091",
                    f"round {record.round_number} was released, and the newest whole checkpoint is of round "
                    f"{round_number}.",
                    why="The account of site-level privacy is in the lost checkpoint; going on would release "
                    "that round again and count it once.",
                    fix="Restore the newest folder of runs/<run>/checkpoints from a backup.",
                )

    def draft(self, outcome: RoundOutcome) -> bytes:
        """The record of a round that is about to be checkpointed."""
        return canonical_json(self._record(outcome))

    def closed(self, outcome: RoundOutcome) -> None:
        """A round ended: write the record and its pages now."""
        manifest = outcome.manifest
        record = self._record(outcome)
        self._write(record, self._study.title)
        log.info(
            "round closed run=%s round=%d attempt=%d status=%s",
            self._run.name,
            manifest.round_number,
            manifest.attempt,
            outcome.status,
        )
        if outcome.status == "complete" and manifest.kind == "train":
            self._status |= {
                "rounds_done": manifest.round_number,
                "model_sha256": outcome.model_out_sha256,
            }
        self._say(f"round {manifest.round_number} {outcome.status}")
        self._watch(record)

    def _keep(self, manifest: Manifest, envelope: Envelope) -> None:
        """One durable line: a site whose ledger was restored from a backup asks for it (`site recover`)."""
        name = f"round-{manifest.round_number:04d}-{manifest.attempt}-{manifest.kind}.jsonl"
        self._folder.contributions.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = json.dumps(envelope.model_dump(), sort_keys=True).encode() + b"\n"
        descriptor = os.open(
            self._folder.contributions / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )
        with os.fdopen(descriptor, "ab") as file:
            file.write(line)
            file.flush()
            sync(file.fileno())

    def _record(self, outcome: RoundOutcome) -> RoundRecord:
        wire = since(read_wire_bytes(self._home.wire_counters), self._wire)
        roster = read_roster(self._home.roster).admitted
        return round_record(
            outcome, self._run, roster, wire, is_simulation=self._home.is_simulation
        )

    def _show(self, manifest: Manifest) -> None:
        what = "evaluating" if manifest.kind == "evaluate" else f"round {manifest.round_number}"
        sites = ", ".join(f"{site} {state}" for site, state in self._answers.items())
        self._say(f"{what}: {sites}")

    def _say(self, doing: str) -> None:
        if self._status.get("doing") != doing:
            self._status["doing"] = doing
            write_json(self._folder.status, self._status)
