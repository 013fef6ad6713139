"""Patients' privacy across real processes: what is spent survives kills, backups and restarts."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.events import Event
from fedhealth.privacy.accounting.plan import SitePlan, plan_site
from fedhealth.privacy.ledger.ledger import BudgetLedger, LedgerView, Reservation, read_ledger
from fedhealth.site.home import SiteHome, load_pinned

from .conftest import (
    Federation,
    MakeFederation,
    factory,
    processes_of,
    study_content,
    wait,
    wait_until,
)


def private(
    num_rounds: int, *, options: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    federation = {"max_void_rounds": 50} | more.pop("federation", {})
    content = study_content(
        {"carries_out": True} | (options or {}), num_rounds=num_rounds, **federation
    )
    content["training"] |= {"batch_size": 2}
    content["release"] = {"metrics": []}
    content["privacy"] = {"noise_multiplier": 2.0, "clipping_norm": 1.0} | more
    return content


def ledger_of(federation: Federation, site_id: str) -> LedgerView:
    home = federation.sites[site_id]
    return read_ledger(home.ledger(load_pinned(home, "scripted").config))


def plan_of(federation: Federation, site_id: str) -> SitePlan:
    pinned = load_pinned(federation.sites[site_id], "scripted")
    plan = plan_site(pinned.study, pinned.admission.site.train_size)
    assert plan is not None
    return plan


def set_policy(home: SiteHome, text: str) -> None:
    with home.config_path.open("a") as file:
        file.write(f"privacy: {text}\n")


def budget(federation: Federation, site_id: str) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable, "-I", "-m", "fedhealth", "site", "budget", "--json",
            "--home", str(federation.sites[site_id].root),
        ],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def workers_of(home: SiteHome) -> list[int]:
    found = processes_of(home.root)
    return [pid for pid, command in found.items() if "fedhealth.site.worker" in command]


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three rounds; hospital-3 has budget for two of them, since another study spent the rest."""
    for make in factory(tmp_path_factory.mktemp("spent")):
        federation = make(private(3))
        plan = plan_of(federation, "hospital-3")
        event = plan.train_event("main")
        spend_in_another_study(federation.sites["hospital-3"], event)
        three, four = (compose([event] * n, delta=plan.delta).epsilon for n in (3, 4))
        limit = f"{{max_epsilon_per_dataset: {(three + four) / 2:.4f}}}"
        set_policy(federation.sites["hospital-3"], limit)
        assert federation.run_to_the_end() == 0, federation.output("server")
        federation.end()
        yield federation


def test_one_site_spends_its_budget_and_leaves_and_the_study_goes_on(spent: Federation) -> None:
    """The others finish, and hospital-3 still gets the final model."""
    codes = [
        {site.site_id: site.drop_code for site in record.sites}["hospital-3"]
        for record in spent.records()
    ]
    assert codes == [None, None, DropCode.PRIVACY_BUDGET, None]
    last = spent.records()[-2]
    contributed = [site for site in last.sites if site.drop_code is None]
    assert {site.site_id for site in contributed} == {"hospital-1", "hospital-2"}
    for site in contributed:
        assert site.privacy is not None
        own = plan_of(spent, site.site_id)
        expected = compose(own.planned_events(), delta=own.delta).epsilon
        assert site.privacy.epsilon == pytest.approx(expected, rel=1e-4)
    said = budget(spent, "hospital-1")
    (study,) = said["studies"]
    assert study["epsilon"] == pytest.approx(expected_of(spent, "hospital-1"), rel=1e-4)
    assert said["ledger"]["witnesses"][0]["is_held"] is True
    # The other study, two trainings, and the final model.
    assert len(ledger_of(spent, "hospital-3").lines) == 4


def spend_in_another_study(home: SiteHome, event: Event) -> None:
    key = os.urandom(32)
    home.ledger_key.write_bytes(key)
    config = load_pinned(home, "scripted").config
    with BudgetLedger.open(home.ledger(config), dataset="cohort", key=key) as ledger:
        earlier = Reservation(
            study_id="earlier",
            study_sha256="ab" * 32,
            run_name="main",
            round_number=1,
            attempt=1,
            kind="train",
            manifest_sha256="cd" * 32,
            events=(event,),
        )
        ledger.reserve(earlier, allow=lambda _: None)


def expected_of(federation: Federation, site_id: str) -> float:
    plan = plan_of(federation, site_id)
    return compose(plan.planned_events(), delta=plan.delta).epsilon


def test_a_site_whose_policy_forbids_the_study_ends_with_exit_5_and_never_dials(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(private(1), num_sites=2)
    set_policy(federation.sites["hospital-1"], "{max_epsilon_per_study: 0.01}")
    assert wait(federation.start_site("hospital-1"), 60) == 5
    said = federation.output("hospital-1")
    assert "FH-PRIVACY" in said
    assert "dialling" not in said
    assert not (federation.sites["hospital-1"].root / "ledger").exists()


def test_a_ledger_restored_from_a_backup_is_refused_until_what_was_lost_is_added(
    spent: Federation,
) -> None:
    home = spent.sites["hospital-2"]
    whole = ledger_of(spent, "hospital-2")
    ledger = home.ledger(load_pinned(home, "scripted").config) / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:1]))
    assert budget(spent, "hospital-2")["ledger"]["witnesses"][0]["is_held"] is False
    reports = spent.server.root / "runs"
    subprocess.run(
        [sys.executable, "-I", "-m", "fedhealth", "site", "recover", str(reports), "--home", str(home.root)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    after = budget(spent, "hospital-2")
    assert after["ledger"]["witnesses"][0]["is_held"] is True
    delta = plan_of(spent, "hospital-2").delta
    assert after["studies"][0]["epsilon"] == pytest.approx(
        compose(whole.events("scripted"), delta=delta).epsilon, rel=1e-4
    )


def test_a_site_killed_in_every_round_spends_what_an_observer_saw(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    """The worker is killed while it trains, once in each round; it comes back, and the round is made again."""
    num_rounds = 2
    watch = tmp_path / "began"
    federation = make_federation(
        private(
            num_rounds,
            options={"wait_s": 1.0, "watch": str(watch)},
            spare_rounds=2 * num_rounds,
            federation={"round_deadline_s": 40},
        ),
        num_sites=2,
    )
    home = federation.sites["hospital-1"]
    federation.start_sites()
    server = federation.start_server()
    began = Path(f"{watch}.hospital-1")
    for number in range(1, num_rounds + 1):
        wait_until(lambda n=number: _has_begun(began, n), 120, f"round {number} began")  # type: ignore[misc]
        for pid in workers_of(home):
            os.kill(pid, signal.SIGKILL)
    assert wait(server, 200) == 0, federation.output("server")
    federation.end()
    view = ledger_of(federation, "hospital-1")
    reserved = [(r.round_number, r.attempt) for r in view.lines if r.kind == "train"]
    seen = [tuple(map(int, line.split())) for line in began.read_text().splitlines()]
    assert reserved == seen
    assert len(reserved) >= 2 * num_rounds
    plan = plan_of(federation, "hospital-1")
    one_shot = compose([plan.train_event("main")] * len(seen), delta=plan.delta)
    assert compose(view.events(), delta=plan.delta).epsilon == pytest.approx(one_shot.epsilon)
    last = federation.records()[-1]
    (fact,) = [s.privacy for s in last.sites if s.site_id == "hospital-1"]
    assert fact is not None
    assert fact.epsilon == pytest.approx(one_shot.epsilon, rel=1e-4)


def _has_begun(path: Path, round_number: int) -> bool:
    return path.exists() and any(
        line.startswith(f"{round_number} ") for line in path.read_text().splitlines()
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_random_kills_leave_the_spend_that_an_observer_saw(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    watch, chance = tmp_path / "began", random.Random(3)  # noqa: S311 - not for cryptography
    federation = make_federation(
        private(
            40,
            options={"wait_s": 0.5, "watch": str(watch)},
            spare_rounds=200,
            federation={"min_cohort": 2, "round_deadline_s": 30, "cohort_wait_s": 300},
        )
    )
    federation.start_sites()
    server = federation.start_server()
    wait_until(lambda: len(federation.records()) >= 1, 120, "round 1 is done")
    for _ in range(20):
        time.sleep(chance.uniform(0.2, 4))
        site = federation.sites[chance.choice(list(federation.sites))]
        for pid in workers_of(site):
            os.kill(pid, signal.SIGKILL)
    assert wait(server, 1200) == 0, federation.output("server")
    federation.end()
    for site_id in federation.sites:
        view = ledger_of(federation, site_id)
        reserved = [(r.round_number, r.attempt) for r in view.lines if r.kind == "train"]
        path = Path(f"{watch}.{site_id}")
        seen = [tuple(map(int, line.split())) for line in path.read_text().splitlines()]
        assert len(set(reserved)) == len(reserved)
        assert set(seen) <= set(reserved)
        # A kill between the durable reservation and the first step of training is charged too.
        assert len(reserved) - len(seen) <= 20
        contributed = {
            (record.round_number, record.attempt)
            for record in federation.records()
            for site in record.sites
            if site.site_id == site_id and site.drop_code is None and record.kind == "train"
        }
        assert contributed <= set(reserved)
