"""`fedhealth benefit --rows`: read the rows that hospitals released, check who signed them, put them together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhealth.config.load import study_digest
from fedhealth.errors import EvidenceError, IdentityError, UsageError
from fedhealth.evidence.benefit_row import BenefitRow
from fedhealth.evidence.signing import Envelope, VerifyKey
from fedhealth.evidence.statements import is_canonical, open_statement, parse_statement
from fedhealth.report.benefit.learning_curves import curves_of_run, mean_curve, told_metric
from fedhealth.report.benefit.record import BenefitRecord, CurveFact
from fedhealth.report.benefit.released import combine_rows
from fedhealth.report.record import RoundRecord
from fedhealth.report.write import read_rounds
from fedhealth.server.home import ServerHome
from fedhealth.server.roster import read_roster


def combine_files(paths: Sequence[Path], server: ServerHome | None) -> tuple[BenefitRecord, str]:
    """The record of released rows, and a title for its page.

    With a server's home, each row has to be signed by the key that its roster has for the site, and to be of its
    study; the learning curves come from its round records. Without, the record says that nobody checked.

    Raises:
        EvidenceError: FH-EVIDENCE-001 or 002 a file is not a row, FH-BENEFIT-010 or 011 rows do not belong
            together, FH-BENEFIT-012 a row is of another study than the server's.
        IdentityError: FH-IDENTITY-002 another signature, FH-BENEFIT-013 a site is not admitted.
        UsageError: FH-USAGE-020 not a server's home, FH-BENEFIT-015 a file cannot be read.
    """
    envelopes = [_read(path) for path in paths]
    if server is None:
        rows = [parse_statement(BenefitRow, envelope.payload) for envelope in envelopes]
        return combine_rows(rows, is_verified=False), rows[0].study_id
    study, _ = server.require()
    rows = [_verified(envelope, server) for envelope in envelopes]
    for row in rows:
        if (row.study_id, row.study_sha256) != (study.id, study_digest(study)):
            raise EvidenceError(
                "FH-BENEFIT-012",
                f"the row of {row.site_id} is of another study.",
                why="Its numbers say nothing about this one.",
                fix="Ask the hospital for the row of this study.",
            )
    metric = told_metric(rows[0].primary, study.release.metrics)
    rounds = {run.name: read_rounds(server.run(run.name).reports) for run in study.runs}
    record = combine_rows(
        rows,
        is_verified=True,
        is_simulation=server.is_simulation,
        pooling_allowed=study.policy.pooling_allowed,
        curves=_curves(rounds, metric),
        means=[
            curve
            for name, records in rounds.items()
            for curve in mean_curve(records, metric=metric, method=f"run:{name}")
        ],
    )
    return record, study.title


def _read(path: Path) -> Envelope:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            "FH-BENEFIT-015",
            f"the file {path.name} of --rows cannot be read ({type(error).__name__}).",
            fix="Give the file that a hospital released with `fedhealth benefit --home ... --release FILE`.",
        ) from None
    return Envelope.from_bytes(content)


def _verified(envelope: Envelope, server: ServerHome) -> BenefitRow:
    said = parse_statement(BenefitRow, envelope.payload)
    line = read_roster(server.roster).find(said.site_id)
    if line is None or line.state != "admitted":
        raise IdentityError(
            "FH-BENEFIT-013",
            f"site {said.site_id} is not admitted to this study.",
            why="Nobody knows whose numbers these are.",
            fix="Check the roster (`fedhealth server status`) and where the file came from.",
        )
    row = open_statement(BenefitRow, envelope, VerifyKey.from_base64(line.entry.signing_key))
    if not is_canonical(row, envelope):
        raise EvidenceError(
            "FH-BENEFIT-014",
            f"the row of {said.site_id} holds more than its fields.",
            why="A signature covers any bytes; a row is its fields and nothing else.",
            fix="Ask the hospital to release the row again.",
        )
    return row


def _curves(rounds: Mapping[str, Sequence[RoundRecord]], metric: str) -> dict[str, list[CurveFact]]:
    found: dict[str, list[CurveFact]] = {}
    for name, records in rounds.items():
        for site_id, curves in curves_of_run(records, metric=metric, method=f"run:{name}").items():
            found.setdefault(site_id, []).extend(curves)
    return found
