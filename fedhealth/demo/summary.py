"""The demo's last lines: results by site and model, what a patient's privacy cost, and was it worth it."""

from collections.abc import Callable, Sequence
from typing import Any

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]

SHORT_NAMES = (
    ("trained alone (settings of the study, no noise)", "alone, same settings"),
    ("trained alone (tuned, no noise)", "alone, tuned"),
)


def summary_lines(outcome: dict[str, Any], table: Table) -> list[str]:
    """Everything that a demo prints at its end; `table` makes text of headers and rows."""
    results, has_privacy = outcome["sites"], outcome["has_privacy"]
    return [
        "",
        "AUC on each hospital's held-out patients (95 % interval):",
        table(*summary_rows(results)),
        "",
        "Was it worth it? Each run minus the hospital's own tuned model without noise, same patients:",
        *difference_lines(results),
        verdict(results, has_privacy=has_privacy),
        "",
        "What the study cost a patient's privacy, all runs and metrics, from each hospital's ledger:",
        *privacy_lines(outcome["privacy"]),
        "",
        *(f"report: {report}" for report in outcome["reports"]),
    ]


def summary_rows(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Headers and rows of AUC by site and model; a dash where AUC is undefined (one class)."""
    short = dict(SHORT_NAMES)
    models = [short.get(row["model"], row["model"]) for row in results[0]["rows"]]
    rows: list[list[object]] = [
        [result["site_id"], result["num_patients"], *(_auc(row) for row in result["rows"])]
        for result in results
    ]
    return ["site", "test patients", *models], rows


def difference_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """Each run minus the tuned baseline, hospital by hospital, as each hospital found it."""
    return [
        f"{result['site_id']}: {difference['sentence']}"
        for result in results
        for difference in result["differences"]
    ]


def verdict(results: Sequence[dict[str, Any]], *, has_privacy: bool) -> str:
    """One plain sentence over all hospitals and runs: how often the federation was better, and how often worse."""
    kind = "federated with privacy" if has_privacy else "federated without privacy"
    found = [
        (metric, sign, difference[metric])
        for result in results
        for difference in result["differences"]
        for metric, sign in (("auc", 1), ("log_loss", -1))
        if difference[metric] is not None
    ]
    better = sum(sign * (d["low"] if sign > 0 else d["high"]) > 0 for _, sign, d in found)
    worse = sum(sign * (d["high"] if sign > 0 else d["low"]) < 0 for _, sign, d in found)
    return (
        f"Of {len(found)} comparisons of {kind} with a tuned model of the hospital's own without noise, "
        f"{better} came out better, {worse} worse, and {len(found) - better - worse} show no difference either "
        "way (95 % intervals, one by one, not corrected for their number)."
    )


def privacy_lines(spent: Sequence[dict[str, Any]]) -> list[str]:
    """Epsilon of each hospital's patients over the study, with all that it means nothing without."""
    return [_privacy_line(site) for site in spent]


def _privacy_line(site: dict[str, Any]) -> str:
    if not site["is_bounded"]:
        return f"{site['site_id']}: no privacy guarantee, no epsilon bounds what the models say about a patient."
    limit = "no limit set" if site["limit"] is None else f"the site allows {site['limit']:g}"
    return (
        f"{site['site_id']}: epsilon {site['epsilon']:.2f} at delta {site['delta']:.2g} ({limit}); unit "
        f"{site['unit']}, adjacency {site['adjacency'].replace('_', ' ')}, {site['accountant']}."
    )


def _auc(row: dict[str, Any]) -> str:
    if row["auc"] is None:
        return "-"
    return f"{row['auc']:.3f} ({row['auc_low']:.2f}-{row['auc_high']:.2f})"
