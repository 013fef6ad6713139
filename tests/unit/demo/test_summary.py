"""The demo says what came out, whatever it is."""

from typing import Any

from fedhealth.cli.output import table
from fedhealth.demo.summary import summary_lines, verdict
from fedhealth.site.results import ALONE, TUNED, sentence_of
from fedhealth.training.held_out import Difference, PairedDifference


def difference(value: float, width: float) -> Difference:
    return Difference(value=value, low=value - width, high=value + width)


def found(auc: Difference | None, log_loss: Difference | None) -> PairedDifference:
    return PairedDifference(num_patients=30, auc=auc, log_loss=log_loss)


def as_dict(value: Difference | None) -> dict[str, float] | None:
    return value and {"value": value.value, "low": value.low, "high": value.high}


def test_a_sentence_says_better_only_when_the_interval_does() -> None:
    unclear = sentence_of("federated (a)", found(difference(0.02, 0.05), difference(-0.01, 0.02)))
    assert "AUC +0.020 (-0.030 to +0.070)" in unclear
    assert "no difference either way" in unclear
    better = sentence_of("federated (a)", found(difference(0.08, 0.05), difference(-0.03, 0.02)))
    assert better.endswith("better in AUC and better in log loss.")
    worse = sentence_of("federated (a)", found(difference(-0.08, 0.05), difference(0.03, 0.02)))
    assert worse.endswith("worse in AUC and worse in log loss.")
    assert "undefined" in sentence_of("federated (a)", found(None, difference(0.0, 0.1)))
    assert "no held-out patient" in sentence_of("federated (a)", found(None, None))


def test_a_sentence_names_the_tasks_own_first_metric() -> None:
    dice = PairedDifference(num_patients=30, metric="dice", primary=difference(0.1, 0.05))
    said = sentence_of("federated (a)", dice)
    assert "Dice overlap +0.100 (+0.050 to +0.150): better in Dice overlap." in said
    assert "log loss" not in said
    open_one = PairedDifference(num_patients=3, metric="c_index", log_loss=difference(0.0, 0.1))
    assert "concordance undefined (no comparable pair)" in sentence_of("federated (a)", open_one)


def outcome() -> dict[str, Any]:
    row = {"auc": 0.7, "auc_low": 0.6, "auc_high": 0.8}
    worse, unclear = difference(-0.08, 0.05), difference(0.0, 0.1)
    site = {
        "site_id": "hospital-1",
        "num_patients": 30,
        "rows": [
            {"model": ALONE, **row},
            {"model": TUNED, **row, "auc": None},
            {"model": "federated (a)", **row},
        ],
        "differences": [
            {"auc": as_dict(worse), "log_loss": as_dict(unclear), "sentence": "It was worse."}
        ],
    }
    spent = {
        "site_id": "hospital-1",
        "is_bounded": True,
        "epsilon": 7.234,
        "delta": 4e-4,
        "limit": 8.0,
        "unit": "patient",
        "adjacency": "add_or_remove_one",
        "accountant": "dp-accounting PLD",
    }
    return {"sites": [site], "privacy": [spent], "has_privacy": True, "reports": ["index.html"]}


def test_the_end_of_a_demo_shows_results_comparison_cost_and_reports() -> None:
    text = "\n".join(summary_lines(outcome(), table))
    assert "alone, tuned" in text
    assert "0.700 (0.60-0.80)" in text
    assert "hospital-1: It was worse." in text
    assert "epsilon 7.23 at delta 0.0004 (the site allows 8)" in text
    assert "add or remove one" in text
    assert "report: index.html" in text


def test_a_study_without_privacy_claims_none() -> None:
    end = outcome()
    end["privacy"][0]["is_bounded"] = False
    assert "no privacy guarantee" in "\n".join(summary_lines(end, table))


def test_the_verdict_counts_both_directions() -> None:
    said = verdict(outcome()["sites"], has_privacy=True)
    assert "0 came out better, 1 worse, and 1 show no difference" in said
    assert "Of 2 comparisons of federated with privacy" in said
