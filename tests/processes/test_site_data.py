"""Wrong data at a hospital: found before anything connects, with a code, exit 4, and no patient in the text."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fedhealth.config.template import template_path
from fedhealth.server.enrolment import admit, init_server, issue_roster
from fedhealth.server.home import ServerHome
from fedhealth.site.enrolment import (
    SiteSettings,
    init_site,
    join,
    pin_roster,
    read_roster_file,
)
from fedhealth.site.home import SiteHome
from fedhealth.site.sessions import load_training_method

PATIENTS = 24


def fedhealth(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-m", "fedhealth", *(str(a) for a in arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    """A site that has joined a study and whose data folder is filled."""
    root = tmp_path_factory.mktemp("site")
    study = template_path("synthetic").with_name("study-tests.yaml")
    server = ServerHome(root / "server")
    method = load_training_method("supervised")
    init_server(server, study, host="127.0.0.1", listen_host="127.0.0.1", port=0, method=method)
    home = SiteHome(root / "site")
    options = {
        "site_index": 0,
        "num_sites": 2,
        "num_patients": PATIENTS,
        "size": 16,
        "seed": yaml.safe_load(study.read_text())["seed"],
    }
    settings = SiteSettings(
        site_id="hospital-1",
        package="synthetic",
        package_options=options,
        data_dir=root / "data",
        train_size=10,
    )
    done = init_site(home, server.invitation, settings)
    join(home, admit(server, done.request_path).admission_path)
    pin_roster(home, read_roster_file(home, issue_roster(server, root / "roster.json").path))
    checked = fedhealth("site", "check", "--home", home.root)
    assert checked.returncode == 0, checked.stderr
    return home


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def drop_column(lines: list[str]) -> list[str]:
    index = lines[0].split(",").index("weight")
    return [",".join(c for i, c in enumerate(line.split(",")) if i != index) for line in lines]


def repeat_patient(lines: list[str]) -> list[str]:
    return [*lines, lines[1]]


def keep_header(lines: list[str]) -> list[str]:
    return lines[:1]


@pytest.mark.parametrize(
    ("change", "command"),
    [(drop_column, "start"), (repeat_patient, "check"), (keep_header, "check")],
    ids=["missing column", "duplicate patient", "empty site"],
)
def test_a_broken_table_is_refused_with_exit_4_before_anything_connects(
    joined: SiteHome, change: Callable[[list[str]], list[str]], command: str
) -> None:
    table = joined.root.parent / "data" / "cohort.csv"
    before = table.read_text()
    patient = before.splitlines()[1].split(",")[0]
    try:
        rewrite(table, change)
        done = fedhealth("site", command, "--home", joined.root)
    finally:
        table.write_text(before)
    assert done.returncode == 4, done.stderr
    assert "FH-DATA-" in done.stderr
    assert patient not in done.stderr


def test_a_truncated_volume_is_found_by_site_check(joined: SiteHome) -> None:
    volume = min((joined.root.parent / "data" / "t1").glob("*.nii.gz"))
    before = volume.read_bytes()
    try:
        volume.write_bytes(before[: len(before) // 2])
        done = fedhealth("site", "check", "--home", joined.root)
    finally:
        volume.write_bytes(before)
    assert done.returncode == 4, done.stderr
    assert "FH-DATA-" in done.stderr
    assert volume.name.split(".")[0] not in done.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [("package: {name: st_nowhere}", "FH-CONFIG-010"), ("colour: blue", "FH-CONFIG-005")],
)
def test_a_wrong_site_file_is_refused_with_exit_3(joined: SiteHome, line: str, code: str) -> None:
    before = joined.config_path.read_text()
    content = yaml.safe_load(before) | yaml.safe_load(line)
    try:
        joined.config_path.write_text(yaml.safe_dump(content, sort_keys=False))
        done = fedhealth("site", "start", "--home", joined.root)
    finally:
        joined.config_path.write_text(before)
    assert done.returncode == 3, done.stderr
    assert code in done.stderr
