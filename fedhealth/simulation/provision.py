"""Keys, admissions and rosters of a simulated study in one folder: the production enrolment, called in a row."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedhealth.config.load import study_digest, study_to_yaml, to_yaml
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.durable import read_json, write_atomically, write_json
from fedhealth.errors import UsageError
from fedhealth.server.enrolment import admit, init_server, issue_roster
from fedhealth.server.home import ServerHome
from fedhealth.simulation.hospitals import DATA_FOLDER
from fedhealth.site.enrolment import init_site, join, pin_roster, read_roster_file
from fedhealth.site.home import SiteHome
from fedhealth.site.sessions import load_training_method

NO_ADDRESS: Final = "localhost"
NO_PORT: Final = 1
"""Nothing listens: the address is in the invitation and in no message."""


def provision(study: Study, sites: Sequence[SiteConfig], folder: Path) -> ServerHome:
    """Make every home, or take those that are there when they are for the same study and hospitals.

    Raises:
        UsageError: FH-USAGE-050 the folder holds something else.
        ConfigError: the study's training method or model cannot be made.
    """
    server = ServerHome(folder / "server")
    wanted, claim = _what(study, sites), folder / "simulation.json"
    claimed = read_json(claim)
    if claimed == wanted and server.is_simulation:
        return server
    if claimed == wanted:  # interrupted while keys were made: nothing was trained with them
        shutil.rmtree(server.root, ignore_errors=True)
        shutil.rmtree(folder / "sites", ignore_errors=True)
    elif claimed or _is_foreign(folder):
        raise UsageError(
            "FH-USAGE-050",
            f"{folder} holds another simulation, or something else.",
            why="A simulation goes on in its own folder only: study, seed and hospitals must be the same.",
            fix="Choose another folder with --out, or remove this one.",
        )
    write_json(claim, wanted)
    _begin(study, server, folder)
    for config in sites:
        _enrol(config, server, folder, wanted)
    if study.secure_aggregation is not None:
        _pin_everywhere(server, sites, folder)
    write_json(server.simulation, wanted)  # last: from here on the folder can be gone on with
    return server


def site_home(folder: Path, site_id: str) -> SiteHome:
    """Where a simulated hospital lives."""
    return SiteHome(folder / "sites" / site_id)


def _what(study: Study, sites: Sequence[SiteConfig]) -> dict[str, object]:
    configs = [config.model_dump(mode="json") for config in sites]
    digest = hashlib.sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()
    return {"study_sha256": study_digest(study), "sites_sha256": digest, "num_sites": len(sites)}


def _is_foreign(folder: Path) -> bool:
    """Whether anything lies there but generated data and the lock."""
    return any(path.name not in {DATA_FOLDER, "lock"} for path in folder.iterdir())


def _begin(study: Study, server: ServerHome, folder: Path) -> None:
    path = folder / "study.yaml"
    write_atomically(path, study_to_yaml(study).encode(), mode=0o644)
    init_server(
        server,
        path,
        host=NO_ADDRESS,
        listen_host="127.0.0.1",
        port=NO_PORT,
        method=load_training_method(study.training.name),
    )


def _enrol(config: SiteConfig, server: ServerHome, folder: Path, wanted: dict[str, object]) -> None:
    home = site_home(folder, config.site_id)
    write_json(home.simulation, wanted)
    write_atomically(home.config_path, to_yaml(config).encode())
    done = init_site(home, server.invitation, None)
    join(home, admit(server, done.request_path).admission_path)


def _pin_everywhere(server: ServerHome, sites: Sequence[SiteConfig], folder: Path) -> None:
    path = issue_roster(server, folder / "roster.json").path
    for config in sites:
        home = site_home(folder, config.site_id)
        pin_roster(home, read_roster_file(home, path))
