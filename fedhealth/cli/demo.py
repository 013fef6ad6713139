"""`fedhealth demo`: a whole federation on this machine."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedhealth.cli.output import JsonOption, emit_json, new_app, say, table

app = new_app("A whole federation on this machine: real processes, TLS, reports.")


@app.command()
def demo(  # noqa: PLR0917 - typer passes options by name
    study: Annotated[
        Literal["synthetic", "heart"],
        typer.Option(help="synthetic: generated T1 + EHR; heart: the four real UCI hospitals."),
    ] = "synthetic",
    out: Annotated[
        Path | None, typer.Option(help="Folder to work in; a new one by default.")
    ] = None,
    sites: Annotated[int | None, typer.Option(help="Hospitals (synthetic: 2 to 4).")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of every run.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of cohort and study.", min=0)] = None,
    size: Annotated[
        Literal["full", "tests"], typer.Option(help="tests: the smallest cohort, for a quick look.")
    ] = "full",
    privacy: Annotated[
        bool,
        typer.Option(
            "--privacy/--no-privacy",
            help="Differential privacy for every patient, as the study says; without: none at all.",
        ),
    ] = True,
    json: JsonOption = False,
) -> None:
    """Three hospitals train one imaging + tabular model over TLS; a report for every round."""
    from fedhealth.demo.plan import make_plan
    from fedhealth.demo.run import Demo
    from fedhealth.demo.summary import summary_lines

    plan = make_plan(
        study,
        num_sites=sites,
        num_rounds=rounds,
        seed=seed,
        is_small=size == "tests",
        has_privacy=privacy,
    )
    folder = out or Path(f"fedhealth-demo/{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if not privacy:
        say(
            "--no-privacy: the study's privacy section and the sites' privacy policies are left out."
        )
    result = Demo(plan=plan, folder=folder.resolve(), say=say).run()
    for line in summary_lines(result, table):
        say(line)
    if json:
        emit_json("demo", result)
