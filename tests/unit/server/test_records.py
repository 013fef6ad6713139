"""What a round's record says about privacy: answers that count have an account, others none."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from fedhealth.config.study import RunPlan
from fedhealth.contracts.aggregation import Aggregate, SiteLevelRelease
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.evidence.statements import (
    CohortMember,
    Contribution,
    Manifest,
    RosterEntry,
    RoundPrivacy,
    manifest_tensors,
)
from fedhealth.report.privacy import check_privacy
from fedhealth.report.record import NotEvidenced, RoundRecord, VoidReason
from fedhealth.server.records import round_record
from fedhealth.server.roster import RosterLine
from fedhealth.server.round_loop import RoundOutcome, SiteOutcome
from fedhealth.testing.example_rounds import SITES, digest, example_run, spend_of

VECTOR = np.zeros(4, dtype=np.float32)
SPEC = TensorSpec.of({"body.weight": VECTOR})
TIME = "2026-03-02T09:00:00Z"
RUN = RunPlan(name="federated", num_rounds=2)
NOISED_RUN = RunPlan.model_validate(
    {
        "name": RUN.name,
        "num_rounds": 2,
        "strategy": {
            "name": "dp-fedavg",
            "options": {"num_sites": 24, "noise_multiplier": 2.0, "clipping_norm": 1.0},
        },
    }
)
ROUNDS = example_run()
NAMES = list(SITES)
LINES = {
    name: RosterLine(
        entry=RosterEntry(
            site_id=name,
            key_id=digest(name),
            signing_key="key",
            node_key_id=digest(f"node {name}"),
            train_size=size,
            modalities=("table",),
        ),
        node_key="key",
        state="admitted",
    )
    for name, size in SITES.items()
}
RELEASE = SiteLevelRelease(
    mechanism="dp-fedavg",
    noise_multiplier=2.0,
    noise_std=0.5,
    clipping_norm=1.0,
    denominator=4,
    num_replies=3,
    quantile_multiplier=None,
    generator="chacha20",
)


def manifest(privacy: RoundPrivacy | None) -> Manifest:
    return Manifest(
        study_id="heart-demo",
        study_sha256=digest("study"),
        run_name=RUN.name,
        flower_run_id="7",
        round_number=1,
        attempt=1,
        kind="train",
        model_sha256=digest("model"),
        tensors=manifest_tensors(SPEC),
        cohort=tuple(
            CohortMember(site_id=name, key_id=line.entry.key_id) for name, line in LINES.items()
        ),
        min_cohort=2,
        strategy_config={"clipping_norm": 0.4, "proximal_mu": 0.01},
        privacy=privacy,
        deadline_s=60.0,
        opened_at=TIME,
    )


def answer(name: str, *, is_private: bool, drop: DropCode | None = None) -> SiteOutcome:
    said = Contribution(
        study_id="heart-demo",
        site_id=name,
        manifest_sha256=digest("manifest"),
        run_name=RUN.name,
        round_number=1,
        attempt=1,
        kind="train",
        update_sha256=digest(f"update {name}"),
        num_elements=4,
        privacy=spend_of(name, ROUNDS[:1], is_private=is_private),
    )
    return SiteOutcome(
        line=LINES[name],
        drop_code=drop,
        contribution=said,
        contribution_sha256=digest(f"said {name}"),
        update_bytes=16,
        answered_after_s=1.0,
    )


def record(
    *,
    num_admitted: int = 4,
    is_private: bool = True,
    status: Literal["complete", "void"] = "complete",
    site_level: bool = False,
) -> RoundRecord:
    sites = [answer(name, is_private=is_private) for name in NAMES[:3]]
    sites.append(answer(NAMES[3], is_private=is_private, drop=DropCode.NON_FINITE))
    asked = RoundPrivacy(
        unit="patient", target_epsilon=8.0, noise_multiplier=None, clipping_norm=1.0
    )
    one = replace(RELEASE, denominator=24, noise_std=2.0 / 24)
    levels: dict[str, Any] = {"site_level": one, "site_level_so_far": (one,)}
    mean = Aggregate(
        vector=VECTOR, train_metrics={}, evaluate_metrics={}, **(levels if site_level else {})
    )
    is_void = status == "void"
    outcome = RoundOutcome(
        manifest=manifest(asked if is_private else None),
        manifest_sha256=digest("manifest"),
        status=status,
        void_reason=VoidReason.MINIMUM_COHORT if is_void else None,
        model_out_sha256=digest("model" if is_void else "next"),
        sites=sites,
        aggregate=None if is_void else mean,
        closed_at=TIME,
        seconds={},
    )
    others = [
        line.model_copy(
            update={"entry": line.entry.model_copy(update={"site_id": f"other-{number}"})}
        )
        for number, line in enumerate([LINES[NAMES[0]]] * (num_admitted - 4))
    ]
    run = NOISED_RUN if site_level else RUN
    return round_record(outcome, run, [*LINES.values(), *others], {})


@pytest.mark.parametrize("status", ["complete", "void"])
def test_every_answer_that_was_verified_has_its_account_and_a_dropped_one_has_none(
    status: Literal["complete", "void"],
) -> None:
    written = record(status=status)  # what a void round cost is spent all the same
    known = {site.site_id: site.privacy for site in written.sites}
    assert [name for name in NAMES if known[name] is None] == [NAMES[3]]
    for name in NAMES[:3]:
        said, fact = spend_of(name, ROUNDS[:1]), known[name]
        assert fact is not None
        assert (fact.round_events, fact.study_events) == (said.round_events, said.study_events)
        assert (fact.ledger_sequence, fact.ledger_head) == (said.ledger.sequence, said.ledger.head)
        assert (fact.delta, fact.clipping_norm) == (said.delta, said.clipping_norm)
    check_privacy(written)


def test_what_was_proposed_is_recorded_and_an_account_closes_the_open_point() -> None:
    written = record()
    assert written.patient_privacy is not None
    assert written.patient_privacy.target_epsilon == 8.0
    assert NotEvidenced.PRIVACY_ACCOUNTING not in written.not_evidenced


def test_a_study_without_privacy_is_recorded_as_without_a_bound() -> None:
    written = record(is_private=False)
    assert written.patient_privacy is None
    assert all(s.privacy is None or not s.privacy.is_bounded for s in written.sites)
    assert NotEvidenced.PRIVACY_ACCOUNTING in written.not_evidenced


def test_site_level_releases_of_the_run_are_recorded_apart_from_patients() -> None:
    written = record(is_private=False, site_level=True)
    assert written.site_level is not None
    assert written.site_level.run_events[0].steps == 1
    assert written.site_level.round_events[0].steps == 1
    assert NotEvidenced.PRIVACY_ACCOUNTING in written.not_evidenced
    assert record().site_level is None
    check_privacy(written)


@pytest.mark.parametrize(("num_admitted", "shows"), [(4, False), (19, False), (20, True)])
def test_a_badge_needs_admitted_sites_and_not_only_a_large_denominator(
    num_admitted: int, shows: bool
) -> None:
    written = record(is_private=False, site_level=True, num_admitted=num_admitted)
    assert written.site_level is not None
    assert written.site_level.num_sites == 24
    assert written.site_level.shows_badge is shows
    assert (NotEvidenced.PRIVACY_ACCOUNTING not in written.not_evidenced) is shows


def test_what_the_strategy_told_the_sites_is_recorded() -> None:
    assert record().strategy_config == {"clipping_norm": 0.4, "proximal_mu": 0.01}
