"""The record, words and page of a comparison: verdicts by rule, and no sentence that says more than its interval."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.report.benefit import wording
from fedhealth.report.benefit.analysis import analyse_simulation, analyse_site, with_verdicts
from fedhealth.report.benefit.learning_curves import curves_of_run, mean_curve, told_metric
from fedhealth.report.benefit.page import render_benefit
from fedhealth.report.benefit.record import (
    BenefitRecord,
    GainFact,
    MethodFact,
    SiteBenefit,
    benefit_json,
)
from fedhealth.statistics.verdicts import Verdict
from fedhealth.testing.example_rounds import example_run, masked_run

from .benefit_examples import MEASURE, METHODS, setting, site

LOCAL, RUN, POOLED = METHODS[0], METHODS[1], METHODS[3]


def gain(
    low: float,
    high: float,
    p_value: float = 0.001,
    *,
    method: str = "run:shared",
    over: str = "local",
) -> GainFact:
    return GainFact(
        method=method,
        over=over,
        metric="auc",
        value=(low + high) / 2,
        low=low,
        high=high,
        p_value=p_value,
        standard_error=(high - low) / 4,
    )


def record(
    gains: dict[str, tuple[GainFact, ...]],
    *,
    pooling_allowed: bool = False,
    methods: tuple[MethodFact, ...] = (LOCAL, RUN, POOLED),
) -> BenefitRecord:
    rows = [SiteBenefit(site_id=name, results=(), gains=found) for name, found in gains.items()]
    return BenefitRecord(
        study_id="tiny",
        study_sha256="0" * 64,
        origin="simulation",
        is_simulation=True,
        primary="auc",
        larger_is_better=True,
        margin=0.02,
        fewest=5,
        num_seeds=1,
        has_patient_privacy=False,
        pooling_allowed=pooling_allowed,
        methods=methods,
        sites=with_verdicts(rows, margin=0.02, primary="auc"),
    )


@pytest.mark.parametrize(
    ("found", "headline", "in_sentence"),
    [
        (gain(0.02, 0.06), "Worth it", "worth it"),
        (gain(-0.06, -0.01), "Not worth it", "worse"),
        (
            gain(-0.01, 0.01, 0.9),
            "No difference shown",
            "any difference is smaller than 2.0 points",
        ),
        (gain(-0.01, 0.06, 0.3), "No difference shown", "a gain is not shown"),
        (gain(-0.05, 0.06, 0.8), "No difference shown", "not ruled out either"),
    ],
)
def test_one_site_gets_the_words_of_its_interval(
    found: GainFact, headline: str, in_sentence: str
) -> None:
    made = record({"aa": (found,)})
    assert wording.headline(made, RUN) == headline
    assert in_sentence in wording.site_sentence(made, "aa", RUN)


def test_better_at_every_site_is_said_when_every_lower_limit_is_above_zero() -> None:
    ahead = {name: (gain(0.01, 0.05),) for name in ("aa", "bb", "cc")}
    assert "better at every site" in wording.overall_sentence(record(ahead), RUN)
    for spoiler in ((gain(-0.001, 0.05),), ()):
        said = wording.overall_sentence(record({**ahead, "dd": spoiler}), RUN)
        assert "every site" not in said
        assert "superior at 3 of" in said


def test_the_site_that_loses_is_named() -> None:
    made = record({"aa": (gain(0.01, 0.05),), "bb": (gain(-0.08, -0.03),)})
    said = wording.overall_sentence(made, RUN)
    assert "superior at 1 of 2 sites (aa)" in said
    assert "Worse at bb." in said
    assert "non-inferior at all" not in said
    assert "The least gain is at bb: -5.5 points (-8.0 to -3.0)." in said
    assert wording.headline(made, RUN) == "Worth it for some, worse for others"


def test_pool_the_data_is_said_when_policy_allows_it_and_federation_adds_nothing() -> None:
    gains = (
        gain(0.01, 0.05),
        gain(0.02, 0.06, method="pooled"),
        gain(-0.02, 0.01, 0.5, over="pooled"),
    )
    allowed = wording.pooling_sentence(record({"aa": gains}, pooling_allowed=True))
    assert allowed is not None
    assert allowed.startswith("Simply pool the data")
    assert "+4.0 points" in allowed
    forbidden = wording.pooling_sentence(record({"aa": gains}))
    assert forbidden is not None
    assert "not allowed" in forbidden
    assert "imply pool" not in forbidden
    better = (*gains[:2], gain(0.01, 0.03, over="pooled"))
    beaten = wording.pooling_sentence(record({"aa": better}, pooling_allowed=True))
    assert beaten is not None
    assert "imply pool" not in beaten
    assert "better than pooling at aa" in beaten


def test_without_a_simulation_of_pooling_the_advice_is_conditional() -> None:
    methods = (LOCAL, RUN)
    made = record({"aa": (gain(0, 0),)}, pooling_allowed=True, methods=methods)
    said = wording.pooling_sentence(made)
    assert said is not None
    assert "unless a simulation shows" in said
    assert wording.pooling_sentence(record({"aa": (gain(0, 0),)}, methods=methods)) is None


limits = st.tuples(st.floats(-0.2, 0.2), st.floats(0, 0.2), st.floats(0, 1))


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["aa", "bb", "cc"]), st.none() | limits, min_size=1))
def test_no_sentence_claims_more_than_the_intervals_allow(
    drawn: dict[str, tuple[float, float, float] | None],
) -> None:
    gains = {
        name: () if found is None else (gain(found[0], found[0] + found[1], found[2]),)
        for name, found in drawn.items()
    }
    made = record(gains)
    there = [found[0] for found in gains.values() if found]
    said = wording.overall_sentence(made, RUN)
    if "better at every site" in said:
        assert all(gains.values())
        assert min(g.low for g in there) > 0
    if "non-inferior at all" in said:
        assert min(g.low for g in there) > -0.02
    if wording.headline(made, RUN) == "Worth it":
        assert min(g.low for g in there) > 0
    for name, found in gains.items():
        sentence = wording.site_sentence(made, name, RUN)
        if ": worth it." in sentence:
            assert found[0].low > 0
            assert found[0].p_value <= 0.05
        if "is ruled out" in sentence:
            assert found[0].low > -0.02
        if not found:
            assert "too few patients" in sentence


def test_a_better_model_is_found_and_a_copy_of_it_is_not() -> None:
    noise = {"local": 3.0, "run:shared": 0.5, "run:heads": 3.0}
    made = analyse_simulation(
        setting(METHODS[:3]),
        MEASURE,
        [site("one", noise, seed=1, count=300), site("two", noise, seed=2, count=300)],
    )
    assert [s.gain("run:shared", "local", "auc").verdict for s in made.sites] == [  # type: ignore[union-attr]  # both have enough patients
        Verdict.WORTH_IT,
        Verdict.WORTH_IT,
    ]
    for row in made.sites:
        copied = row.gain("run:heads", "local", "auc")
        assert copied is not None
        assert (copied.value, copied.low, copied.high) == (0, 0, 0)
        assert copied.verdict is Verdict.EQUIVALENT


def test_delongs_p_value_stands_beside_the_bootstraps_with_one_split_only() -> None:
    noise = {"local": 1.5, "run:shared": 1.0}
    once = analyse_site(setting(METHODS[:2]), MEASURE, site("one", noise, count=300))
    twice = analyse_site(setting(METHODS[:2]), MEASURE, site("one", noise, count=300, seeds=2))
    found, other = (r.sites[0].gain("run:shared", "local", "auc") for r in (once, twice))
    assert found is not None
    assert found.delong_p == pytest.approx(found.p_value, abs=0.03)
    assert other is not None
    assert other.delong_p is None


def test_log_loss_gains_are_above_zero_where_the_model_is_better() -> None:
    made = analyse_site(
        setting(METHODS[:2]), MEASURE, site("one", {"local": 3.0, "run:shared": 0.5}, count=300)
    )
    found = made.sites[0].gain("run:shared", "local", "log_loss")
    assert found is not None
    assert found.low > 0
    assert found.verdict is None


def test_one_class_gives_no_auc_and_no_claim() -> None:
    made = analyse_site(
        setting(METHODS[:2]),
        MEASURE,
        site("one", {"local": 3.0, "run:shared": 0.5}, one_class=True),
    )
    assert made.gains("run:shared", "local") == {"one": None}
    assert "too few patients" in wording.site_sentence(made, "one", RUN)
    assert "auc" not in made.sites[0].results[0].metrics


def test_a_class_that_no_held_out_patient_has_is_too_few_patients() -> None:
    """Two of three classes give a macro AUC, but of another question than at the hospitals that have all three."""
    measure = replace(MEASURE, class_sizes=lambda *_: (60, 60, 0))
    made = analyse_site(
        setting(METHODS[:2]), measure, site("one", {"local": 3.0, "run:shared": 0.5})
    )
    assert made.gains("run:shared", "local") == {"one": None}


def test_sites_with_too_few_patients_are_no_sites_without_a_loss() -> None:
    made = record({"aa": (gain(0.01, 0.05),), "bb": ()})
    assert wording.headline(made, RUN) == "Worth it for some, not shown for the others"
    said = wording.overall_sentence(made, RUN)
    assert "superior at 1 of 1 site, non-inferior there (margin 2.0 points)" in said
    assert "Too few patients to say at bb." in said
    lost = record({"aa": (gain(-0.05, -0.01),), "bb": ()})
    assert wording.headline(lost, RUN) == "Worse for some"


def test_a_pooled_model_that_is_worse_is_never_advised() -> None:
    gains = (
        gain(-0.02, 0.01, 0.5),
        gain(-0.09, -0.04, method="pooled"),
        gain(0.00, 0.06, 0.06, over="pooled"),
    )
    said = wording.pooling_sentence(record({"aa": gains}, pooling_allowed=True))
    assert said is not None
    assert "imply pool" not in said
    assert "worse than training alone at aa" in said


def test_pooling_that_gains_nothing_either_says_so() -> None:
    gains = (
        gain(-0.02, 0.01, 0.5),
        gain(-0.01, 0.02, 0.6, method="pooled"),
        gain(-0.02, 0.01, 0.5, over="pooled"),
    )
    said = wording.pooling_sentence(record({"aa": gains}, pooling_allowed=True))
    assert said is not None
    assert said.startswith("Simply pool the data")
    assert "Pooling was not shown to be better than training alone either." in said


def test_pooling_that_lost_on_average_is_not_advised_either() -> None:
    gains = (
        gain(-0.08, 0.02, 0.5),
        gain(-0.08, 0.02, 0.3, method="pooled"),
        gain(-0.02, 0.01, 0.5, over="pooled"),
    )
    said = wording.pooling_sentence(record({"aa": gains}, pooling_allowed=True))
    assert said is not None
    assert "imply pool" not in said
    assert "not shown to be better than training alone" in said
    assert "-3.0 points" in said


def test_a_site_where_federation_is_worth_it_is_not_told_to_pool_what_nobody_compared() -> None:
    made = record({"aa": (gain(0.01, 0.05),)}, pooling_allowed=True, methods=(LOCAL, RUN))
    said = wording.pooling_sentence(made)
    assert said is not None
    assert "imply pool" not in said
    assert "simulation" in said


def test_a_run_that_beats_pooling_at_one_site_and_loses_at_another_is_told_so() -> None:
    made = record(
        {
            "aa": (gain(0.01, 0.05), gain(0.01, 0.03, over="pooled")),
            "bb": (gain(0.01, 0.05), gain(-0.04, -0.02, over="pooled")),
        },
        pooling_allowed=True,
    )
    said = wording.pooling_sentence(made)
    assert said is not None
    assert "better than pooling at aa, worse at bb" in said


def test_the_record_reads_back_and_refuses_what_it_does_not_know() -> None:
    made = analyse_site(
        setting(METHODS[:2]), MEASURE, site("one", {"local": 1.0, "run:shared": 0.5})
    )
    data = benefit_json(made)
    assert benefit_json(BenefitRecord.model_validate_json(data)) == data
    with pytest.raises(ValueError, match="not listed"):
        made.model_validate({**made.model_dump(), "methods": [LOCAL.model_dump()]})


def test_the_page_is_self_contained_and_holds_every_verdict() -> None:
    noise = {"local": 3.0, "run:shared": 0.5, "run:heads": 2.0, "pooled": 0.5, "left-out": 1.0}
    made = analyse_simulation(
        setting(), MEASURE, [site("one", noise, seeds=2), site("two", noise, one_class=True)]
    )
    html = render_benefit(made, title="Tiny <b>study</b>", record_file="benefit.json")
    assert "<b>study</b>" not in html
    assert not re.search(r"(?:src|href)=\"(?!benefit\.json)", html)
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "<script" not in html
    for run in made.runs:
        for name in ("one", "two"):
            sentence = wording.site_sentence(made, name, run)
            assert sentence.replace("'", "&#39;") in html
    assert html.count("<svg") == html.count("</svg>")
    assert html.count('role="img"') == html.count("<desc>")
    assert "AUPRC" in html
    assert "<title>[simulation]" in html
    assert "nothing here is evidence about a real hospital" in " ".join(html.split())


def test_a_run_whose_name_is_long_does_not_leave_the_drawing_and_every_interval_is_named() -> None:
    """Colours alone would not tell a reader which interval is whose."""
    long = MethodFact.of_run("a-run-with-a-very-long-name-indeed", is_personal=True)
    found = (gain(-0.05, 0.05), gain(-0.02, 0.05, method=long.key))
    made = record({"a-hospital-with-a-name": found}, methods=(LOCAL, RUN, long))
    html = render_benefit(made, title="Tiny", record_file="benefit.json")
    drawing = html[html.index("<figure") : html.index("</figure>")]
    assert ">a-hospital-with-a-name<" in drawing
    assert ">Federated (run shared)<" in drawing
    assert ">Personalised (run a-run-with-a-ve\u2026<" in drawing
    assert ">points of AUC<" in drawing


def test_curves_come_from_the_rounds_and_under_masks_from_their_means() -> None:
    open_rounds, masked_rounds = list(example_run()), list(masked_run())
    by_site = curves_of_run(open_rounds, metric="auc", method="run:shared")
    first = open_rounds[0]
    for fact in first.sites:
        value = fact.evaluate_metrics.get("auc")
        if value is not None:
            assert by_site[fact.site_id][0].points[0].at == 0  # the initial model
            assert by_site[fact.site_id][0].points[0].value == value
    (mean,) = mean_curve(masked_rounds, metric="log_loss", method="run:shared")
    known = [
        r.aggregate_evaluate_metrics["log_loss"] for r in masked_rounds if r.status == "complete"
    ]
    assert [point.value for point in mean.points] == known
    assert curves_of_run(masked_rounds, metric="log_loss", method="run:shared") == {}
    assert mean_curve(masked_rounds, metric="dice", method="run:shared") == ()
    assert told_metric("auc", ("auc", "log_loss")) == "auc"
    assert told_metric("auc", ("log_loss",)) == "log_loss"
