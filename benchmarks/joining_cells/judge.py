"""What the predictions say: a row for each method, and each bar of the protocol met or missed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from privacy_utility import Hospital

from fedhealth.contracts.data import SplitName
from fedhealth.data.split import split_patients
from fedhealth.models.metrics import auc, log_losses, resampled_auc
from fedhealth.statistics.bootstrap import Comparison, compare
from fedhealth.statistics.judged import Judged, MeanOf, Statistic, Weighted
from fedhealth.statistics.verdicts import gain_of, judge_all, judge_sites
from fedhealth.training.held_out import HeldOutScores

LOG_LOSS: Statistic = MeanOf(log_losses)
AUC: Statistic = Weighted(resampled_auc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Predictions of one method at one hospital, small enough to travel between processes."""

    probabilities: NDArray[np.float64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    patients: NDArray[np.int64] = field(repr=False)
    auc: float | None
    log_loss: float

    @classmethod
    def of(cls, scores: HeldOutScores, hospital: Hospital, *, seed: int | None) -> "Scores":
        """With the patients' numbers: the same in every resplit (no seed), or each seed's own."""
        sides = split_patients(hospital.cohort)[SplitName.TEST]
        number = {patient.patient_id: n for n, patient in enumerate(hospital.cohort.patients)}
        numbers = np.array([number[patient.patient_id] for patient in sides], dtype=np.int64)
        return cls(
            patients=numbers if seed is None else numbers + seed * 1_000_000,
            probabilities=scores.probabilities,
            labels=scores.labels,
            auc=auc(scores.probabilities, scores.labels),
            log_loss=float(log_losses(scores.probabilities, scores.labels).mean()),
        )


class ControlScores(Protocol):
    """A result of a control: scores by method and hospital."""

    @property
    def scores(self) -> Mapping[str, Mapping[str, Scores]]:
        """Method -> hospital -> its scores."""
        ...


class HasScores(Protocol):
    """A result of `worth_joining`."""

    cohort: Any
    seed: int
    epsilon: float | None
    method: str
    setting: str
    hospital: str
    scores: Scores


def label_of(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:g}"


def rows(results: Sequence[HasScores], protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean over seeds of each hospital and of all, and differences from the tuned hospital with intervals."""
    keys = dict.fromkeys((r.cohort, r.epsilon, r.method) for r in results)
    found = []
    for cohort, epsilon, method in keys:
        own = _pick(results, cohort, epsilon, method)
        base = _pick(results, cohort, None, "tuned")
        no_auc = protocol["cohorts"][cohort].get("no_auc", [])
        by_auc = {h: _mean([s.auc for s in own[h]]) for h in own if h not in no_auc}
        found.append(
            {
                "cohort": cohort,
                "epsilon": epsilon,
                "method": method,
                "auc": _mean(list(by_auc.values())),
                "auc_worst": min(by_auc.values()),
                "auc_by_hospital": by_auc,
                "log_loss": _mean([_mean([s.log_loss for s in own[h]]) for h in own]),
                "log_loss_by_hospital": {h: _mean([s.log_loss for s in own[h]]) for h in own},
                **({} if method == "tuned" else _against(own, base, no_auc, protocol)),
            }
        )
    return found


def _against(
    own: Mapping[str, list[Scores]],
    base: Mapping[str, list[Scores]],
    no_auc: Sequence[str],
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    margin = protocol["margins"]["non_inferior_auc"]
    gains = {}
    for hospital in own:
        if hospital in no_auc:
            continue
        found = difference(own[hospital], base[hospital], AUC)
        gains[hospital] = None if found is None else gain_of(found, larger_is_better=True)
    verdicts = judge_sites(gains, margin=margin)
    overall = judge_all(gains, verdicts, margin=margin)
    losses = {h: difference(own[h], base[h], LOG_LOSS) for h in own}
    return {
        "auc_minus_tuned": {
            h: {"value": _4(g.value), "low": _4(g.low), "high": _4(g.high)}
            for h, g in gains.items()
            if g is not None
        },
        "verdicts": {h: verdict.verdict.value for h, verdict in verdicts.items()},
        "superior_at": list(overall.superior),
        "worse_at": list(overall.worse),
        "is_non_inferior_everywhere": overall.is_non_inferior_everywhere,
        "log_loss_minus_tuned": {
            h: {"value": _4(c.value), "low": _4(c.low), "high": _4(c.high)}
            for h, c in losses.items()
            if c is not None
        },
    }


def difference(
    one: Sequence[Scores], other: Sequence[Scores], statistic: Statistic
) -> Comparison | None:
    """Hierarchical and paired; a patient of several resplits is one patient."""
    return compare(_judged(one), _judged(other), statistic, seed=20, num_resamples=2000)


def _judged(scores: Sequence[Scores]) -> list[Judged]:
    return [
        Judged(
            predictions=one.probabilities,
            labels=one.labels,
            patients=one.patients,
            strata=one.labels,
        )
        for one in scores
    ]


def mean_auc(results: Sequence[ControlScores], method: str) -> float:
    """Over seeds and hospitals."""
    return float(
        np.mean([s.auc for r in results for s in r.scores[method].values() if s.auc is not None])
    )


def gain_at(
    hospital: str, results: Sequence[ControlScores], *, of: str, over: str
) -> tuple[float, float]:
    """What one method gains in AUC over another at one hospital, and the lower limit of its interval."""
    found = difference(
        [r.scores[of][hospital] for r in results],
        [r.scores[over][hospital] for r in results],
        AUC,
    )
    if found is None:
        raise SystemExit("no AUC where one was expected")
    return found.value, found.low


def bars(results: Sequence[HasScores], protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every bar of the protocol that these results can judge."""
    table = {(r["cohort"], label_of(r["epsilon"]), r["method"]): r for r in rows(results, protocol)}
    personal, found = protocol["personalised"], []
    if ("heart", "none", "tuned") in table:
        found += _heart_bars(table, protocol, personal["heart"])
    if ("generated", "none", "tuned") in table:
        found += _generated_bars(table, protocol, personal["generated"])
    return found


def _heart_bars(
    table: Mapping[tuple[str, str, str], dict[str, Any]], protocol: Mapping[str, Any], personal: str
) -> list[dict[str, Any]]:
    wanted, found = protocol["bars"]["heart"], []
    hard = protocol["cohorts"]["heart"]["hard_site"]
    base = table["heart", "none", "tuned"]
    for epsilon in map(label_of, wanted["log_loss_below_tuned"]):
        row = table["heart", epsilon, personal]
        same = table["heart", epsilon, "local"]
        gains = {
            h: row["auc_by_hospital"][h] - base["auc_by_hospital"][h]
            for h in base["auc_by_hospital"]
        }
        same_gains = [
            row["auc_by_hospital"][h] - same["auc_by_hospital"][h] for h in same["auc_by_hospital"]
        ]
        found += [
            _bar(
                f"heart, epsilon {epsilon}: log loss minus tuned local without noise",
                row["log_loss"] - base["log_loss"],
                "<",
                0.0,
            ),
            _bar(
                f"heart, epsilon {epsilon}: log loss minus local with the same privacy",
                row["log_loss"] - same["log_loss"],
                "<",
                0.0,
            ),
            _bar(
                f"heart, epsilon {epsilon}: least AUC gain of a site over tuned local",
                min(gains.values()),
                ">",
                -wanted["no_site_worse_auc"],
            ),
            _bar(
                f"heart, epsilon {epsilon}: least AUC gain of a site over local with the same privacy",
                min(same_gains),
                ">",
                -wanted["no_site_worse_auc"],
            ),
            _bar(
                f"heart, epsilon {epsilon}: AUC gain of {hard} over tuned local",
                gains[hard],
                ">=",
                wanted["hard_site_auc_gain"],
            ),
        ]
    return found


def _generated_bars(
    table: Mapping[tuple[str, str, str], dict[str, Any]], protocol: Mapping[str, Any], personal: str
) -> list[dict[str, Any]]:
    wanted = protocol["bars"]["generated"]
    tuned, pooled = table["generated", "none", "tuned"], table["generated", "none", "pooled"]
    free, noised = table["generated", "none", personal], table["generated", "8", personal]
    local = table["generated", "8", "local"]
    single = max(table["generated", "none", m]["auc"] for m in ("table_only", "volume_only"))
    gap = pooled["auc"] - tuned["auc"]
    return [
        _bar(
            "both modalities minus the best single one, pooled, AUC",
            pooled["auc"] - single,
            ">=",
            wanted["over_best_single_modality"],
        ),
        _bar(
            "epsilon 8: mean AUC over tuned local without noise",
            noised["auc"] - tuned["auc"],
            ">=",
            wanted["mean_auc_over_tuned_at_8"],
        ),
        _bar(
            "epsilon 8: mean AUC over local with the same privacy",
            noised["auc"] - local["auc"],
            ">=",
            wanted["mean_auc_over_tuned_at_8"],
        ),
        _bar(
            "epsilon 8: worst site's AUC over tuned local without noise",
            noised["auc_worst"] - tuned["auc_worst"],
            ">=",
            wanted["worst_site_auc_over_tuned_at_8"],
        ),
        _bar(
            "epsilon 8: worst site's AUC over local with the same privacy",
            noised["auc_worst"] - local["auc_worst"],
            ">=",
            wanted["worst_site_auc_over_tuned_at_8"],
        ),
        _bar(
            "share of the pooled minus local gap closed, no noise",
            (free["auc"] - tuned["auc"]) / gap if gap > 0 else float("nan"),
            ">=",
            wanted["gap_closed"],
        ),
        _bar(
            "what epsilon 8 costs in mean AUC",
            free["auc"] - noised["auc"],
            "<=",
            wanted["cost_of_epsilon_8"],
        ),
    ]


def _bar(name: str, value: float, relation: str, limit: float) -> dict[str, Any]:
    met = {"<": value < limit, ">": value > limit, ">=": value >= limit, "<=": value <= limit}[
        relation
    ]
    return {"bar": name, "value": _4(value), "wanted": f"{relation} {limit:g}", "met": bool(met)}


bar = _bar


def _pick(
    results: Sequence[HasScores], cohort: str, epsilon: float | None, method: str
) -> dict[str, list[Scores]]:
    found: dict[str, list[Scores]] = {}
    for r in sorted(results, key=lambda r: r.seed):
        if (r.cohort, r.epsilon, r.method) == (cohort, epsilon, method):
            found.setdefault(r.hospital, []).append(r.scores)
    return found


def _mean(values: Sequence[float | None]) -> float:
    return _4(float(np.mean([value for value in values if value is not None])))


def _4(value: float) -> float:
    return round(float(value), 4)


def print_record(record: Mapping[str, Any]) -> None:
    """Tables for people."""
    if "chosen" in record:
        print(record["chosen"])
    for row in record.get("rows", []):
        each = " ".join(f"{value:.3f}" for value in row["auc_by_hospital"].values())
        print(
            f"{row['cohort']:<10} epsilon {label_of(row['epsilon']):<5} {row['method']:<13} AUC {row['auc']:.3f} "
            f"(worst {row['auc_worst']:.3f}; {each})  log loss {row['log_loss']:.3f}"
            + (
                f"  superior at {len(row['superior_at'])}, worse at {len(row['worse_at'])}"
                if "superior_at" in row
                else ""
            )
        )
    judged = [
        line for part in ("bars", "controls", "controls_again") for line in record.get(part, [])
    ]
    for line in judged:
        print(
            f"{'met   ' if line['met'] else 'MISSED'} {line['bar']}: {line['value']:+.4f}, wanted {line['wanted']}"
        )
    for name, found in record.get("ceiling", {}).items():
        print(f"ceiling, {name}: mean {found['mean']:.3f}, worst hospital {found['worst']:.3f}")
    print(f"{record['seconds']} s")
