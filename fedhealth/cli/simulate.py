"""`fedhealth simulate`: a study with many hospitals, in one process or on Ray."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedhealth.cli.output import JsonOption, emit_json, new_app, say, table
from fedhealth.errors import UsageError

if TYPE_CHECKING:
    from fedhealth.config.site import SiteConfig
    from fedhealth.config.study import Study
    from fedhealth.simulation import InProcess, OnRay

app = new_app("A study with many hospitals in one process or on Ray, to try it out.")


@app.command()
def simulate(  # noqa: PLR0917 - typer passes options by name
    study: Annotated[Path, typer.Argument(help="The study file.", metavar="STUDY.yaml")],
    site: Annotated[
        list[Path] | None, typer.Option(help="A hospital's site.yaml; may be repeated.")
    ] = None,
    sites_dir: Annotated[
        Path | None, typer.Option(help="Folder with hospitals: every site-*.yaml in it.")
    ] = None,
    num_sites: Annotated[
        int | None, typer.Option(help="Hospitals of one site package.", min=2, max=1000)
    ] = None,
    package: Annotated[str, typer.Option(help="Their site package.")] = "synthetic",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE for the package; {index} is the hospital's number from 0, {num_sites} how many there are.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    train_size: Annotated[
        int | None,
        typer.Option(help="What each of them declares; counted by default.", min=1),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to work in, or to go on in; a new one by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the study's seed.", min=0)] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the hospitals' homes and generated data.")
    ] = False,
    backend: Annotated[
        Literal["in-process", "ray"],
        typer.Option(help="Hospitals one after the other in this process, or side by side on Ray."),
    ] = "in-process",
    cpus_per_hospital: Annotated[
        int | None,
        typer.Option(help="With ray: cores of a hospital at work; 1 by default.", min=1),
    ] = None,
    gpus_per_hospital: Annotated[
        float | None,
        typer.Option(help="With ray: its share of a GPU; none by default.", min=0),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="With ray: a cluster that runs already; by default Ray starts on this machine.",
            metavar="HOST:PORT",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Simulate a study. Example: fedhealth simulate study.yaml --num-sites 20 --option site_index={index}."""
    from fedhealth.cli.simulation_text import ProgressLine, payload, text
    from fedhealth.cli.study_check import check_whole_study
    from fedhealth.config.check import require_no_errors
    from fedhealth.config.load import load_study
    from fedhealth.simulation import simulate as run_simulation

    chosen_backend = _backend(backend, cpus_per_hospital, gpus_per_hospital, ray_address)
    loaded = load_study(study)
    require_no_errors(study, check_whole_study(loaded, build=False))
    loaded = loaded if seed is None else loaded.model_copy(update={"seed": seed})
    folder = out or Path(f"fedhealth-simulation/{datetime.now(UTC):%Y%m%d-%H%M%S}")
    chosen = _sites(
        loaded, folder, site or [], sites_dir, num_sites, package, option or [], train_size
    )
    where = "" if backend == "in-process" else " on Ray"
    say(
        f"simulating {loaded.id} with {len(chosen)} hospitals{where} in {folder}; Ctrl-C, then the same "
        "command with --out, goes on from the last round"
    )
    progress = ProgressLine()
    done = run_simulation(loaded, chosen, folder, progress, backend=chosen_backend)
    progress.close()
    result = payload(done)
    for line in text(result, table):
        say(line)
    if not keep:
        done.remove_sites()
    if json:
        emit_json("simulate", result)


def _sites(  # noqa: PLR0917 - what the command line gave
    study: "Study",
    folder: Path,
    files: list[Path],
    sites_dir: Path | None,
    num_sites: int | None,
    package: str,
    options: list[str],
    train_size: int | None,
) -> "list[SiteConfig]":
    from fedhealth.simulation.hospitals import generated_sites, parse_options, read_sites

    if (num_sites is None) == (not files and sites_dir is None):
        raise UsageError(
            "FH-USAGE-051",
            "hospitals come from files (--site, --sites-dir), or from a package (--num-sites): give one of the two.",
            fix="For example: --sites-dir configs/heart, or --num-sites 20 --package synthetic "
            "--option site_index={index} --option num_sites={num_sites}.",
        )
    if num_sites is None:
        return read_sites(files, sites_dir)
    return generated_sites(
        study,
        folder,
        package=package,
        num_sites=num_sites,
        options=parse_options(options),
        train_size=train_size,
    )


def _backend(
    name: Literal["in-process", "ray"],
    cpus_per_hospital: int | None,
    gpus_per_hospital: float | None,
    address: str | None,
) -> "InProcess | OnRay":
    from fedhealth.simulation import InProcess, OnRay, RayOptions, require_ray

    if name == "ray":
        require_ray()
        return OnRay(
            options=RayOptions(
                cpus_per_hospital=cpus_per_hospital or 1,
                gpus_per_hospital=gpus_per_hospital or 0.0,
                address=address,
            )
        )
    if any(value is not None for value in (cpus_per_hospital, gpus_per_hospital, address)):
        raise UsageError(
            "FH-RAY-007",
            "--cpus-per-hospital, --gpus-per-hospital and --ray-address are for --backend ray.",
            why="In one process hospitals compute one after the other, on one core.",
            fix="Add --backend ray, or leave them out.",
        )
    return InProcess()
