"""`fedhealth model`: take a trained model out of its federation."""

from pathlib import Path
from typing import Annotated

import typer

from fedhealth.cli.output import JsonOption, emit_json, new_app, say, table

app = new_app("List, export and recalibrate trained models.")

StudyOption = Annotated[
    str | None, typer.Option("--study", help="Study id, when a site's home holds several.")
]
RunOption = Annotated[
    str | None, typer.Option("--run", help="Run, when several are finished; a server needs it.")
]


@app.command("list")
def list_models(
    home: Annotated[Path, typer.Option(help="The site's home folder.")],
    study: Annotated[
        str | None, typer.Option("--study", help="One study; all if left out.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """What this site keeps: the model of each finished run, and what is its own, by round. Changes nothing."""
    from fedhealth.cli.model_files import kept_columns, kept_row
    from fedhealth.site.home import SiteHome
    from fedhealth.site.kept_models import list_kept

    found = list_kept(SiteHome(home.resolve()), study)
    if found:
        say(table(kept_columns(), [kept_row(kept) for kept in found]))
    else:
        say(
            "Nothing is kept here yet: a run's model comes with its last trip, what is this site's own with a round."
        )
    for kept in found:
        if not kept.is_readable:
            say(f"DAMAGED: {kept.file}. Restore it from a backup; see docs/how-to/personalise.md.")
    if json:
        emit_json("model-list", {"models": [kept.as_json() for kept in found]})


@app.command()
def export(  # noqa: PLR0917 - typer passes options by name
    home: Annotated[
        Path, typer.Option(help="A server's home: the global model. A site's home: its own.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not hold anything.")],
    run: RunOption = None,
    study: StudyOption = None,
    records: Annotated[
        Path | None,
        typer.Option(help="At a site: folder with the run's round records, for the model card."),
    ] = None,
    allow_unprotected: Annotated[
        bool,
        typer.Option(
            "--allow-unprotected",
            help="At a site: also tensors trained without differential privacy; the card says so.",
        ),
    ] = False,
    intended_use: Annotated[
        str | None, typer.Option(help="For the card; research, not clinical, if left out.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="Another limit for the card; may be repeated.")
    ] = None,
    authors: Annotated[str | None, typer.Option(help="For the card: who made it.")] = None,
    license_file: Annotated[
        Path | None, typer.Option("--license", help="Text file that becomes LICENSE.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a MONAI bundle with safetensors and a model card. Example: --home srv --run main --out bundle."""
    from fedhealth.cli.model_files import read_license, words_of
    from fedhealth.models.weight_files import weights_in
    from fedhealth.report.model_bundle import write_bundle
    from fedhealth.server.export import export_global_model
    from fedhealth.server.home import ServerHome
    from fedhealth.site.export import export_own_model
    from fedhealth.site.home import SiteHome
    from fedhealth.site.own_model import open_own_model

    words, text = words_of(intended_use, limit or [], authors), read_license(license_file)
    site = SiteHome(home.resolve())
    with weights_in(home.resolve()):
        if site.config_path.exists():
            files, card = export_own_model(
                open_own_model(site, study, run),
                words,
                records=records,
                license_text=text,
                allow_unprotected=allow_unprotected,
            )
        else:
            files, card = export_global_model(
                ServerHome(home.resolve()), run or "", words, license_text=text
            )
    write_bundle(out, files)
    say(
        f"Wrote {out}: {len(files)} files, model {card.model_sha256[:16]}. Read {out / 'docs' / 'README.md'}"
    )
    if card.missing_tensors:
        say(f"It lacks {card.missing_tensors} tensors that only the sites have: it cannot predict.")
    if json:
        emit_json("model-export", {"files": sorted(files), "card": card.model_dump(mode="json")})


@app.command()
def recalibrate(
    home: Annotated[Path, typer.Option(help="The site's home folder.")],
    run: RunOption = None,
    study: StudyOption = None,
    json: JsonOption = False,
) -> None:
    """Fit this site's probabilities to its own validation patients. Stays at the site. Exit 4: too few of them."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from fedhealth.models.weight_files import weights_in
    from fedhealth.site.home import SiteHome
    from fedhealth.site.own_model import open_own_model
    from fedhealth.site.recalibration import recalibrate as fit

    with weights_in(home.resolve()):
        own = open_own_model(SiteHome(home.resolve()), study, run)
    made = fit(own, made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    say(
        f"Run {own.run.name}: intercept {made.intercept:+.3f}, slope {made.slope:.3f} (1 leaves them), fitted on "
        f"{made.num_patients} validation patients."
    )
    if json:
        emit_json("model-recalibrate", asdict(made))
