"""`fedhealth benefit --home`: was it worth it for this site? The page stays here; a signed row may leave.

The same models, patients and intervals as `site evaluate`, as a record with verdicts. The row is the part of it
that the study's release policy lets out: through the gate, charged to the ledger, in the journal, then to a file.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedhealth.config.study import RunPlan
from fedhealth.contracts.benefit import MethodGain, MethodMetrics
from fedhealth.durable import write_atomically
from fedhealth.errors import UsageError
from fedhealth.evidence.benefit_row import BenefitRow, ReleasedGain, ReleasedMetrics
from fedhealth.evidence.journal import Journal
from fedhealth.evidence.signing import Envelope
from fedhealth.gate.benefit import BenefitTerms, check_terms, release_benefit
from fedhealth.gate.outbound import OutboundBenefit
from fedhealth.report.benefit.analysis import Setting, SitePredictions, analyse_site
from fedhealth.report.benefit.learning_curves import curves_alone
from fedhealth.report.benefit.page import render_benefit
from fedhealth.report.benefit.record import LOCAL, BenefitRecord, MethodFact, benefit_json
from fedhealth.site.account import SiteAccount
from fedhealth.site.home import Pinned, SiteHome, load_pinned
from fedhealth.site.results import finished_runs
from fedhealth.site.sessions import Sessions, read_global_model
from fedhealth.site.status import read_status

RECORD: Final = "benefit.json"
PAGE: Final = "benefit.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteBenefitResult:
    """A site's own comparison, and what the gate would need to release a row of it.

    Attributes:
        record: one site, with verdicts.
        record_path: in the site's results.
        page_path: beside it.
        patients_per_class: different test patients of each class (`data.targets.class_sizes`).
    """

    record: BenefitRecord
    record_path: Path
    page_path: Path
    patients_per_class: tuple[int, ...]


def benefit_of_site(home: SiteHome, study_id: str | None) -> SiteBenefitResult:
    """Train alone with tuned settings, judge every finished run, write record and page into the site's results.

    Raises:
        UsageError: FH-USAGE-030 no run is finished here, FH-USAGE-031 nothing to judge in this study.
        SiteDataError, TrainingError: the cohort cannot be used.
    """
    from fedhealth.training.judging import measure_of

    pinned = load_pinned(home, home.choose_study(study_id))
    finished = finished_runs(pinned)
    site = _predictions(home, pinned, finished)
    measure = measure_of(pinned.study)
    setting = _setting(pinned, finished, is_simulation=home.is_simulation)
    record = analyse_site(setting, measure, site)
    (alone,) = site.judged[LOCAL]
    folder = pinned.folder.results
    page = render_benefit(record, title=pinned.study.title, record_file=RECORD)
    write_atomically(folder / RECORD, benefit_json(record))
    write_atomically(folder / PAGE, page.encode())
    return SiteBenefitResult(
        record=record,
        record_path=folder / RECORD,
        page_path=folder / PAGE,
        patients_per_class=measure.class_sizes(alone.labels, alone.patients),
    )


def require_releasable(home: SiteHome, study_id: str | None, path: Path) -> None:
    """Refuse what no numbers could change, before hours are spent on them.

    Raises:
        UsageError: FH-BENEFIT-001 to 003 as `release_row`.
        GateRefusedError: FH-GATE-020 to 022 the study lets no row out.
    """
    chosen = home.choose_study(study_id)
    check_terms(terms_of(load_pinned(home, chosen)))
    _require_at_rest(home, chosen)
    _require_place(path)


def release_row(
    home: SiteHome, study_id: str | None, result: SiteBenefitResult, path: Path
) -> BenefitRow:
    """Write the row that policy lets out, signed, to `path`. Charged and in the journal before it is written.

    Raises:
        UsageError: FH-BENEFIT-001 the site is at work, FH-BENEFIT-002 there is such a file already, FH-BENEFIT-003
            it could not be written.
        GateRefusedError: FH-GATE-020 to 025, with the reason.
        PrivacyError: the hospital's policy or its ledger forbids it.
    """
    chosen = home.choose_study(study_id)
    pinned = load_pinned(home, chosen)
    _require_at_rest(home, chosen)
    _require_place(path)
    outbound = release_benefit(
        [MethodMetrics(method=r.method, metrics=r.metrics) for r in result.record.sites[0].results],
        [_gain(gain.model_dump()) for gain in result.record.sites[0].gains],
        patients_per_class=result.patients_per_class,
        terms=terms_of(pinned),
    )
    row = _row(pinned, result.record, outbound)
    envelope = row.sign(pinned.signing_key)
    SiteAccount(home, pinned).reserve_row(envelope.payload_digest)
    _write(pinned, outbound, envelope, path)
    return row


def terms_of(pinned: Pinned) -> BenefitTerms:
    """What the pinned study says about rows."""
    study, masks = pinned.study, pinned.study.secure_aggregation
    return BenefitTerms(
        is_agreed=study.release.benefit,
        metrics=study.release.metrics,
        metric_digits=study.release.metric_digits,
        has_patient_privacy=study.privacy is not None
        or (masks is not None and masks.distributed_privacy is not None),
        is_masked=masks is not None,
    )


def _predictions(home: SiteHome, pinned: Pinned, finished: list[RunPlan]) -> SitePredictions:
    from fedhealth.training.evaluation import scores_on_test
    from fedhealth.training.held_out import judged_of
    from fedhealth.training.judging import learning_curve, missing_shares
    from fedhealth.training.tuned_alone import train_alone_tuned

    study, sessions = pinned.study, Sessions(home, pinned)
    first = sessions.context(finished[0].name)
    tuned = train_alone_tuned(study, finished[0], first)
    judged = {LOCAL: [judged_of(tuned.scores)]}
    for run in finished:
        vector = read_global_model(pinned, run.name)
        scores = scores_on_test(study, run, vector, sessions.context(run.name))
        judged[_method(run).key] = [judged_of(scores)]
    return SitePredictions(
        site_id=pinned.config.site_id,
        judged=judged,
        missing=missing_shares(study, first),
        curves=curves_alone(learning_curve(tuned)),
    )


def _setting(pinned: Pinned, finished: list[RunPlan], *, is_simulation: bool) -> Setting:
    from fedhealth.training.evaluation import bootstrap_seed

    return Setting(
        study_id=pinned.study.id,
        study_sha256=pinned.study_sha256,
        has_patient_privacy=terms_of(pinned).has_patient_privacy,
        pooling_allowed=pinned.study.policy.pooling_allowed,
        methods=(MethodFact(key=LOCAL, kind="local"), *(_method(run) for run in finished)),
        seed=bootstrap_seed(pinned.study, pinned.config.site_id),
        is_simulation=is_simulation,
    )


def _method(run: RunPlan) -> MethodFact:
    return MethodFact.of_run(run.name, is_personal=run.personalisation != "none")


def _gain(fact: dict[str, object]) -> MethodGain:
    kept = {name: fact[name] for name in MethodGain.__slots__}
    return MethodGain(**kept)  # type: ignore[arg-type]  # the record's fields have these types


def _row(pinned: Pinned, record: BenefitRecord, outbound: OutboundBenefit) -> BenefitRow:
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return BenefitRow(
        study_id=record.study_id,
        study_sha256=record.study_sha256,
        site_id=pinned.config.site_id,
        primary=record.primary,
        larger_is_better=record.larger_is_better,
        margin=record.margin,
        fewest=record.fewest,
        is_simulation=record.is_simulation,
        personal_runs=tuple(
            m.run_name for m in record.methods if m.run_name and m.kind == "personalised"
        ),
        results=tuple(
            ReleasedMetrics(method=r.method, metrics=dict(r.metrics)) for r in outbound.results
        ),
        gains=tuple(
            ReleasedGain(**{name: getattr(gain, name) for name in MethodGain.__slots__})
            for gain in outbound.gains
        ),
        issued_at=now,
    )


def _write(pinned: Pinned, outbound: OutboundBenefit, envelope: Envelope, path: Path) -> None:
    """Journal first, then the file."""
    data = envelope.to_bytes()
    Journal(pinned.folder.journal).append(
        outbound.kind, {"row_sha256": envelope.payload_digest, "num_bytes": len(data)}
    )
    write_atomically(path, data, mode=0o644)


def _require_place(path: Path) -> None:
    """Before anything is charged: what cannot be written would be paid for all the same."""
    if path.exists():
        raise UsageError(
            "FH-BENEFIT-002",
            f"{path.name} is there already.",
            why="Each release is a new statement and costs again; it does not replace one by accident.",
            fix="Give another file.",
        )
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise UsageError(
            "FH-BENEFIT-003",
            "the folder of --release is not there, or nothing can be written into it.",
            why="A row is charged to the patients' account before it is written.",
            fix="Make the folder, or give another file.",
        )


def _require_at_rest(home: SiteHome, study_id: str) -> None:
    if read_status(home, study_id)["is_running"]:
        raise UsageError(
            "FH-BENEFIT-001",
            "this site is at work (`fedhealth site start`).",
            why="Its worker is the one writer of the journal, and a row goes into the journal before it leaves.",
            fix="Stop the site, release the row, and start it again.",
        )
