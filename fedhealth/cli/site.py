"""`fedhealth site`: what a hospital does."""

from pathlib import Path
from typing import Annotated

import typer

from fedhealth.cli.output import JsonOption, emit_json, new_app, say, table

app = new_app("Join a study, train in its rounds, keep the results.")

HomeOption = Annotated[Path, typer.Option("--home", help="The site's home folder.")]
StudyOption = Annotated[
    str | None, typer.Option("--study", help="Study id, when the home holds several.")
]


@app.command()
def init(  # noqa: PLR0917 - typer passes options by name
    invite: Annotated[Path, typer.Option(help="The invitation.json of the coordinator.")],
    home: HomeOption,
    site_id: Annotated[
        str | None, typer.Option(help="Public id of this site, such as st-mary.")
    ] = None,
    package: Annotated[str | None, typer.Option(help="Site package that reads the cohort.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the package, NAME=VALUE; may be repeated.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with this site's data.")] = None,
    train_size: Annotated[
        int | None, typer.Option(help="Public number of training patients (rounded if you like).")
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(
            help="A modality that this site has; may be repeated. Left out: all of the study's."
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Which of the study's site_models.variants this site trains.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make this site's keys and its join request. Keys never leave; compare fingerprints by telephone."""
    from fedhealth.cli.site_settings import settings_from_options
    from fedhealth.evidence.signing import fingerprint
    from fedhealth.site.enrolment import init_site
    from fedhealth.site.home import SiteHome

    settings = settings_from_options(
        site_id,
        package,
        option or [],
        data_dir,
        train_size,
        modalities=modality or [],
        variant=variant,
    )
    done = init_site(SiteHome(home.resolve()), invite, settings)
    say(f"Site {done.site_id}, study {done.study_id}: {done.study_title}")
    say(f"Site key   {fingerprint(done.site_key_id)}")
    say(f"Server key {fingerprint(done.server_key_id)}  <- compare with the coordinator")
    say(f"Send the coordinator {done.request_path}")
    if json:
        emit_json(
            "site-init",
            {
                "site_id": done.site_id,
                "study_id": done.study_id,
                "request": str(done.request_path),
                "site_key_id": done.site_key_id,
                "server_key_id": done.server_key_id,
            },
        )


@app.command()
def join(
    admission: Annotated[Path, typer.Argument(help="The admission of the coordinator.")],
    home: HomeOption,
    json: JsonOption = False,
) -> None:
    """Pin the coordinator's admission. Example: fedhealth site join st-mary.json --home site."""
    from fedhealth.evidence.signing import fingerprint
    from fedhealth.site.enrolment import join as join_study
    from fedhealth.site.home import SiteHome, joined_study

    site_home = SiteHome(home.resolve())
    done = join_study(site_home, admission)
    study, server_key = joined_study(site_home, done.study_id)
    say(f"Joined {done.study_id} as {done.site.site_id}; the server is at {done.address}")
    say(f"Site key   {fingerprint(done.site.key_id)}")
    say(f"Server key {fingerprint(server_key.key_id)}  pinned")
    if study.secure_aggregation is not None:
        say(
            f"Next: fedhealth site pin ROSTER --home {home}, with the roster that the coordinator sends"
        )
    say(f"Then: fedhealth site check --home {home}, then fedhealth site start --home {home}")
    if json:
        emit_json(
            "site-join",
            {
                "study_id": done.study_id,
                "site_id": done.site.site_id,
                "site_key_id": done.site.key_id,
                "server_key_id": server_key.key_id,
            },
        )


@app.command()
def pin(
    roster: Annotated[Path, typer.Argument(help="The roster of `fedhealth server roster`.")],
    home: HomeOption,
    yes: Annotated[
        bool, typer.Option("--yes", help="The fingerprints were compared; do not ask.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Pin who is in the study, for secure aggregation. Compare each fingerprint with that hospital, not the server."""
    from fedhealth.evidence.signing import fingerprint
    from fedhealth.site.enrolment import pin_roster, read_roster_file
    from fedhealth.site.home import SiteHome

    site_home = SiteHome(home.resolve())
    offered = read_roster_file(site_home, roster)
    for site_id, change in offered.changes.items():
        shown = fingerprint(offered.key_ids[site_id]) if site_id in offered.key_ids else ""
        say(f"{change:<8} {site_id:<20} {shown}")
    if not yes and not typer.confirm("Did you compare these fingerprints with the hospitals?"):
        raise typer.Exit(2)
    pin_roster(site_home, offered)
    say(f"Pinned {len(offered.key_ids)} sites of study {offered.study_id}.")
    if json:
        emit_json("site-pin", {"study_id": offered.study_id, "key_ids": offered.key_ids})


@app.command()
def check(home: HomeOption, study: StudyOption = None, json: JsonOption = False) -> None:
    """Read the cohort and check it against the study's data contract. Nothing is sent. Exit 4 if wrong."""
    from fedhealth.site.home import SiteHome
    from fedhealth.site.preflight import check_site

    result = check_site(SiteHome(home.resolve()), study)
    say(f"Site {result['site_id']}: the cohort keeps the data contract of {result['study_id']}.")
    say(table(["side", "patients", "by label"], result["table"]))
    say(table(["modality", "patients without it"], result["missing"]))
    for warning in result["warnings"]:
        say(f"note: {warning}")
    if json:
        emit_json("site-check", result)


@app.command()
def start(home: HomeOption, study: StudyOption = None) -> None:
    """Take part in rounds until SIGTERM. Exit 4: wrong data; exit 7: not admitted, or revoked."""
    from fedhealth.flower.run_site import run_site
    from fedhealth.site.home import SiteHome

    site_home = SiteHome(home.resolve())
    code = run_site(site_home, site_home.choose_study(study), say)
    raise typer.Exit(int(code))


@app.command()
def status(
    home: HomeOption,
    study: StudyOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds.")] = False,
    json: JsonOption = False,
) -> None:
    """What this site is doing, and how much left it so far."""
    from fedhealth.cli.progress import repeat
    from fedhealth.site.home import SiteHome
    from fedhealth.site.status import read_status

    def show() -> None:
        now = read_status(SiteHome(home.resolve()), study)
        if json:
            emit_json("site-status", now)
            return
        say(f"site {now['site_id']}, study {now['study_id']}: {now['state']}")
        say(
            f"data zone: {now['isolation'] or 'not running'}; journal: {now['journal_lines']} lines"
        )
        rows = [[kind, count] for kind, count in now["left"].items()]
        say(table(["left the site", "messages"], rows))

    repeat(show, forever=watch)


@app.command()
def budget(home: HomeOption, json: JsonOption = False) -> None:
    """What studies have spent of the patients' privacy budget here, and what is left. Changes nothing."""
    from fedhealth.cli.site_budget import say_budget
    from fedhealth.site.budget import read_budget
    from fedhealth.site.home import SiteHome

    account = read_budget(SiteHome(home.resolve()))
    say_budget(account)
    if json:
        emit_json("site-budget", account)


@app.command()
def recover(
    contributions: Annotated[
        Path,
        typer.Argument(help="The server's `runs` folder, with the answers that this site signed."),
    ],
    home: HomeOption,
    json: JsonOption = False,
) -> None:
    """Add to an older copy of the privacy ledger what this site's own signed answers show was spent since."""
    from fedhealth.site.home import SiteHome
    from fedhealth.site.recovery import recover_ledger

    done = recover_ledger(SiteHome(home.resolve()), contributions)
    for study_id, kinds in done["added"].items():
        say(f"study {study_id}: added " + ", ".join(f"{n} x {kind}" for kind, n in kinds.items()))
    if not done["added"]:
        say("This copy of the ledger holds all that they show; nothing was added.")
    say("Only spending can be added this way. Next: fedhealth site budget")
    if json:
        emit_json("site-recover", done)


@app.command()
def evaluate(home: HomeOption, study: StudyOption = None, json: JsonOption = False) -> None:
    """Compare on this site's test patients: trained alone, and each finished run. Stays at the site."""
    from fedhealth.site.home import SiteHome
    from fedhealth.site.results import evaluate_site, result_columns

    result = evaluate_site(SiteHome(home.resolve()), study)
    say(f"Site {result['site_id']}: {result['num_patients']} held-out patients.")
    columns = result_columns(result["rows"])
    say(table(columns, [[row[c] for c in columns] for row in result["rows"]]))
    for difference in result["differences"]:
        say(difference["sentence"])
    if json:
        emit_json("site-evaluate", result)


@app.command()
def audit(
    home: HomeOption,
    study: StudyOption = None,
    canaries: Annotated[
        int | None, typer.Option(min=4, max=10_000, help="Canaries; 300 if left out.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps, canaries, models.")] = False,
    json: JsonOption = False,
) -> None:
    """Attack this site's own training: a check for bugs, not a proof. Nothing is sent. Exit 5: a bug is shown."""
    from fedhealth.cli.site_audit import say_audit
    from fedhealth.site.audit import audit_site, require_clean
    from fedhealth.site.home import SiteHome

    size_name = "quick" if quick else "full"
    result = audit_site(
        SiteHome(home.resolve()), study, num_canaries=canaries, size_name=size_name, say=say
    )
    say_audit(result)
    require_clean(result)
    if json:
        emit_json("site-audit", result)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the package, such as st-mary.")],
    folder: Annotated[Path, typer.Option("--in", help="Folder to write it into.")] = Path(),
    json: JsonOption = False,
) -> None:
    """Write a site package to fill in. Example: fedhealth site new st-mary."""
    from fedhealth.site.new_package import create_site_package

    path = create_site_package(name, folder)
    say(f"Wrote {path}. Next: read {path / 'README.md'}, then pip install -e {path}")
    if json:
        emit_json("site-new", {"path": str(path)})
