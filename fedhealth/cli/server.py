"""`fedhealth server`: what the coordinator of a consortium does."""

from pathlib import Path
from typing import Annotated

import typer

from fedhealth.cli.output import JsonOption, emit_json, new_app, say, table

app = new_app("Begin a study, admit hospitals, run the rounds.")

HomeOption = Annotated[Path, typer.Option("--home", help="The server's home folder.")]


@app.command()
def init(  # noqa: PLR0917 - typer passes options by name
    study: Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")],
    home: HomeOption,
    host: Annotated[
        str, typer.Option(help="Host name or IP address that sites dial.")
    ] = "127.0.0.1",
    listen_host: Annotated[str, typer.Option(help="Address that the gateway binds.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port; 0 picks a free one.", min=0, max=65535)] = 0,
    json: JsonOption = False,
) -> None:
    """Make CA, keys, initial models and invitation. Example: fedhealth server init study.yaml --home srv."""
    from fedhealth.config.load import load_study
    from fedhealth.evidence.signing import fingerprint
    from fedhealth.server.enrolment import init_server
    from fedhealth.server.home import ServerHome
    from fedhealth.site.sessions import load_training_method

    method = load_training_method(load_study(study).training.name)
    made = init_server(
        ServerHome(home.resolve()),
        study,
        host=host,
        listen_host=listen_host,
        port=port,
        method=method,
    )
    say(f"Study {made.study.id}, digest {made.study_sha256}")
    say(f"Server key {fingerprint(made.server_key_id)}")
    say(f"Sites dial {made.address}. Send every hospital {made.invitation_path}")
    if json:
        emit_json(
            "server-init",
            {
                "study_id": made.study.id,
                "study_sha256": made.study_sha256,
                "address": made.address,
                "invitation": str(made.invitation_path),
                "server_key_id": made.server_key_id,
                "num_parameters": made.num_parameters,
            },
        )


@app.command()
def admit(
    request: Annotated[Path, typer.Argument(help="The request.json of a hospital.")],
    home: HomeOption,
    json: JsonOption = False,
) -> None:
    """Put a hospital on the roster; works offline. Compare the fingerprints by telephone first."""
    from fedhealth.evidence.signing import fingerprint
    from fedhealth.server.enrolment import admit as admit_site
    from fedhealth.server.home import ServerHome

    done = admit_site(ServerHome(home.resolve()), request)
    size = "hidden" if done.train_size is None else str(done.train_size)
    say(f"Admitted {done.site_id} (training size {size}); {done.num_admitted} in all.")
    say(f"It declared {', '.join(done.modalities)}.")
    say(f"Site key   {fingerprint(done.site_key_id)}")
    say(f"Server key {fingerprint(done.server_key_id)}")
    say(f"Send the hospital {done.admission_path}")
    if json:
        emit_json(
            "server-admit",
            {
                "site_id": done.site_id,
                "site_key_id": done.site_key_id,
                "server_key_id": done.server_key_id,
                "train_size": done.train_size,
                "modalities": list(done.modalities),
                "admission": str(done.admission_path),
                "num_admitted": done.num_admitted,
            },
        )


@app.command()
def roster(
    home: HomeOption,
    out: Annotated[Path, typer.Option(help="Where to write the roster.")],
    json: JsonOption = False,
) -> None:
    """Sign who is in the study, for every hospital to pin (`fedhealth site pin`); needed with secure aggregation."""
    from fedhealth.evidence.signing import fingerprint
    from fedhealth.server.enrolment import issue_roster
    from fedhealth.server.home import ServerHome

    done = issue_roster(ServerHome(home.resolve()), out)
    for site_id, key_id in done.key_ids.items():
        say(f"{site_id:<20} {fingerprint(key_id)}")
    say(
        f"Send every hospital {done.path}; each compares these fingerprints with the other hospitals."
    )
    if json:
        emit_json("server-roster", {"roster": str(done.path), "key_ids": done.key_ids})


@app.command()
def revoke(
    site_id: Annotated[str, typer.Argument(help="Id of the site.")],
    home: HomeOption,
    json: JsonOption = False,
) -> None:
    """Take a hospital off the roster; a running server cuts it off within seconds."""
    from fedhealth.server.enrolment import revoke as revoke_site
    from fedhealth.server.home import ServerHome

    revoke_site(ServerHome(home.resolve()), site_id)
    say(f"Revoked {site_id}. Rounds that it took part in stay in the record.")
    if json:
        emit_json("server-revoke", {"site_id": site_id, "state": "revoked"})


@app.command()
def run(home: HomeOption, json: JsonOption = False) -> None:
    """Run the study's rounds until done; goes on from the last checkpoint. Exit 9 without quorum."""
    from fedhealth.cli.progress import LineProgress
    from fedhealth.flower.run_server import run_server
    from fedhealth.server.home import ServerHome
    from fedhealth.server.status import read_status

    server = ServerHome(home.resolve())
    code = run_server(server, LineProgress())
    status = read_status(server)
    for entry in status["runs"]:
        say(f"run {entry['run_name']}: {entry['state']}, report {entry['report']}")
    if json:
        emit_json("server-run", status)
    raise typer.Exit(int(code))


@app.command()
def status(
    home: HomeOption,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds.")] = False,
    json: JsonOption = False,
) -> None:
    """Where the study stands: sites, runs, rounds."""
    from fedhealth.cli.progress import repeat
    from fedhealth.server.home import ServerHome
    from fedhealth.server.status import read_status

    def show() -> None:
        now = read_status(ServerHome(home.resolve()))
        if json:
            emit_json("server-status", now)
            return
        say(f"study {now['study_id']}: server {'running' if now['is_running'] else 'not running'}")
        rows = [
            [s["site_id"], s["state"], s["train_size"] or "hidden", s["variant"] or "-"]
            for s in now["sites"]
        ]
        say(table(["site", "state", "training size", "variant"], rows))
        rows = [
            [r["run_name"], r["state"], r["rounds_done"], r["num_rounds"], r["report"] or "-"]
            for r in now["runs"]
        ]
        say(table(["run", "state", "rounds", "of", "report"], rows))

    repeat(show, forever=watch)
