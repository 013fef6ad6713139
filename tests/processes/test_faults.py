"""What must hold when something goes wrong: a code, a message, no hang, no orphan, nothing lost.

Two federations are led through their faults once, and the tests look at what came of it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.durable import read_json
from fedhealth.report.record import RoundRecord
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.server.enrolment import revoke

from .conftest import (
    Federation,
    MakeFederation,
    factory,
    processes_of,
    study_content,
    wait,
    wait_until,
)

pytestmark = pytest.mark.timeout(600)  # the first test of a fixture pays for all of its faults


def drop_codes(record: RoundRecord) -> dict[str, DropCode | None]:
    return {site.site_id: site.drop_code for site in record.sites}


# --- five sites: one is too late, one's worker dies, one is killed, one is revoked ---------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Battered:
    """What was seen of the sites while the server ran on."""

    federation: Federation
    left_of_the_killed: dict[int, str]
    exit_of_the_revoked: int

    def record(self, index: int) -> RoundRecord:
        return self.federation.records()[index]


@pytest.fixture(scope="module")
def battered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Battered]:
    options = {"wait_s": 6, "slow_site": "hospital-4", "slow_s": 300}
    for make in factory(tmp_path_factory.mktemp("battered")):
        yield batter(make(study_content(options, num_rounds=2, round_deadline_s=25), num_sites=5))


def batter(federation: Federation) -> Battered:
    """hospital-2's worker and all of hospital-3 are killed in round 1, for which hospital-4 is too late.

    hospital-5 is revoked in round 2, the last.
    """
    federation.start_sites(["hospital-1", "hospital-2", "hospital-4"])
    killed, revoked = (federation.start_site(f"hospital-{n}") for n in (3, 5))
    server = federation.start_server()
    wait_until(lambda: is_working(federation, "hospital-2"), 120, "the first victim trains")
    os.kill(read_json(status_of(federation, "hospital-2"))["pid"], signal.SIGKILL)
    wait_until(lambda: is_working(federation, "hospital-3"), 20, "the second victim trains")
    killed.kill()
    killed.wait()
    home = federation.sites["hospital-3"].root
    wait_until(lambda: processes_of(home) == {}, 10, "the site's tree is gone")
    wait_until(lambda: len(federation.records()) >= 1, 120, "a round is recorded")
    revoke(federation.server, "hospital-5")
    code = wait(revoked, 90)
    assert wait(server, 180) == 0, federation.output("server")
    left = processes_of(home)
    return Battered(federation=federation, left_of_the_killed=left, exit_of_the_revoked=code)


def status_of(federation: Federation, site_id: str) -> Path:
    return federation.sites[site_id].study("scripted").status


def is_working(federation: Federation, site_id: str) -> bool:
    return read_json(status_of(federation, site_id)).get("state") == "working"


def test_a_straggler_is_dropped_at_the_deadline_and_joins_the_next_round(
    battered: Battered,
) -> None:
    assert drop_codes(battered.record(0))["hospital-4"] is DropCode.DEADLINE
    assert drop_codes(battered.record(1))["hospital-4"] is None


def test_a_worker_that_dies_is_started_again_and_the_site_takes_part_in_the_next_round(
    battered: Battered,
) -> None:
    assert drop_codes(battered.record(0))["hospital-2"] is not None
    assert drop_codes(battered.record(1))["hospital-2"] is None
    assert "killed by signal 9" in battered.federation.output("hospital-2")


def test_kill_9_of_a_site_leaves_no_process_and_the_round_goes_on(battered: Battered) -> None:
    assert battered.left_of_the_killed == {}
    first = drop_codes(battered.record(0))
    assert first["hospital-3"] in {DropCode.DEADLINE, DropCode.NODE_UNAVAILABLE}
    assert first["hospital-1"] is None
    assert battered.record(0).status == "complete"


def test_a_revoked_site_is_cut_off_while_the_server_runs(battered: Battered) -> None:
    assert battered.exit_of_the_revoked == 7
    assert "FH-IDENTITY-020" in battered.federation.output("hospital-5")
    last = battered.federation.records()[-1]
    assert last.status == "complete"
    assert "hospital-5" not in {site.site_id for site in last.sites}


# --- two sites whose server is interrupted, killed, and ends with a void round -------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """What was seen of the server each time it ended."""

    federation: Federation
    exit_codes: list[int]
    left: list[dict[int, str]]
    checkpoints: list[int]


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    options = {"step": 1.0, "wait_s": 2, "fault": "nan", "fault_site": "hospital-2"}
    content = study_content(options | {"fault_runs": ["void"]}, min_cohort=2, max_void_rounds=1)
    content["runs"] = [{"name": "main", "num_rounds": 3}, {"name": "void", "num_rounds": 1}]
    for make in factory(tmp_path_factory.mktemp("restarted")):
        yield restart(make(content, num_sites=2))


def restart(federation: Federation) -> Restarted:
    """Ctrl-C after round 1, kill -9 after round 2; a third start ends the run, and the next run's round is void."""
    codes, left, checkpoints = [], [], []
    main = federation.server.run("main")
    federation.start_sites()
    for number, end in enumerate((signal.SIGINT, signal.SIGKILL), start=1):
        server = federation.start_server()
        wait_until(lambda n=number: len(federation.records()) >= n, 150, "a round is recorded")  # type: ignore[misc]
        server.send_signal(end)
        codes.append(wait(server, 40))
        wait_until(lambda: processes_of(federation.server.root) == {}, 10, "the tree is gone")
        left.append(processes_of(federation.server.root))
        checkpoints.append(read_last_checkpoint(main).round_number)
    codes.append(wait(federation.start_server(), 240))
    return Restarted(federation=federation, exit_codes=codes, left=left, checkpoints=checkpoints)


def test_ctrl_c_ends_the_server_and_a_second_run_goes_on_from_the_checkpoint(
    restarted: Restarted,
) -> None:
    assert restarted.exit_codes[0] == 130
    assert restarted.left[0] == {}
    assert restarted.checkpoints[0] >= 1
    records = restarted.federation.records()
    trained = [r for r in records if r.kind == "train" and r.status == "complete"]
    assert [r.round_number for r in trained] == [1, 2, 3]
    for before, after in pairwise(trained):
        assert after.model_in_sha256 == before.model_out_sha256


def test_kill_9_of_the_server_leaves_no_process_and_loses_no_completed_round(
    restarted: Restarted,
) -> None:
    assert restarted.exit_codes[1] == -signal.SIGKILL
    assert restarted.left[1] == {}
    assert restarted.checkpoints[1] >= 2
    assert [r.status for r in restarted.federation.records()] == ["complete"] * 4


def test_a_void_round_leaves_the_model_and_ends_with_exit_9(restarted: Restarted) -> None:
    federation = restarted.federation
    assert restarted.exit_codes[2] == 9
    (record,) = federation.records("void")
    assert record.status == "void"
    assert record.model_out_sha256 == record.model_in_sha256
    assert {site.status.value for site in record.sites} == {"unused", "dropped"}
    assert read_last_checkpoint(federation.server.run("void")).round_number == 0
    assert "FH-QUORUM-002" in federation.output("server")
    page = next(federation.server.run("void").reports.glob("round-0001*.html")).read_text()
    assert "void" in page.lower()


# --- what ends before a round ---------------------------------------------------------------------------------------


def test_the_server_ends_with_exit_9_when_the_minimum_cohort_does_not_come(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(study_content({}, cohort_wait_s=2, gather_s=1))
    assert wait(federation.start_server(), 90) == 9
    assert "FH-QUORUM-001" in federation.output("server")
    assert processes_of(federation.server.root) == {}


def test_a_site_whose_server_is_away_waits_without_any_process_of_flower(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(study_content({}), num_sites=2)
    federation.start_site("hospital-1")
    wait_until(
        lambda: "trying again" in federation.output("hospital-1"), 60, "the site dialled in vain"
    )
    commands = " ".join(processes_of(federation.sites["hospital-1"].root).values())
    assert "fedhealth.site.worker" in commands
    for flower in ("fedhealth.flower", "flower-"):
        assert flower not in commands


@pytest.mark.slow  # the kill -9 of a server above shows the same in the default suite
def test_a_site_reconnects_after_the_server_was_away(make_federation: MakeFederation) -> None:
    federation = make_federation(study_content({}))
    federation.start_sites()
    time.sleep(12)  # several attempts in vain
    assert "trying again" in federation.output("hospital-1")
    assert wait(federation.start_server(), 120) == 0, federation.output("server")


def test_a_port_in_use_is_refused_with_its_code_and_exit_7(make_federation: MakeFederation) -> None:
    federation = make_federation(study_content({}), num_sites=2)
    _, config = federation.server.require()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", config.port))
        taken.listen()
        assert wait(federation.start_server(), 60) == 7
    assert "FH-PORT-001" in federation.output("server")


def test_two_processes_on_one_home_are_refused(make_federation: MakeFederation) -> None:
    federation = make_federation(study_content({}, cohort_wait_s=60), num_sites=2)
    first = federation.start_site("hospital-1")
    home = federation.sites["hospital-1"]
    status = home.study("scripted").status
    wait_until(status.exists, 60, "the first one is ready")
    done = subprocess.run(
        [sys.executable, "-I", "-m", "fedhealth", "site", "start", "--home", str(home.root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7
    assert "FH-LOCK-001" in done.stderr
    assert first.poll() is None
