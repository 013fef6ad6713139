"""`fedhealth benefit`: was it worth it, for whom, and what would pooling have brought."""

from pathlib import Path
from typing import Annotated

import typer

from fedhealth.cli.output import JsonOption, new_app

app = new_app("Was it worth it: against training alone, on held-out patients.")


@app.command()
def benefit(  # noqa: PLR0917 - typer passes options by name
    study: Annotated[
        Path | None, typer.Argument(help="A study file: compare all methods in a simulation.")
    ] = None,
    sites: Annotated[
        list[Path] | None,
        typer.Option("--site", help="With a study: a hospital's site.yaml; may be repeated."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="With a study: splits and initial weights; 1 if left out."
        ),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", help="A site's home: its own result, which stays there."),
    ] = None,
    study_id: Annotated[
        str | None, typer.Option("--study", help="Study id, when the home holds several.")
    ] = None,
    release: Annotated[
        Path | None,
        typer.Option(
            help="With --home: also write the row that policy lets out, signed, to this file."
        ),
    ] = None,
    rows: Annotated[
        list[Path] | None, typer.Option(help="A row that a site released; may be repeated.")
    ] = None,
    server_home: Annotated[
        Path | None, typer.Option(help="With --rows: check who signed them, against this roster.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for record and page, and for the simulations.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Was it worth it? At a site, from released rows, or in a simulation.

    Example: fedhealth benefit --home site.
    """
    from fedhealth.cli.benefit_ways import Request, answer

    answer(
        Request(
            study=study,
            sites=tuple(sites or ()),
            seeds=seeds,
            home=home,
            study_id=study_id,
            release=release,
            rows=tuple(rows or ()),
            server_home=server_home,
            out=out,
            json=json,
        )
    )
