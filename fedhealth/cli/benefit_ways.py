"""The ways to ask `fedhealth benefit`: a site's own home, released rows, a simulation. Exactly one of them."""

from dataclasses import dataclass
from pathlib import Path

from fedhealth.cli.output import emit_json, say, table
from fedhealth.errors import UsageError
from fedhealth.report.benefit import wording
from fedhealth.report.benefit.record import BenefitRecord
from fedhealth.report.wording import SIMULATION

RECORD, PAGE = "benefit.json", "benefit.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was typed."""

    study: Path | None
    sites: tuple[Path, ...]
    seeds: int | None
    home: Path | None
    study_id: str | None
    release: Path | None
    rows: tuple[Path, ...]
    server_home: Path | None
    out: Path | None
    json: bool


def answer(request: Request) -> None:
    """Do it and say it.

    Raises:
        UsageError: FH-BENEFIT-020 options of several ways, or of none.
    """
    ways = {
        "STUDY": request.study is not None,
        "--home": request.home is not None,
        "--rows": bool(request.rows),
    }
    strays = {
        "--site": bool(request.sites) and not ways["STUDY"],
        "--seeds": request.seeds is not None and not ways["STUDY"],
        "--release": request.release is not None and not ways["--home"],
        "--study": request.study_id is not None and not ways["--home"],
        "--server-home": request.server_home is not None and not ways["--rows"],
        "--out": request.out is not None and ways["--home"],
    }
    if sum(ways.values()) != 1 or any(strays.values()):
        raise UsageError(
            "FH-BENEFIT-020",
            f"these options do not fit together: {_named({**ways, **strays})}.",
            why="A simulation, a site's own result and released rows are three different questions.",
            fix="Give STUDY and --site (a simulation), --home (a site), or --rows (a consortium).",
        )
    if request.study is not None:
        _simulation(request, request.study)
    elif request.home is not None:
        _site(request, request.home)
    else:
        _rows(request)


def _named(given: dict[str, bool]) -> str:
    return ", ".join(name for name, is_given in given.items() if is_given) or "none is given"


def _simulation(request: Request, path: Path) -> None:
    from fedhealth.config.load import load_study
    from fedhealth.simulation.benefit import benefit_of_simulation
    from fedhealth.simulation.hospitals import read_sites

    study = load_study(path)
    folder = request.out or Path("fedhealth-benefit")
    record = benefit_of_simulation(
        study,
        read_sites(request.sites, None),
        folder / "simulations",
        num_seeds=request.seeds or 1,
        say=say,
    )
    tell(request, record, write_pages(record, folder, title=study.title))


def _site(request: Request, root: Path) -> None:
    from fedhealth.site.benefit import benefit_of_site, release_row, require_releasable
    from fedhealth.site.home import SiteHome

    home = SiteHome(root.resolve())
    home.choose_study(request.study_id)
    if request.release is not None:
        require_releasable(home, request.study_id, request.release)
    say("Training alone, tuned by cross-validation: with images this takes a while.")
    result = benefit_of_site(home, request.study_id)
    tell(request, result.record, result.page_path)
    if request.release is not None:
        row = release_row(home, request.study_id, result, request.release)
        say(f"Released to {request.release}, signed: {len(row.gains)} differences, no counts.")
        if not any(gain.metric == row.primary for gain in row.gains):
            metric = wording.metric_name(row.primary)
            say(
                f"None of them is in {metric}, which verdicts are about: this study does not release it."
            )


def _rows(request: Request) -> None:
    from fedhealth.server.benefit_rows import combine_files
    from fedhealth.server.home import ServerHome

    server = None if request.server_home is None else ServerHome(request.server_home.resolve())
    record, title = combine_files(request.rows, server)
    folder = request.out or Path("fedhealth-benefit")
    tell(request, record, write_pages(record, folder, title=title))


def write_pages(record: BenefitRecord, folder: Path, *, title: str) -> Path:
    """Record and page into a folder; the path of the page."""
    from fedhealth.durable import write_atomically
    from fedhealth.report.benefit.page import render_benefit
    from fedhealth.report.benefit.record import benefit_json

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECORD, benefit_json(record), mode=0o644)
    page = render_benefit(record, title=title, record_file=RECORD)
    write_atomically(folder / PAGE, page.encode(), mode=0o644)
    return folder / PAGE


def tell(request: Request, record: BenefitRecord, page: Path) -> None:
    """The table of differences and the sentences, for people; with --json the record and the sentences."""
    metric = wording.metric_name(record.primary)
    rows = [
        [
            site.site_id,
            run.run_name or "",
            None if gain is None else wording.interval(gain),
            wording.verdict_word(record, gain),
        ]
        for run in record.runs
        for site in record.sites
        for gain in [site.gain(run.key, "local", record.primary)]
    ]
    if record.is_simulation and record.origin != "simulation":
        say(SIMULATION)
    say(wording.BANNER[record.origin])
    say(table(["site", "run", f"{metric} minus alone", "verdict"], rows))
    for sentence in wording.advice(record):
        say(sentence)
    say(f"Page: {page}")
    if request.json:
        emit_json("benefit", payload(record, page))


def payload(record: BenefitRecord, page: Path) -> dict[str, object]:
    """The record, and the sentences that were made from it."""
    return {
        "record": record.model_dump(mode="json"),
        "sentences": {
            "headlines": {run.key: wording.headline(record, run) for run in record.runs},
            "overall": wording.advice(record),
            "sites": [
                wording.site_sentence(record, site.site_id, run)
                for run in record.runs
                for site in record.sites
            ],
        },
        "page": str(page),
    }
