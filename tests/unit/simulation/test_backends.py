"""Where hospitals compute: what a process of Ray does for a hospital, and what is refused. No Ray is needed here."""

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from fedhealth.cli.app import run
from fedhealth.contracts.codes import DropCode
from fedhealth.durable import exclusive, read_json
from fedhealth.errors import TransportError, UsageError
from fedhealth.evidence.signing import SigningKey
from fedhealth.flower.run_server import raise_failure
from fedhealth.flower.run_simulation import require_ray, require_reachable
from fedhealth.report.record import RoundRecord
from fedhealth.simulation import OnRay, Simulation, ray_hospital, simulate
from fedhealth.simulation.backends import NewRecords
from fedhealth.simulation.ray_hospital import answer
from fedhealth.supervision.ports import free_port

from .conftest import content, hospitals

STRANGE = SigningKey.generate().sign("application/vnd.fedhealth.manifest+json", {"a": 1})


@pytest.fixture
def done(as_study: Any, tmp_path: Path) -> Simulation:
    return simulate(
        as_study(content({"step": 0.5}, num_rounds=2)), hospitals(tmp_path), tmp_path / "out"
    )


def test_a_process_that_another_one_came_between_opens_the_hospital_anew(done: Simulation) -> None:
    root, study_id = done.folder / "sites/hospital-1", done.study.id
    site, _ = ray_hospital._remembered(root, study_id)
    memories = []
    for other in ("", "", "another-process"):
        mark = root / ray_hospital.MEMORY
        if other:
            mark.write_text(mark.read_text().replace(read_json(mark)["by"], other))
        answer(root, study_id, STRANGE, b"", 5.0)
        memories.append(site._answers)
    assert memories[0] is memories[1], "what this process remembers is good"
    assert memories[2] is not memories[1]


def test_a_hospital_answers_one_process_at_a_time(done: Simulation) -> None:
    root = done.folder / "sites/hospital-2"
    with exclusive(root / "answering.lock", what="a hospital"):
        assert answer(root, done.study.id, STRANGE, b"", 5.0).code is DropCode.SITE_BUSY
    assert answer(root, done.study.id, STRANGE, b"", 5.0).code is not DropCode.SITE_BUSY


def test_new_records_are_told_once_and_in_order(done: Simulation, tmp_path: Path) -> None:
    told: list[RoundRecord] = []
    (run_,) = done.runs.values()
    news = NewRecords(tmp_path / "reports", told.append)
    news.look()
    (tmp_path / "reports").mkdir()
    for path in run_.reports.glob("round-*.json"):
        (tmp_path / "reports" / path.name).write_bytes(path.read_bytes())
    news.look()
    news.look()
    assert told == list(run_.records)


def test_a_hospital_that_wants_a_gpu_must_be_given_one(as_study: Any, tmp_path: Path) -> None:
    sites = hospitals(tmp_path, device="cuda")
    with pytest.raises(UsageError, match="FH-RAY-004"):
        simulate(as_study(content({})), sites, tmp_path / "out", backend=OnRay())
    assert not (tmp_path / "out/server/flower/home").exists(), "nothing was started"


def test_without_ray_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "ray" else found(name, package),
    )
    with pytest.raises(UsageError, match="FH-RAY-001"):
        require_ray()
    study = Path(__file__).parents[3] / "configs/simulation/study.yaml"
    arguments = ["simulate", str(study), "--num-sites", "3", "--out", str(tmp_path / "out")]
    assert run([*arguments, "--backend", "ray"]) == 2
    assert 'pip install "fedhealth[ray]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_of_ray_without_ray_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    study = Path(__file__).parents[3] / "configs/simulation/study.yaml"
    for option in ("--cpus-per-hospital=2", "--gpus-per-hospital=0.5", "--ray-address=host:1"):
        assert run(["simulate", str(study), "--num-sites", "3", option]) == 2
        assert "FH-RAY-007" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["auto", "ray://host:10001", "host:", ":6379"])
def test_what_is_no_address_of_a_cluster_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="FH-RAY-008"):
        require_reachable(address)


def test_a_cluster_that_nobody_reaches_is_said_at_once() -> None:
    with pytest.raises(TransportError, match="FH-RAY-002"):
        require_reachable(f"127.0.0.1:{free_port()}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_reachable(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("exit_code", [2, 3, 4, 5, 6, 7, 8, 9])
def test_what_ended_a_run_in_another_process_keeps_its_exit_code(exit_code: int) -> None:
    said = {"state": "failed", "code": "FH-X-001", "what": "w", "why": "", "fix": ""}
    with pytest.raises(Exception, match="FH-X-001") as raised:
        raise_failure(said | {"exit_code": exit_code})
    assert getattr(raised.value, "exit_code", None) == exit_code
