"""Epsilons of a record follow from its events, are never shown too small, and no number mixes hospitals or units."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedhealth_strategies.dp_fedavg import DpFedAvg
from fedhealth_strategies.dp_ftrl import DpFtrl
from pydantic import ValidationError
from scipy.optimize import brentq
from scipy.stats import norm

from fedhealth.contracts.aggregation import STRATEGY_CONFIG_ALLOWED, SiteLevelRelease
from fedhealth.errors import EvidenceError
from fedhealth.evidence.statements import LedgerPlace, PrivacySpend, RoundPrivacy
from fedhealth.privacy.accounting import accountants, site_level
from fedhealth.privacy.accounting.events import (
    Event,
    GaussianRelease,
    PoissonSubsampledGaussian,
    UnboundedRelease,
    merge_events,
)
from fedhealth.report.privacy import (
    MAX_KINDS,
    check_privacy,
    headline,
    patient_fact,
    site_fact,
    site_level_fact,
    spend_is_consistent,
)
from fedhealth.report.privacy_facts import SitePrivacyFact
from fedhealth.report.record import (
    NotEvidenced,
    RoundRecord,
    SiteStatus,
    StrategySetting,
    unevidenced,
)
from fedhealth.testing.example_rounds import (
    SITES,
    bare_run,
    digest,
    example_run,
    run_with_site_level,
    run_without_privacy,
    spend_of,
)

ROUNDS = example_run()
GOLDEN = Path(__file__).parents[2] / "golden" / "report"


def gaussian(noise: float, steps: int = 1) -> GaussianRelease:
    return GaussianRelease(
        unit="patient", noise_multiplier=noise, steps=steps, population="train", split_id="s1"
    )


def training(steps: int, noise: float = 1.5) -> PoissonSubsampledGaussian:
    return PoissonSubsampledGaussian(
        sampling_rate=0.2, noise_multiplier=noise, steps=steps, split_id="s1"
    )


def spend(now: list[Event], so_far: list[Event], **changes: Any) -> PrivacySpend:
    values: dict[str, Any] = {
        "round_events": merge_events(now),
        "study_events": merge_events(so_far),
        "delta": 1e-4,
        "clipping_norm": 1.0,
        "ledger": LedgerPlace(sequence=3, head=digest("ledger")),
    }
    return PrivacySpend(**values | changes)


def closed_form(noise: float, steps: int, delta: float) -> float:
    """Balle and Wang 2018 (arXiv 1805.06530), theorem 8, solved for epsilon: no accountant."""
    mu = math.sqrt(steps) / noise

    def excess(epsilon: float) -> float:
        left = norm.cdf(mu / 2 - epsilon / mu)
        return float(left - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta)

    return float(brentq(excess, 0.0, 200.0, xtol=1e-12))


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 1), (5.0, 40), (1.0, 3)])
def test_epsilon_is_that_of_the_closed_form_and_not_below_it(noise: float, steps: int) -> None:
    fact = site_fact(spend([gaussian(noise)], [gaussian(noise, steps)]))
    assert fact is not None
    assert fact.epsilon is not None
    assert fact.epsilon_rdp is not None
    exact = closed_form(noise, steps, 1e-4)
    assert (
        exact * (1 - 1e-9) <= fact.epsilon <= exact * 1.005
    )  # the PLD is discretised pessimistically
    assert fact.epsilon_rdp > fact.epsilon


def test_epsilon_is_rounded_up_never_down() -> None:
    events = merge_events([training(37)])
    composed = accountants.compose(events, delta=1e-4)
    fact = site_fact(spend(list(events), list(events)))
    assert fact is not None
    assert fact.epsilon is not None
    assert composed.epsilon <= fact.epsilon <= composed.epsilon * (1 + 1e-5)


def test_every_epsilon_of_an_honest_record_is_recomputed() -> None:
    for record in [*ROUNDS, *run_without_privacy(), *run_with_site_level(4), *bare_run()]:
        check_privacy(record)


def with_privacy(record: RoundRecord, **changes: Any) -> RoundRecord:
    """The record with another account of its first hospital, checked by the schema."""
    dump = record.model_dump(mode="json")
    dump["sites"][0]["privacy"] |= changes
    return RoundRecord.model_validate(dump)


def account(record: RoundRecord) -> SitePrivacyFact:
    fact = record.sites[0].privacy
    assert fact is not None
    assert fact.epsilon is not None
    assert fact.epsilon_rdp is not None
    return fact


TAMPERED = {
    "a smaller epsilon": {"epsilon": (account(ROUNDS[1]).epsilon or 0) * 0.999},
    "a larger epsilon": {"epsilon": (account(ROUNDS[1]).epsilon or 0) * 1.001},
    "another RDP epsilon": {"epsilon_rdp": (account(ROUNDS[1]).epsilon_rdp or 0) * 0.999},
    "another accountant": {"accountant": "dp-accounting RDP"},
    "a larger delta": {"delta": 1e-3},
    "events of the round before": {
        "study_events": [e.model_dump(mode="json") for e in account(ROUNDS[0]).study_events]
    },
    "more noise than there was": {
        key: [
            e.model_dump(mode="json") | {"noise_multiplier": 2.0}
            for e in getattr(account(ROUNDS[1]), key)
        ]
        for key in ("round_events", "study_events")
    },
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_account_is_found(name: str) -> None:
    tampered = with_privacy(ROUNDS[1], **TAMPERED[name])
    with pytest.raises(EvidenceError, match="FH-REPORT-010") as caught:
        check_privacy(tampered)
    assert "hospital-north" in caught.value.what


def test_a_bound_where_there_is_none_is_refused_by_the_schema() -> None:
    record = run_without_privacy()[0]
    with pytest.raises(ValidationError, match="leaves no bound"):
        with_privacy(record, is_bounded=True, epsilon=1.0, epsilon_rdp=1.0)


def test_a_tampered_site_level_account_is_found() -> None:
    dump = run_with_site_level(24)[1].model_dump(mode="json")
    dump["site_level"]["epsilon"] *= 0.9
    with pytest.raises(EvidenceError, match="site-level account"):
        check_privacy(RoundRecord.model_validate(dump))


def test_an_account_that_nobody_can_compose_is_told_as_such() -> None:
    dump = ROUNDS[0].model_dump(mode="json")
    for key in ("round_events", "study_events"):
        event = dump["sites"][0]["privacy"][key][0]
        event |= {"sampling_rate": 1e-12, "noise_multiplier": 0.3, "steps": 1}
    with pytest.raises(EvidenceError, match="FH-REPORT-011"):
        check_privacy(RoundRecord.model_validate(dump))


def test_another_version_of_the_accountant_is_named_in_the_error() -> None:
    other = with_privacy(ROUNDS[0], epsilon=0.5, accountant_version="0.0.1")
    with pytest.raises(EvidenceError) as caught:
        check_privacy(other)
    assert "0.0.1" in caught.value.why


ACCOUNT_CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "an epsilon that is not bounded": {"is_bounded": False},
    "a bound without an epsilon": {"epsilon": None},
    "a bound of one accountant only": {"epsilon_rdp": None},
    "an RDP epsilon below the headline": {"epsilon_rdp": 1.0},
    "an event of a site": {
        "study_events": [gaussian(1.0).model_dump(mode="json") | {"unit": "site"}]
    },
    "a round that is not in the study": {"study_events": []},
    "samplers of other events": {"samplers": ["none"]},
    "a delta of one": {"delta": 1.0},
    "a negative epsilon": {"epsilon": -1.0},
    "another accountant": {"accountant": "my own"},
    "another scope": {"composition_scope": "everything"},
}


@pytest.mark.parametrize("name", ACCOUNT_CONTRADICTIONS)
def test_a_contradiction_in_an_account_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        with_privacy(ROUNDS[0], **ACCOUNT_CONTRADICTIONS[name])


def test_a_dropped_site_has_no_account() -> None:
    dump = ROUNDS[1].model_dump(mode="json")
    dropped = next(s for s in dump["sites"] if s["status"] == SiteStatus.DROPPED)
    dropped["privacy"] = dump["sites"][0]["privacy"]
    with pytest.raises(ValidationError, match="verified answer"):
        RoundRecord.model_validate(dump)


def test_accounts_of_a_ledger_are_consistent() -> None:
    for site_id, size in SITES.items():
        assert spend_is_consistent(spend_of(site_id, ROUNDS), declared_train_size=size)
        bare = spend_of(site_id, ROUNDS, is_private=False)
        assert spend_is_consistent(bare, declared_train_size=size)
    assert spend_is_consistent(spend([], []))


NONSENSE: dict[str, PrivacySpend] = {
    "more steps now than so far": spend([training(9)], [training(8)]),
    "an event of the round that is not in the study": spend([gaussian(3.0)], [training(8)]),
    "less noise now than so far": spend([training(1, noise=1.0)], [training(8)]),
    "an event about a site": spend(
        [], [gaussian(3.0).model_copy(update={"unit": "site"})], clipping_norm=None
    ),
    "training without a clipping norm": spend([training(8)], [training(8)], clipping_norm=None),
    "a delta above a tenth": spend([training(8)], [training(8)], delta=0.2),
    "a sampling rate that outgrows the accountant": spend(
        [], [training(8).model_copy(update={"sampling_rate": 1e-12})]
    ),
    "noise that outgrows the accountant": spend([], [gaussian(1e9)]),
    "hardly any noise": spend([], [gaussian(1e-3)]),
    "too many kinds of events": spend([], [gaussian(2.0 + i / 100) for i in range(MAX_KINDS + 1)]),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_an_account_is_not_believed(name: str) -> None:
    assert not spend_is_consistent(NONSENSE[name])


def test_delta_is_held_against_the_declared_size() -> None:
    said = spend([training(8)], [training(8)], delta=1e-3)
    assert spend_is_consistent(said, declared_train_size=100)
    assert not spend_is_consistent(said, declared_train_size=101)


def test_headline_is_the_largest_epsilon_and_no_mean_minimum_or_sum() -> None:
    record = ROUNDS[0]
    epsilons = {s.site_id: s.privacy.epsilon for s in record.sites if s.privacy}
    top = headline(record)
    assert top is not None
    assert top.fact.epsilon == max(value for value in epsilons.values() if value is not None)
    assert epsilons[top.site_id] == top.fact.epsilon
    assert headline(bare_run()[0]) is None


def test_a_site_without_a_bound_is_the_headline() -> None:
    dump = ROUNDS[0].model_dump(mode="json")
    bare = run_without_privacy()[0].model_dump(mode="json")
    dump["sites"][2]["privacy"] = bare["sites"][2]["privacy"]
    dump["not_evidenced"] = list(NotEvidenced)
    top = headline(RoundRecord.model_validate(dump))
    assert top is not None
    assert top.site_id == dump["sites"][2]["site_id"]
    assert not top.fact.is_bounded


def test_epsilon_never_falls_over_the_rounds_of_a_site() -> None:
    for name in SITES:
        course = [
            site.privacy.epsilon
            for record in ROUNDS
            for site in record.sites
            if site.site_id == name and site.privacy is not None
        ]
        assert len(course) >= 3
        assert course == sorted(course, key=lambda value: value or 0)


def test_what_is_open_follows_from_the_accounts() -> None:
    is_open = NotEvidenced.PRIVACY_ACCOUNTING
    assert all(is_open in record.not_evidenced for record in bare_run())
    assert all(is_open in record.not_evidenced for record in run_without_privacy())
    assert not any(is_open in record.not_evidenced for record in ROUNDS)
    dump = bare_run()[0].model_dump(mode="json")
    dump["not_evidenced"].remove(is_open)
    with pytest.raises(ValidationError, match="not_evidenced"):
        RoundRecord.model_validate(dump)


def test_the_privacy_cost_stays_open_while_one_hospital_has_no_bound() -> None:
    is_open = NotEvidenced.PRIVACY_ACCOUNTING
    bare = run_without_privacy()[0].sites
    for other in (bare[2], bare[2].model_copy(update={"privacy": None})):
        mixed = (*ROUNDS[0].sites[:2], other, ROUNDS[0].sites[3])
        assert is_open in unevidenced(mixed, None)
        for num_sites, stays in ((4, True), (24, False)):
            level = run_with_site_level(num_sites)[0].site_level
            assert (is_open in unevidenced(mixed, level)) is stays
    void = ROUNDS[2].sites
    assert is_open not in unevidenced(void, None)  # what was not used was spent all the same
    nobody = [s for s in void if not s.has_answered]
    assert is_open in unevidenced(nobody, None)


def release(num_sites: int, noise: float = 2.0) -> SiteLevelRelease:
    return SiteLevelRelease(
        mechanism="dp-fedavg",
        noise_multiplier=noise,
        noise_std=noise / num_sites,
        clipping_norm=1.0,
        denominator=num_sites,
        num_replies=num_sites - 1,
        quantile_multiplier=None,
        generator="chacha20",
    )


def test_site_level_epsilon_is_that_of_the_closed_form_over_all_rounds() -> None:
    fact = site_level_fact(release(30), [release(30)] * 10, num_admitted=30)
    assert fact is not None
    assert fact.epsilon is not None
    exact = closed_form(2.0, 10, fact.delta)
    assert exact * (1 - 1e-9) <= fact.epsilon <= exact * 1.005
    assert site_level_fact(None, [], num_admitted=30) is None


@pytest.mark.parametrize(("num_sites", "shows"), [(4, False), (19, False), (20, True), (50, True)])
def test_no_badge_below_twenty_sites(num_sites: int, shows: bool) -> None:
    for denominator, admitted in ((num_sites, num_sites), (num_sites, 60), (60, num_sites)):
        fact = site_level_fact(release(denominator), [release(denominator)], num_admitted=admitted)
        assert fact is not None
        assert fact.shows_badge is shows
    record = run_with_site_level(num_sites)[0]
    assert record.site_level is not None
    assert record.site_level.shows_badge is shows
    dump = record.model_dump(mode="json")
    dump["site_level"]["shows_badge"] = not shows
    with pytest.raises(ValidationError, match="badge"):
        RoundRecord.model_validate(dump)


def test_no_badge_for_an_epsilon_that_says_nothing_or_for_noise_from_a_seed() -> None:
    loose = release(30, noise=0.3)
    assert closed_form(0.3, 1, 1e-3) > site_level.MAX_EPSILON_FOR_BADGE
    seeded = replace(release(30), generator="seeded_for_tests")
    for releases in ([loose], [release(30)] * 40, [seeded], [release(30), seeded]):
        fact = site_level_fact(releases[-1], releases, num_admitted=30)
        assert fact is not None
        assert not fact.shows_badge
        with pytest.raises(ValidationError, match="badge"):
            type(fact).model_validate(fact.model_dump(mode="json") | {"shows_badge": True})


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_a_round_whose_clipping_norm_adapts_is_one_model_and_one_count(num_rounds: int) -> None:
    strategy = DpFedAvg(
        num_sites=30, noise_multiplier=1.5, clipping_norm=0.4, adaptive_clipping=True
    )
    releases = strategy.planned_releases(num_rounds)
    fact = site_level_fact(releases[-1], releases, num_admitted=30)
    assert fact is not None
    assert fact.num_model_releases == num_rounds
    equal = replace(releases[0], quantile_multiplier=releases[0].noise_multiplier)
    merged = site_level_fact(equal, [equal] * num_rounds, num_admitted=30)
    assert merged is not None
    assert merged.num_model_releases == num_rounds


def test_rounds_with_correlated_noise_are_one_model_each() -> None:
    strategy = DpFtrl(num_sites=30, noise_multiplier=9.0, clipping_norm=0.4, bands=3)
    releases = strategy.planned_releases(5)
    for number in range(1, 6):
        fact = site_level_fact(releases[number - 1], releases[:number], num_admitted=30)
        assert fact is not None
        assert fact.num_model_releases == number


def test_limits_are_the_ones_of_the_accounting() -> None:
    assert set(StrategySetting.__args__) == STRATEGY_CONFIG_ALLOWED


def test_what_the_manifest_proposed_is_in_the_record() -> None:
    asked = RoundPrivacy(
        unit="patient", target_epsilon=8.0, noise_multiplier=None, clipping_norm=0.5
    )
    fact = patient_fact(asked)
    assert fact is not None
    assert (fact.target_epsilon, fact.noise_multiplier, fact.clipping_norm) == (8.0, None, 0.5)
    assert patient_fact(None) is None
    assert site_fact(None) is None


def test_no_bound_is_no_number() -> None:
    fact = site_fact(
        spend(
            [UnboundedRelease(unit="patient", steps=1)], [UnboundedRelease(unit="patient", steps=2)]
        )
    )
    assert fact is not None
    assert not fact.is_bounded
    assert fact.epsilon is None
    assert fact.epsilon_rdp is None


def test_a_record_is_read_and_shown_without_an_accountant() -> None:
    code = (
        "import sys; from pathlib import Path; from fedhealth.report.write import read_rounds; "
        "from fedhealth.report.render import render_round, render_run; "
        f"rounds = read_rounds(Path({str(GOLDEN)!r})); "
        "assert rounds and any(s.privacy for s in rounds[0].sites); "
        "render_run('t', rounds); render_round(rounds[1], previous=rounds[0], history=rounds[:1]); "
        "assert not [m for m in sys.modules if m.startswith(('dp_accounting', 'scipy', 'torch'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
