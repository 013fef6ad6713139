"""A simulation is a federation in one process: same rounds, same records, a watermark, and it can be gone on with."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedhealth_test_plugins.scripted import DRAWN_HERE

from fedhealth.contracts.codes import DropCode
from fedhealth.durable import read_json
from fedhealth.errors import AggregationError, QuorumError, UsageError
from fedhealth.evidence.journal import verify_journal
from fedhealth.report.record import SiteStatus
from fedhealth.report.write import read_rounds
from fedhealth.simulation import InProcess, Progress, Simulation, simulate
from fedhealth.site.home import SiteHome

from .conftest import content, hospitals, masks

WEIGHTED = 0.5 * 140 / 60


def run_of(simulation: Simulation) -> Any:
    return simulation.runs["main"]


@pytest.mark.parametrize("more", [{}, masks()], ids=["plain", "masked"])
def test_the_final_model_is_the_weighted_mean_of_known_updates(
    as_study: Any, tmp_path: Path, more: dict[str, Any]
) -> None:
    study = as_study(content({"step": 0.5}, num_rounds=2, **more))
    done = simulate(study, hospitals(tmp_path), tmp_path / "out")
    # Masks carry fixed-point numbers: two rounds on a grid of 8 / 2^15 each.
    np.testing.assert_allclose(run_of(done).vector, 2 * WEIGHTED, atol=2 * 8 / 2**15)
    assert [(r.kind, r.status) for r in run_of(done).records] == [
        ("train", "complete"),
        ("train", "complete"),
        ("evaluate", "complete"),
    ]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ({"name": "fedavg", "options": {"weighting": "uniform"}}, 1.0),
        ({"name": "flower-fedavg"}, WEIGHTED),
        ({"name": "flower-fedmedian"}, 1.0),
    ],
)
def test_strategies_by_name_give_their_own_mean(
    as_study: Any, tmp_path: Path, strategy: dict[str, Any], expected: float
) -> None:
    runs = [{"name": "main", "num_rounds": 1, "strategy": strategy}]
    done = simulate(
        as_study(content({"step": 0.5}, runs=runs)), hospitals(tmp_path), tmp_path / "out"
    )
    np.testing.assert_allclose(run_of(done).vector, expected, rtol=1e-6)


def test_every_record_and_page_says_that_it_is_a_simulation(as_study: Any, tmp_path: Path) -> None:
    done = simulate(as_study(content({}, num_rounds=2)), hospitals(tmp_path), tmp_path / "out")
    reports = run_of(done).reports
    assert all(record.is_simulation for record in run_of(done).records)
    assert b'"is_simulation":true' in (reports / "run.json").read_bytes()
    pages = sorted(reports.glob("*.html"))
    assert len(pages) == 4
    for page in pages:
        assert "All hospitals of this page were simulated by one party" in page.read_text()


def test_progress_is_told_after_every_round(as_study: Any, tmp_path: Path) -> None:
    told: list[Progress] = []
    simulate(
        as_study(content({}, num_rounds=2)), hospitals(tmp_path), tmp_path / "out", told.append
    )
    said = [(p.record.round_number, p.record.kind) for p in told if p.record is not None]
    assert said == [(1, "train"), (2, "train"), (3, "evaluate")]


def test_a_site_that_fails_is_a_recorded_drop_with_its_code(as_study: Any, tmp_path: Path) -> None:
    study = as_study(content({"fault": "raise", "fault_site": "hospital-2"}))
    done = simulate(study, hospitals(tmp_path), tmp_path / "out")
    facts = {site.site_id: site for site in run_of(done).records[0].sites}
    assert facts["hospital-2"].drop_code is DropCode.SITE_ERROR
    assert facts["hospital-1"].status is SiteStatus.CONTRIBUTED


def test_a_hospital_with_wrong_data_is_dropped_in_every_round(
    as_study: Any, tmp_path: Path
) -> None:
    sites = hospitals(tmp_path)
    sites[0].data_dir.mkdir(parents=True)
    (sites[0].data_dir / "somebody.txt").write_text("not generated")
    others = [
        s.model_copy(update={"package": s.package.model_copy(update={"options": OPTIONS})})
        for s in sites
    ]
    done = simulate(
        as_study(content({"reads_cohort": True}, num_rounds=2)), others, tmp_path / "out"
    )
    for record in run_of(done).records:
        codes = {site.site_id: site.drop_code for site in record.sites}
        assert codes == {"hospital-1": DropCode.SITE_DATA, "hospital-2": None, "hospital-3": None}


OPTIONS = {"num_patients": 8, "size": 16, "imaging": False}


def test_a_slow_site_misses_its_deadline(as_study: Any, tmp_path: Path) -> None:
    federation = {"min_cohort": 2, "cohort_wait_s": 1, "round_deadline_s": 1}
    study = as_study(content({"slow_site": "hospital-1", "slow_s": 3.0}, federation=federation))
    done = simulate(study, hospitals(tmp_path), tmp_path / "out")
    facts = {site.site_id: site for site in run_of(done).records[0].sites}
    assert facts["hospital-1"].drop_code is DropCode.DEADLINE
    assert run_of(done).records[0].status == "complete"


def test_too_few_answers_make_a_void_round_and_end_without_a_quorum(
    as_study: Any, tmp_path: Path
) -> None:
    federation = {"min_cohort": 3, "cohort_wait_s": 1, "round_deadline_s": 5, "max_void_rounds": 2}
    study = as_study(content({"fault": "nan", "fault_site": "hospital-2"}, federation=federation))
    with pytest.raises(QuorumError, match="FH-QUORUM-002"):
        simulate(study, hospitals(tmp_path), tmp_path / "out")
    reports = tmp_path / "out/server/runs/main/reports"
    assert [record.status for record in read_rounds(reports)] == ["void", "void"]
    assert (reports / "index.html").exists()
    outcome = read_json(tmp_path / "out/server/runs/main/outcome.json")
    assert (outcome["state"], outcome["exit_code"]) == ("no_quorum", 9)


def test_a_hospital_whose_policy_refuses_does_not_take_part(as_study: Any, tmp_path: Path) -> None:
    sites = hospitals(tmp_path)
    wants_masks = sites[0].secure_aggregation.model_copy(update={"required": True})
    sites[0] = sites[0].model_copy(update={"secure_aggregation": wants_masks})
    told: list[Progress] = []
    done = simulate(as_study(content({})), sites, tmp_path / "out", told.append)
    assert done.site_ids == ("hospital-2", "hospital-3")
    assert list(done.absent) == ["hospital-1"]
    assert done.absent["hospital-1"] in told[0].text
    facts = {site.site_id: site.status for site in run_of(done).records[0].sites}
    assert facts["hospital-1"] is SiteStatus.NOT_INVITED


def test_too_few_hospitals_are_no_quorum_at_once(as_study: Any, tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match="FH-QUORUM-006"):
        simulate(as_study(content({})), hospitals(tmp_path, 1), tmp_path / "out")


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_strategy_that_fails_says_so_and_voids_its_round(as_study: Any, tmp_path: Path) -> None:
    strategy = {"name": "flower-fedadam", "options": {"tau": 0.0}}  # 0 / 0 where nothing moved
    runs = [{"name": "main", "num_rounds": 1, "strategy": strategy}]
    study = as_study(content({"step": 0.0}, runs=runs))
    with pytest.raises(AggregationError, match="FH-STRATEGY"):
        simulate(study, hospitals(tmp_path), tmp_path / "out")
    (record,) = read_rounds(tmp_path / "out/server/runs/main/reports")
    assert record.void_reason == "aggregation_failed"


def interrupt_after(num_rounds: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.record is not None and progress.record.round_number == num_rounds:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("more", [{}, masks()], ids=["plain", "masked"])
def test_an_interrupted_simulation_goes_on_to_the_same_model(
    as_study: Any, tmp_path: Path, more: dict[str, Any]
) -> None:
    study = as_study(content({"step": 0.5}, num_rounds=3, **more))
    with pytest.raises(KeyboardInterrupt):
        simulate(study, hospitals(tmp_path), tmp_path / "out", interrupt_after(2))
    done = simulate(study, hospitals(tmp_path), tmp_path / "out")
    assert [(r.round_number, r.attempt) for r in run_of(done).records] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
    ]
    whole = simulate(study, hospitals(tmp_path), tmp_path / "whole")
    if more:  # rounding under masks is random
        np.testing.assert_allclose(run_of(done).vector, run_of(whole).vector, atol=3 * 8 / 2**15)
    else:
        assert run_of(done).vector.tobytes() == run_of(whole).vector.tobytes()


def test_hospitals_whose_frozen_tensors_are_not_the_servers_take_no_part(
    as_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = as_study(content({"frozen": "drawn from the seed"}, num_rounds=3))
    with pytest.raises(KeyboardInterrupt):
        simulate(study, hospitals(tmp_path), tmp_path / "out", interrupt_after(1))
    monkeypatch.setenv(DRAWN_HERE, "by another version of torch")
    with pytest.raises(QuorumError, match="FH-QUORUM-002"):
        simulate(study, hospitals(tmp_path), tmp_path / "out")
    first, *others = read_rounds(tmp_path / "out/server/runs/main/reports")
    assert first.status == "complete"
    codes = {site.drop_code for record in others for site in record.sites}
    assert codes == {DropCode.FROZEN_MISMATCH}


def press_ctrl_c_when(path: Path) -> threading.Thread:
    def wait() -> None:
        end = time.monotonic() + 60
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        if path.exists():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_ctrl_c_within_a_round_makes_a_new_attempt_of_it(as_study: Any, tmp_path: Path) -> None:
    watch = tmp_path / "began"
    study = as_study(content({"step": 0.5, "watch": str(watch), "wait_s": 0.3}))
    thread = press_ctrl_c_when(tmp_path / "began.hospital-2")
    with pytest.raises(KeyboardInterrupt):
        simulate(study, hospitals(tmp_path), tmp_path / "out")
    thread.join()
    done = simulate(study, hospitals(tmp_path), tmp_path / "out")
    assert [(r.round_number, r.attempt) for r in run_of(done).records] == [(1, 2), (2, 1)]
    np.testing.assert_allclose(run_of(done).vector, WEIGHTED, rtol=1e-6)


def test_a_finished_simulation_is_read_again_and_nothing_runs(
    as_study: Any, tmp_path: Path
) -> None:
    study = as_study(content({"step": 0.5}))
    first = simulate(study, hospitals(tmp_path), tmp_path / "out")
    first.remove_sites()
    told: list[Progress] = []
    again = simulate(study, hospitals(tmp_path), tmp_path / "out", told.append)
    assert told == []
    assert run_of(again).vector.tobytes() == run_of(first).vector.tobytes()


@pytest.mark.parametrize("change", ["study", "sites", "foreign"])
def test_a_folder_of_something_else_is_left_alone(
    as_study: Any, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "out"
    if change == "foreign":
        out.mkdir()
        (out / "thesis.txt").write_text("work")
    else:
        simulate(as_study(content({})), hospitals(tmp_path), out)
    study = as_study(content({}) | {"seed": 8} if change == "study" else content({}))
    sites = hospitals(tmp_path, 4 if change == "sites" else 3)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(UsageError, match="FH-USAGE-050"):
        simulate(study, sites, out)
    assert sorted(path.name for path in out.iterdir() if path.name != "lock") == [
        name for name in before if name != "lock"
    ]


def test_two_hospitals_of_one_name_are_refused(as_study: Any, tmp_path: Path) -> None:
    twice = [hospitals(tmp_path)[0]] * 2
    with pytest.raises(UsageError, match="FH-USAGE-052"):
        simulate(as_study(content({})), twice, tmp_path / "out")


def test_hospitals_beyond_the_memory_limit_are_reopened_and_give_the_same_model(
    as_study: Any, tmp_path: Path
) -> None:
    study = as_study(content({"step": 0.5}, num_rounds=2))
    kept = simulate(study, hospitals(tmp_path), tmp_path / "kept")
    tight = simulate(
        study, hospitals(tmp_path), tmp_path / "tight", backend=InProcess(memory_limit_bytes=1)
    )
    assert run_of(kept).vector.tobytes() == run_of(tight).vector.tobytes()


def test_every_answer_is_in_the_hospitals_journal(as_study: Any, tmp_path: Path) -> None:
    simulate(as_study(content({}, num_rounds=2)), hospitals(tmp_path), tmp_path / "out")
    home = SiteHome(tmp_path / "out/sites/hospital-1")
    _, num_lines = verify_journal(home.study("scripted").journal)
    assert num_lines == 4  # its keys, two updates, the closing metrics


def test_a_server_does_not_run_from_the_home_of_a_simulation(as_study: Any, tmp_path: Path) -> None:
    from fedhealth.cli.app import run

    done = simulate(as_study(content({})), hospitals(tmp_path), tmp_path / "out")
    assert run(["server", "run", "--home", str(done.folder / "server")]) == 2


def test_a_simulated_hospital_gives_its_cohort_to_others(as_study: Any, tmp_path: Path) -> None:
    options = {"package": {"name": "synthetic", "options": OPTIONS}}
    done = simulate(as_study(content({})), hospitals(tmp_path, **options), tmp_path / "out")
    context = done.context("hospital-2", "main")
    assert (context.site_id, len(context.load_cohort().patients)) == ("hospital-2", 8)
    assert context.state_dir.is_dir()
