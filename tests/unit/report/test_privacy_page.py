"""The privacy section of a page: an epsilon never stands alone, and no bound is said in words."""

import math
import re

import pytest

from fedhealth.report import charts, wording
from fedhealth.report.privacy import largest
from fedhealth.report.privacy_page import round_section, run_section, up
from fedhealth.report.record import NotEvidenced, RoundRecord, SiteFact
from fedhealth.report.render import render_round, render_run
from fedhealth.testing.example_rounds import (
    SITES,
    bare_run,
    example_run,
    run_with_site_level,
    run_without_privacy,
)

ROUNDS = example_run()
RUN_PAGE = render_run("t", ROUNDS)
ROUND_PAGE = render_round(ROUNDS[1], previous=ROUNDS[0], history=ROUNDS[:1])


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).replace("&#39;", "'")


@pytest.mark.parametrize("page", [RUN_PAGE, ROUND_PAGE])
def test_an_epsilon_comes_with_all_that_it_needs_to_mean_something(page: str) -> None:
    for row in (
        run_section(ROUNDS).accounts
        if page is RUN_PAGE
        else round_section(ROUNDS[1], ROUNDS[:1]).accounts
    ):
        line = re.search(
            rf'<tr><th scope="row">{row.name}</th><td class="num"><strong>.*?</tr>', page
        )
        assert line
        for cell in (
            *(row.epsilon, row.epsilon_rdp, row.delta),
            *("patient, add or remove one", "Poisson", "this study at this hospital"),
            "dp-accounting PLD 0.",
        ):
            assert cell in line[0]
    for column in ("Clipping norm", "Noise multiplier", "Sampling rate", "Steps so far"):
        assert column in page


def test_headline_of_a_page_is_the_largest_epsilon_with_its_hospital() -> None:
    section = run_section(ROUNDS)
    closing = {s.site_id: s.privacy for s in ROUNDS[-1].sites if s.privacy}
    name, fact = max(closing.items(), key=lambda item: item[1].epsilon or 0)
    assert f"epsilon {up(fact.epsilon)} at delta {up(fact.delta)}, for a patient of {name}" in (
        section.summary
    )
    assert section.tile == f"ε {up(fact.epsilon)}"
    assert wording.OWN_HOSPITAL in section.summary
    assert largest([]) is None


def test_numbers_are_shown_rounded_up() -> None:
    assert up(1.23401) == "1.235"
    assert up(0.001) == "0.001"
    assert up(7.0) == "7"
    assert up(None) == "no bound"


def test_no_privacy_is_said_in_words() -> None:
    rounds = run_without_privacy()
    for page in (render_run("t", rounds), render_round(rounds[0], previous=None)):
        text = text_of(page)
        assert (
            "No differential privacy: nothing bounds what can be learnt about a patient of hosp"
            in text
        )
        assert "The study asks for no patient-level privacy." in text
        assert "no bound" in text
        assert "Epsilon over rounds" not in text
        assert wording.KEPT_NOISED["private_head"] not in text


def test_one_hospital_without_a_bound_is_the_headline() -> None:
    dump = ROUNDS[0].model_dump(mode="json")
    dump["sites"][1]["privacy"] = run_without_privacy()[0].model_dump(mode="json")["sites"][1][
        "privacy"
    ]
    dump["not_evidenced"] = list(NotEvidenced)
    section = round_section(RoundRecord.model_validate(dump), [])
    assert section.tile == "No bound"
    assert section.summary == f"{wording.UNBOUNDED} of hospital-south."


def test_a_record_without_accounts_says_so() -> None:
    text = text_of(render_round(bare_run()[0], previous=None))
    assert wording.NO_ACCOUNT in text
    assert "A bound on the privacy cost" in text


def test_chart_holds_every_hospital_and_the_target() -> None:
    section = run_section(ROUNDS)
    assert section.chart is not None
    assert [name for name, _ in section.legend] == [*SITES, "Target"]
    assert section.chart.count("<polyline") == len(SITES)
    assert section.chart.count('<line class="mean"') == 1
    assert "target of 8" in section.chart_hint


def test_chart_of_a_round_ends_with_the_round() -> None:
    whole, part = run_section(ROUNDS).chart, round_section(ROUNDS[1], ROUNDS[:1]).chart
    assert whole is not None
    assert part is not None
    assert part.count("<circle") == 7  # four hospitals, then three
    assert whole.count("<circle") == sum(s.privacy is not None for r in ROUNDS for s in r.sites)


def test_the_last_account_of_a_hospital_that_dropped_out_is_shown_as_old() -> None:
    section = round_section(ROUNDS[1], ROUNDS[:1])
    rows = {row.name: row for row in section.accounts}
    assert rows["lakeside-clinic"].as_of == "Round 1"
    assert rows["hospital-north"].as_of == "Round 2"
    assert f"{wording.SPEND_UNKNOWN} lakeside-clinic." in section.notes
    assert not any(note.startswith(wording.SPEND_UNKNOWN) for note in run_section(ROUNDS).notes)


def test_what_is_not_covered_and_where_the_head_stayed_is_said() -> None:
    notes = run_section(ROUNDS).notes
    assert wording.NOT_COVERED in notes
    assert wording.KEPT_NOISED["private_head"] in notes
    plain = ROUNDS[0].model_copy(update={"personalisation": "none"})
    assert wording.KEPT_NOISED["private_head"] not in round_section(plain, []).notes


def test_noise_from_a_fixed_seed_is_said() -> None:
    assert wording.SEEDED not in run_section(ROUNDS).notes
    dump = ROUNDS[0].model_dump(mode="json")
    for key in ("round_events", "study_events"):
        dump["sites"][0]["privacy"][key][0]["generator"] = "seeded_for_tests"
    assert wording.SEEDED in round_section(RoundRecord.model_validate(dump), []).notes


def test_steps_of_the_round_and_of_the_study_are_told_apart() -> None:
    rows = [row for row in round_section(ROUNDS[1], ROUNDS[:1]).events if row.name == "st-anne"]
    assert [(row.steps_now, row.steps_all) for row in rows] == [("12", "24"), ("1", "2")]


@pytest.mark.parametrize("num_sites", [4, 19])
def test_few_hospitals_get_no_badge_and_are_told_what_the_bound_is_worth(num_sites: int) -> None:
    rounds = run_with_site_level(num_sites)
    page = render_run("t", rounds)
    section = run_section(rounds)
    assert section.badge == ""
    assert f"With {num_sites} hospitals no badge is shown" in page
    assert "Hospital-level epsilon" not in page


def test_enough_hospitals_get_a_badge_with_delta() -> None:
    rounds = run_with_site_level(24)
    page = render_round(rounds[0], previous=None)
    assert re.search(r"Hospital-level epsilon [\d.]+ at delta [\d.]+", page)
    assert "no badge is shown" not in page


def test_an_epsilon_that_says_nothing_gets_no_badge_and_a_note() -> None:
    rounds = run_with_site_level(24)
    dump = rounds[0].model_dump(mode="json")
    dump["site_level"] |= {"shows_badge": False, "epsilon": 10.5, "epsilon_rdp": 11.0}
    section = round_section(RoundRecord.model_validate(dump), [])
    assert section.badge == ""
    assert section.site_level_notes == (wording.large_epsilon("10"),)
    assert "an epsilon above 10 bounds next to nothing" in section.site_level_notes[0]


def test_site_level_noise_from_a_fixed_seed_is_said() -> None:
    assert run_section(run_with_site_level(24)).site_level_notes == ()
    dump = run_with_site_level(24)[0].model_dump(mode="json")
    for key in ("round_events", "run_events"):
        dump["site_level"][key][0]["generator"] = "seeded_for_tests"
    dump["site_level"]["shows_badge"] = False
    page = render_round(RoundRecord.model_validate(dump), previous=None)
    assert wording.SEEDED_SITES in page
    assert "Hospital-level epsilon" not in page


def test_a_void_rounds_page_says_that_it_cost_its_patients_all_the_same() -> None:
    assert wording.VOID_COST in round_section(ROUNDS[2], ROUNDS[:2]).notes
    for record in (ROUNDS[0], run_without_privacy()[0], bare_run()[2]):
        assert wording.VOID_COST not in round_section(record, []).notes


def test_an_epsilon_is_told_as_odds_and_a_large_one_as_weak() -> None:
    first, last = round_section(ROUNDS[0], []), run_section(ROUNDS)
    for section in (first, last):
        epsilon = max(s.privacy.epsilon or 0 for s in section_sites(section is last) if s.privacy)
        assert f"by at most a factor of {up(math.exp(epsilon))} (exp of epsilon)" in section.summary
        assert "As a worst case that is a weak bound" in section.summary
    assert "weak" not in wording.odds(1.0, up(math.e))
    dump = ROUNDS[0].model_dump(mode="json")
    dump["sites"][0]["privacy"] |= {"epsilon": 900.0, "epsilon_rdp": 900.0}
    assert "a factor of more than a million" in (
        round_section(RoundRecord.model_validate(dump), []).summary
    )


def section_sites(is_last: bool) -> tuple[SiteFact, ...]:
    return ROUNDS[-1 if is_last else 0].sites


def test_two_hospitals_of_one_patient_compose_to_at_most_the_sum() -> None:
    text = text_of(RUN_PAGE)
    assert "compose: to at most the sum of the epsilons" in text
    assert "the epsilons add up" not in text


def test_both_units_stand_side_by_side_and_are_not_added() -> None:
    rounds = run_with_site_level(4)
    page = render_round(rounds[0], previous=None)
    assert wording.BOTH_UNITS in page
    assert "site, add or remove one" in page
    assert "patient, add or remove one" in page
    assert wording.BOTH_UNITS not in ROUND_PAGE
    assert 'aria-labelledby="site-level"' not in ROUND_PAGE


def test_every_code_of_the_section_has_its_words() -> None:
    from fedhealth.privacy.accounting.events import (
        DistributedSkellam,
        GaussianRelease,
        PoissonSubsampledGaussian,
        UnboundedRelease,
    )
    from fedhealth.report.privacy_facts import Adjacency, CompositionScope, Sampler

    kinds = (PoissonSubsampledGaussian, GaussianRelease, DistributedSkellam, UnboundedRelease)
    assert set(wording.EVENT) == {kind.model_fields["kind"].default for kind in kinds}
    assert set(wording.SCOPE) == set(CompositionScope)
    assert set(wording.SAMPLER) == set(Sampler.__args__)
    assert set(wording.ADJACENCY) == set(Adjacency.__args__)


@pytest.mark.parametrize("level", [0.0, 3.0, 80.0])
def test_level_and_included_values_are_inside_the_frame(level: float) -> None:
    svg = charts.curves(
        "t", [charts.Series("a", 0, [(1, 5.0), (2, 6.0)])], top=None, level=level, include=(0.0,)
    )
    line = re.search(r'<line class="mean" x1="48" y1="([\d.-]+)"', svg)
    assert line
    for y in [float(line[1]), *map(float, re.findall(r'cy="([\d.-]+)"', svg))]:
        assert 8 <= y <= 208
