"""`fedhealth study`: write, check and show a study file, and what it costs patients."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedhealth.cli.output import JsonOption, emit_json, new_app, say
from fedhealth.errors import UsageError

app = new_app("Write, check and show a study file, and what it costs patients.")

StudyArgument = Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")]


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="File to write, or a folder for study.yaml.")],
    template: Annotated[
        str,
        typer.Option(
            help="The study to start from: a folder of configs, such as synthetic, heart, simulation or blank."
        ),
    ] = "blank",
    json: JsonOption = False,
) -> None:
    """Write a study file to start from. Example: fedhealth study new study.yaml --template heart."""
    from fedhealth.config.template import template_path

    text = template_path(template).read_text("utf-8")
    target = path if path.suffix in (".yaml", ".yml") else path / "study.yaml"
    _write_new(target, text)
    say(f"Wrote {target}. Next: fedhealth study check {target}")
    if json:
        emit_json("study-new", {"path": str(target), "template": template})


@app.command()
def check(
    study: StudyArgument,
    build: Annotated[
        bool,
        typer.Option(
            "--build", help="Also build every run's model, as `server init` will (imports torch)."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check a study file and the plug-ins it names. Exit 3 if it cannot run."""
    from fedhealth.cli.study_check import check_whole_study
    from fedhealth.config.check import require_no_errors
    from fedhealth.config.load import load_study, study_digest

    loaded = load_study(study)
    findings = check_whole_study(loaded, build=build)
    for finding in findings:
        say(f"{finding.level}: {finding.code} {finding.text}")
    require_no_errors(study, findings)
    say(f"{study} can run. Digest {study_digest(loaded)}")
    if json:
        payload = [{"level": f.level, "code": f.code, "text": f.text} for f in findings]
        emit_json("study-check", {"digest": study_digest(loaded), "findings": payload})


@app.command()
def show(study: StudyArgument, json: JsonOption = False) -> None:
    """Print the resolved study, defaults included, and its digest."""
    from fedhealth.config.load import load_study, study_digest, study_to_yaml

    loaded = load_study(study)
    say(f"Digest {study_digest(loaded)}")
    if json:
        payload = {"digest": study_digest(loaded), "study": loaded.model_dump(mode="json")}
        emit_json("study-show", payload)
    else:
        print(study_to_yaml(loaded), end="")


@app.command()
def privacy(  # noqa: PLR0917 - typer passes options by name
    study: StudyArgument,
    sites: Annotated[
        list[int] | None,
        typer.Option(help="Declared training size of a site; may be repeated."),
    ] = None,
    site_config: Annotated[
        list[Path] | None,
        typer.Option(help="A site.yaml: its size, and whether its policy accepts the study."),
    ] = None,
    target_epsilon: Annotated[
        float | None, typer.Option(help="Plan for this epsilon instead of the study's own noise.")
    ] = None,
    build: Annotated[
        bool,
        typer.Option("--build", help="Also size the noise of the whole model (imports torch)."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """What the study costs a patient at sites of given sizes, and what its noise does. Exit 3 if it cannot run."""
    from fedhealth.cli.privacy_findings import privacy_findings
    from fedhealth.cli.study_privacy import forecast, payload, text, with_target
    from fedhealth.config.check import require_no_errors
    from fedhealth.config.load import load_site, load_study

    planned = with_target(load_study(study), target_epsilon)
    require_no_errors(study, list(privacy_findings(planned)))
    configs = [load_site(path) for path in site_config or ()]
    result = forecast(planned, sizes=sites or (), configs=configs, build=build)
    for line in text(result):
        say(line)
    if json:
        emit_json("study-privacy", payload(result))


@app.command()
def schema(
    kind: Annotated[
        Literal["study", "site", "server"], typer.Argument(help="Which file's format.")
    ] = "study",
) -> None:
    """Print the JSON Schema of a configuration file, for editors."""
    from json import dumps

    from fedhealth.config.load import json_schema

    print(dumps(json_schema(kind), indent=2))


def _write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet.

    Raises:
        UsageError: FH-USAGE-002 it is there, FH-USAGE-003 it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(
            "FH-USAGE-002",
            f"{path} exists already.",
            why="It may hold work that is not saved elsewhere, so it is not overwritten.",
            fix="Choose another name, or remove it first.",
        ) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(
            "FH-USAGE-003", f"{path} cannot be written ({reason}).", fix="Choose another folder."
        ) from error
