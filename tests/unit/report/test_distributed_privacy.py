"""Noise that sites add themselves, in records and on pages: recomputed, and never shown without whom it counts on."""

import re
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from fedhealth.contracts.aggregation import SiteLevelRelease, SkellamShare
from fedhealth.errors import EvidenceError
from fedhealth.evidence.statements import LedgerPlace, PrivacySpend
from fedhealth.privacy.accounting.events import DistributedSkellam, GaussianRelease
from fedhealth.privacy.accounting.site_level import SITES
from fedhealth.privacy.distributed.plan import plan_distributed
from fedhealth.report.privacy import (
    check_privacy,
    site_fact,
    site_level_fact,
    spend_is_consistent,
)
from fedhealth.report.privacy_facts import SiteLevelFact
from fedhealth.report.record import RoundRecord, SiteStatus
from fedhealth.report.render import render_round
from fedhealth.testing.example_rounds import run_with_site_level

SHARE = SkellamShare(l1_sensitivity=9e5, l2_sensitivity=1000.0, variance=9e6, num_honest=21)
TRAINED = DistributedSkellam(
    unit="patient",
    sampler="poisson",
    sampling_rate=0.05,
    l1_sensitivity=9e5,
    l2_sensitivity=1000.0,
    variance=1e6,
    num_honest=3,
    steps=40,
    population="train",
    split_id="s1",
)


def release(**changes: Any) -> SiteLevelRelease:
    """24 sites; the grid makes contributions 1.1 times as long."""
    given = SiteLevelRelease(
        mechanism="distributed-skellam",
        noise_multiplier=3.0,
        noise_std=3.0 * 1.1 * 0.4 / 24,
        clipping_norm=0.4,
        denominator=24,
        num_replies=22,
        quantile_multiplier=None,
        generator="chacha20",
        skellam=SHARE,
    )
    return replace(given, **changes)


def level(**changes: Any) -> SiteLevelFact:
    one = release(**changes)
    fact = site_level_fact(one, [one], num_admitted=24)
    assert fact is not None
    return fact


def record_with(fact: SiteLevelFact) -> RoundRecord:
    record = run_with_site_level(24)[0]
    dump = record.model_dump(mode="json")
    dump["strategy"] = fact.mechanism
    dump["site_level"] = fact.model_dump(mode="json")
    return RoundRecord.model_validate(dump)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).replace("&#39;", "'")


def spend(**changes: Any) -> PrivacySpend:
    event = TRAINED.model_copy(update=changes)
    return PrivacySpend(
        round_events=(event,),
        study_events=(event.model_copy(update={"steps": 80}),),
        delta=1e-4,
        clipping_norm=1.0,
        ledger=LedgerPlace(sequence=6, head="0" * 64),
    )


def test_a_record_with_noise_of_the_sites_is_recomputed() -> None:
    record = record_with(level())
    assert record.site_level is not None
    assert record.site_level.accountant == "dp-accounting RDP"
    assert record.site_level.epsilon == record.site_level.epsilon_rdp
    assert record.site_level.shows_badge
    check_privacy(record)


@pytest.mark.parametrize("bits", [12, 24])
def test_what_a_plan_says_makes_a_record(bits: int) -> None:
    plan = plan_distributed(
        unit="site",
        dimension=5000,
        clipping_norm=0.4,
        noise_multiplier=3.0,
        num_sites=24,
        num_honest=21,
        modulus_bits=bits,
        max_contributions=24,
    )
    fact = level(noise_std=plan.noise_std / 24, skellam=plan.share)
    assert fact.run_events == (plan.event(split_id=SITES),)
    check_privacy(record_with(fact))


@pytest.mark.parametrize("field", ["epsilon", "epsilon_rdp"])
def test_a_tampered_epsilon_is_found(field: str) -> None:
    fact = level()
    changes = {field: (fact.epsilon or 0) * (0.99 if field == "epsilon" else 1.01)}
    record = record_with(SiteLevelFact.model_validate(fact.model_dump() | changes))
    with pytest.raises(EvidenceError, match="FH-REPORT-010"):
        check_privacy(record)


def test_a_headline_of_another_accountant_is_found() -> None:
    changes = {"accountant": "dp-accounting PLD"}
    record = record_with(SiteLevelFact.model_validate(level().model_dump() | changes))
    with pytest.raises(EvidenceError, match="FH-REPORT-010"):
        check_privacy(record)


GAUSSIAN = GaussianRelease(
    unit="site", noise_multiplier=3.0, steps=1, population="all", split_id="sites"
).model_dump()


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_std": 3.0 * 0.99 * 0.4 / 24},
        {"noise_std": 3.0 * 2.01 * 0.4 / 24},
        {"mechanism": "dp-fedavg"},
        {"mechanism": "dp-ftrl"},
        {"round_events": [GAUSSIAN], "run_events": [GAUSSIAN]},
        {"samplers": ["poisson"]},
        {"clipping_norm": 0.9},
    ],
)
def test_a_contradiction_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SiteLevelFact.model_validate(level().model_dump() | changes)


@pytest.mark.parametrize("loss", [1.0, 2.0])
def test_rounding_to_a_grid_may_double_the_noise(loss: float) -> None:
    assert level(noise_std=3.0 * loss * 0.4 / 24).is_bounded


def test_two_releases_of_one_round_are_refused() -> None:
    fact = level()
    events = [event.model_copy(update={"steps": 2}) for event in fact.run_events]
    with pytest.raises(ValidationError, match="another number of releases"):
        SiteLevelFact.model_validate(
            fact.model_dump() | {"round_events": events, "run_events": events}
        )


def test_a_page_says_whose_noise_it_counts_on() -> None:
    page = text_of(render_round(record_with(level()), previous=None))
    assert "noise of at least 21 honest sites" in page
    assert "Sum with noise from the sites, noise of at least 21 honest sites none 3" in page
    assert "only the sum was opened, and was divided by 24 whoever answered" in page
    assert "The bound counts on the noise of at least 21 honest sites in every sum" in page


def test_a_page_of_a_server_that_adds_the_noise_says_nothing_of_honest_sites() -> None:
    page = text_of(render_round(run_with_site_level(24)[0], previous=None))
    assert "honest" not in page


def test_an_account_of_patients_with_it_is_believed_and_composed() -> None:
    said = spend()
    assert spend_is_consistent(said, declared_train_size=500)
    fact = site_fact(said)
    assert fact is not None
    assert fact.accountant == "dp-accounting RDP"
    assert fact.samplers == ("poisson",)
    assert fact.epsilon == fact.epsilon_rdp


NONSENSE: dict[str, PrivacySpend] = {
    "hardly any noise": spend(variance=1.0),
    "noise that outgrows the accountant": spend(variance=1e20),
    "a sampling rate that no study has": spend(sampling_rate=1e-9),
    "an event about a site": spend(unit="site"),
    "no clipping norm": spend().model_copy(update={"clipping_norm": None}),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_it_is_not_believed(name: str) -> None:
    assert not spend_is_consistent(NONSENSE[name])


def test_a_page_shows_it_for_patients() -> None:
    record = run_with_site_level(24)[0]
    fact = site_fact(spend())
    assert fact is not None
    dump = record.model_dump(mode="json")
    index = next(i for i, one in enumerate(record.sites) if one.status is SiteStatus.CONTRIBUTED)
    dump["sites"][index]["privacy"] = fact.model_dump(mode="json")
    dump["sites"][index]["evaluate_metrics"] = {}
    dump["aggregate_evaluate_metrics"] = {}
    page = text_of(render_round(RoundRecord.model_validate(dump), previous=None))
    assert "Sum with noise from the sites, noise of at least 3 honest sites Poisson 1 0.05" in page
    assert "The bound counts on the noise of at least 3 honest sites in every sum" in page
