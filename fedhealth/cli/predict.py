"""`fedhealth predict`: a hospital scores new patients."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedhealth.cli.output import JsonOption, emit_json, new_app, say, table
from fedhealth.errors import UsageError

if TYPE_CHECKING:
    from fedhealth.site.prediction import NewPatients, Scored

app = new_app("Score new patients with a trained model.")


@app.command()
def predict(  # noqa: PLR0917 - typer passes options by name
    data_dir: Annotated[Path, typer.Option(help="Folder with the new patients.")],
    out: Annotated[
        Path, typer.Option(help="CSV file to write, or folder for masks; readable by you only.")
    ],
    home: Annotated[
        Path | None, typer.Option(help="A site's home: its own model and its site package.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder that `fedhealth model export` wrote.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="With --home: which run, if several are finished.")
    ] = None,
    study: Annotated[
        str | None, typer.Option("--study", help="With --home: study id, when it holds several.")
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(help="Site package that reads them; the site's own, else cohort.csv + NIfTI."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of --package, NAME=VALUE; may be repeated.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Leave the site's recalibration out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --out.")] = False,
    json: JsonOption = False,
) -> None:
    """Write scores, or masks, of new patients; modalities may be missing. Exit 4: implausible data."""
    from fedhealth.cli.site_settings import package_options
    from fedhealth.site.prediction import NewPatients, check_out

    if (home is None) == (model is None):
        raise UsageError(
            "FH-USAGE-091", "give either --home or --model.", fix="See `fedhealth predict --help`."
        )
    if package is None and option:
        raise UsageError("FH-USAGE-092", "--option needs --package.")
    check_out(out, may_overwrite=force)
    patients = NewPatients(
        data_dir=data_dir, package=package, options=package_options(option or [])
    )
    if home is not None:
        done = _with_home(home, study, run, patients, out, raw=raw)
    else:
        done = _with_bundle(model or Path(), patients, out)
    say(f"Scored {done.num_patients} patients ({done.num_records} records) into {out}.")
    say(table(["modality", "records that have it"], [[n, c] for n, c in done.having.items()]))
    for name in done.unseen:
        say(f"{name} was left out: this model was never trained on anybody who has it.")
    for name, count in done.unclaimed.items():
        say(
            f"WARNING: {count} files in {name}/ are named after no patient of cohort.csv. Whoever they belong to was "
            f"scored without {name}."
        )
    if not done.calibrated:
        say("Not recalibrated for this site (column calibrated: no).")
    if json:
        emit_json("predict", asdict(done))


def _with_home(
    home: Path,
    study: str | None,
    run: str | None,
    patients: "NewPatients",
    out: Path,
    *,
    raw: bool,
) -> "Scored":
    from dataclasses import replace

    from fedhealth.models.weight_files import weights_in
    from fedhealth.site.home import SiteHome
    from fedhealth.site.own_model import open_own_model
    from fedhealth.site.prediction import score_new_patients
    from fedhealth.site.recalibration import read_recalibration

    with weights_in(home.resolve()):
        own = open_own_model(SiteHome(home.resolve()), study, run)
    opened, config = own.opened(), own.pinned.config
    if patients.package is None:
        patients = replace(
            patients, package=config.package.name, options=dict(config.package.options)
        )
    found = None if raw else read_recalibration(own, opened.weights_sha256)
    if found is not None:
        say(f"Recalibrated on {found.num_patients} validation patients at {found.made_at}.")
    return score_new_patients(
        opened, patients, out, recalibration=found, device=str(own.learner.device)
    )


def _with_bundle(folder: Path, patients: "NewPatients", out: Path) -> "Scored":
    from fedhealth.models.exported import open_folder
    from fedhealth.site.prediction import score_new_patients

    return score_new_patients(open_folder(folder), patients, out, recalibration=None)
