"""The plain sentences: worth it, no difference shown, worse, and for whom. Each says what its interval allows, no more.

Called by the page and the command line. Nothing here computes: verdicts come from the record.
"""

from typing import Final

from fedhealth.report.benefit.record import (
    LEFT_OUT,
    LOCAL,
    POOLED,
    BenefitRecord,
    GainFact,
    MethodFact,
)
from fedhealth.statistics.verdicts import Gain, Overall, SiteVerdict, Verdict, judge_all

BANNER: Final = {
    "simulation": "Simulation on one machine. No hospital took part, and nothing was released.",
    "site": "This site's own result. It was computed here and stays here.",
    "released": "Rows that hospitals released and signed. Each computed its own; nobody else has checked the numbers.",
    "released_unverified": "Rows without a check of their signatures: give --server-home to know who wrote them.",
}
VERDICT: Final[dict[Verdict, str]] = {
    Verdict.WORTH_IT: "Worth it",
    Verdict.WORSE: "Worse",
    Verdict.EQUIVALENT: "No difference shown",
    Verdict.NO_LOSS: "No difference shown",
    Verdict.UNDECIDED: "No difference shown",
    Verdict.TOO_FEW: "Too few patients",
}
COMPARED: Final[dict[Verdict, str]] = {
    Verdict.WORTH_IT: "better",
    Verdict.WORSE: "worse",
    Verdict.EQUIVALENT: "no difference shown, and none beyond the margin",
    Verdict.NO_LOSS: "no difference shown, no loss beyond the margin",
    Verdict.UNDECIDED: "no difference shown, a loss not ruled out",
    Verdict.TOO_FEW: "too few patients",
}
"""A verdict on any pair of methods, without a word on whether it is worth anything."""
METRIC: Final = {
    "auc": "AUC",
    "average_precision": "AUPRC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity_at_90_specificity": "Sens. at 90 % spec.",
    "log_loss": "Log loss",
    "brier": "Brier",
    "integrated_brier": "Integrated Brier",
    "subset_accuracy": "Subset accuracy",
    "macro_auc": "Macro AUC",
    "c_index": "C-index",
    "dice": "Dice",
    "cross_validated_loss": "Cross-validated loss",
}
_IN_POINTS: Final = frozenset(METRIC) - {
    "log_loss",
    "brier",
    "integrated_brier",
    "cross_validated_loss",
}
"""Metrics from 0 to 1 that people quote in points of a hundred."""
_KINDS: Final = {
    "local": "Training alone (tuned)",
    "federated": "Federated",
    "personalised": "Personalised",
    "pooled": "Pooled data (tuned)",
    "left_out": "Federated without this site",
}


NOT_RELEASED: Final = "Not released"


def metric_name(name: str) -> str:
    """A metric for people."""
    return METRIC.get(name, name.replace("_", " "))


def method_name(method: MethodFact) -> str:
    """A method for people: ``Personalised (run private-head)``."""
    tail = "" if method.run_name is None else f" (run {method.run_name})"
    return _KINDS[method.kind] + tail


def scale(metric: str) -> float:
    """What a difference is multiplied with before people read it."""
    return 100.0 if metric in _IN_POINTS else 1.0


def unit_of_difference(metric: str) -> str:
    """What the axis of differences counts: ``points of AUC``."""
    return f"points of {metric_name(metric)}" if metric in _IN_POINTS else metric_name(metric)


def amount(value: float, metric: str, *, signed: bool = True) -> str:
    """A difference: ``+4.2 points`` where the metric is quoted in points, else ``+0.042``."""
    if metric in _IN_POINTS:
        shown = round(value * 100, 1) + 0.0  # minus zero is nobody's number
        return f"{shown:{'+' if signed else ''}.1f} points"
    shown = round(value, 3) + 0.0
    return f"{shown:{'+' if signed else ''}.3f}"


def interval(gain: GainFact) -> str:
    """``+4.2 points (+1.0 to +7.4)``."""
    low, high = (amount(v, gain.metric).removesuffix(" points") for v in (gain.low, gain.high))
    return f"{amount(gain.value, gain.metric)} ({low} to {high})"


def site_sentence(record: BenefitRecord, site_id: str, method: MethodFact) -> str:
    """What one site gets from a run, against training alone."""
    gain = record.gains(method.key, LOCAL)[site_id]
    verdict = verdict_of(gain)
    name, metric = method_name(method), metric_name(record.primary)
    margin = amount(record.margin, record.primary, signed=False)
    if gain is None:
        return f"{site_id}: {_nothing_to_say(record)}"
    head = f"{site_id}: {VERDICT[verdict].lower()}. {name} minus training alone is {interval(gain)} of {metric}"
    if verdict is Verdict.WORTH_IT:
        return f"{head}, above zero{_after_holm(record, method)}."
    if verdict is Verdict.WORSE:
        return f"{head}, below zero."
    if verdict is Verdict.EQUIVALENT:
        return f"{head}: any difference is smaller than {margin}."
    if verdict is Verdict.NO_LOSS:
        alone = (
            f" The interval is above zero by itself, but not{_after_holm(record, method)}."
            if gain.low > 0
            else f" {could_have_shown(gain)}"
        )
        return f"{head}: a loss of {margin} or more is ruled out, a gain is not shown.{alone}"
    return f"{head}: a loss of {margin} is not ruled out either. {could_have_shown(gain)}"


def _nothing_to_say(record: BenefitRecord) -> str:
    """Why a site has no comparison in the primary metric."""
    metric = metric_name(record.primary)
    if is_released(record):
        return f"no difference in {metric} was released."
    return (
        f"too few patients to say. A comparison in {metric} needs at least {record.fewest} held-out patients of each "
        "class."
    )


def could_have_shown(gain: GainFact) -> str:
    """The honest limit of these patients."""
    least = amount(gain.gain.detectable, gain.metric, signed=False)
    return f"With these patients, a difference of {least} would have been shown in four of five such studies."


def overall(record: BenefitRecord, method: str, over: str = LOCAL) -> Overall:
    """What all sites together allow, by the rules of `statistics.verdicts`."""
    gains: dict[str, Gain | None] = {}
    verdicts: dict[str, SiteVerdict] = {}
    for site_id, fact in record.gains(method, over).items():
        gains[site_id] = None if fact is None else fact.gain
        verdicts[site_id] = SiteVerdict(
            verdict=verdict_of(fact), adjusted_p=None if fact is None else fact.adjusted_p
        )
    return judge_all(gains, verdicts, margin=record.margin)


def overall_sentence(record: BenefitRecord, method: MethodFact) -> str:
    """All sites in a few sentences: superior where, worse where, non-inferior at all or not, the worst site."""
    if len(record.sites) == 1:
        return site_sentence(record, record.sites[0].site_id, method)
    found = overall(record, method.key)
    name, metric = method_name(method), metric_name(record.primary)
    if found.num_sites == 0 and is_released(record):
        return f"{name}: no site released a difference in {metric}. What was released is among all comparisons."
    if found.num_sites == 0:
        return f"{name}: no site has enough held-out patients for a comparison in {metric}."
    said = [f"{name} against training alone, in {metric}: {_claim(record, found)}."]
    if found.worse:
        said.append(f"Worse at {_listed(found.worse)}.")
    if not found.is_non_inferior_everywhere:
        said.append(
            f"A loss of {amount(record.margin, record.primary, signed=False)} is not ruled out everywhere."
        )
    worst = found.worst_site
    gain = record.gains(method.key, LOCAL)[worst] if worst is not None else None
    if gain is not None and found.num_sites > 1:
        said.append(f"The least gain is at {worst}: {interval(gain)}.")
    if found.left_out:
        why = (
            "No difference was released by" if is_released(record) else "Too few patients to say at"
        )
        said.append(f"{why} {_listed(found.left_out)}.")
    return " ".join(said)


def headline(record: BenefitRecord, method: MethodFact) -> str:
    """The verdict over all sites in a few words."""
    found = overall(record, method.key)
    gained, lost, everyone = len(found.superior), len(found.worse), found.num_sites
    if everyone == 0:
        return NOT_RELEASED if is_released(record) else "Too few patients to say"
    if lost:
        if gained:
            return "Worth it for some, worse for others"
        return "Not worth it" if lost == len(record.sites) else "Worse for some"
    if gained == len(record.sites):
        return "Worth it"
    rest = "no loss" if found.is_non_inferior_everywhere else "no difference shown"
    if found.left_out:
        rest = "not shown"  # of some of them nothing can be said
    return f"Worth it for some, {rest} for the others" if gained else "No difference shown"


def pooling_sentence(record: BenefitRecord) -> str | None:
    """Whether to pool instead; None where pooling is neither allowed nor simulated."""
    if not record.has(POOLED):
        return _pooling_unseen(record) if record.pooling_allowed else None
    gained = _pooling_gain(record)
    if not record.pooling_allowed:
        return f"Pooling is not allowed here. For orientation only: {gained}"
    reason = _not_to_pool(record)
    if reason is not None:
        return f"Your policy allows pooling, {reason}. {gained}"
    said = f"Simply pool the data: your policy allows it, and federation adds nothing to it that was shown. {gained}"
    if overall(record, POOLED).superior:
        return said
    return f"{said} Pooling was not shown to be better than training alone either."


def _not_to_pool(record: BenefitRecord) -> str | None:
    """Why not to advise pooling where policy allows it; None where nothing speaks against it."""
    compared = [
        found for run in record.runs if (found := overall(record, run.key, POOLED)).num_sites
    ]
    if not compared:
        return "and there are too few patients to compare it with a run"
    alone = overall(record, POOLED)
    if alone.worse:
        return f"but one model of all data was worse than training alone at {_listed(alone.worse)}"
    better = tuple(dict.fromkeys(site for found in compared for site in found.superior))
    worse = tuple(dict.fromkeys(site for found in compared for site in found.worse))
    if better:
        where = _listed(better) + (f", worse at {_listed(worse)}" if worse else "")
        return f"but a run was better than pooling at {where}"
    if not alone.superior and _mean_pooling_gain(record) <= 0:
        return "but it was not shown to be better than training alone"
    return None


def _pooling_unseen(record: BenefitRecord) -> str:
    """Policy allows pooling, and nobody has compared it."""
    if any(overall(record, run.key).superior for run in record.runs):
        return (
            "Your policy allows pooling, which was not compared here: a simulation shows whether federation is "
            "needed for this gain."
        )
    return "Your policy allows pooling: simply pool the data, unless a simulation shows that federation is better."


def left_out_sentence(record: BenefitRecord, method: MethodFact) -> str | None:
    """What taking part brings over using the model of those who did; None where it was not simulated."""
    if not record.has(LEFT_OUT):
        return None
    found = overall(record, method.key, LEFT_OUT)
    if found.num_sites == 0:
        return None
    return (
        f"{method_name(method)} against a federation without the site, judged at that site: {_claim(record, found)}."
        + (f" Worse at {_listed(found.worse)}." if found.worse else "")
    )


def advice(record: BenefitRecord) -> list[str]:
    """All sentences about the whole comparison, in the order of the page."""
    said = [overall_sentence(record, run) for run in record.runs]
    if len(record.runs) > 1:
        said.append(
            "Several runs were compared: one that is chosen after looking at this page is chosen by luck, too."
        )
    said += [text for run in record.runs if (text := left_out_sentence(record, run)) is not None]
    pooling = pooling_sentence(record)
    return said if pooling is None else [*said, pooling]


def is_released(record: BenefitRecord) -> bool:
    """Whether the record is of rows: those are of enough patients (the gate's floor), so what lacks was not let out."""
    return record.origin in {"released", "released_unverified"}


def verdict_word(record: BenefitRecord, gain: GainFact | None) -> str:
    """The verdict of a site in two words."""
    if gain is None and is_released(record):
        return NOT_RELEASED
    return VERDICT[verdict_of(gain)]


def verdict_of(gain: GainFact | None) -> Verdict:
    """The verdict of a comparison; too few patients where there is none."""
    return Verdict.TOO_FEW if gain is None or gain.verdict is None else gain.verdict


def _claim(record: BenefitRecord, found: Overall) -> str:
    if found.is_better_everywhere and len(found.superior) == found.num_sites > 1:
        return f"better at every site ({found.num_sites} of {found.num_sites})"
    said = f"superior at {len(found.superior)} of {_sites(found.num_sites)}"
    if found.superior and found.num_sites > 1:
        said += f" ({', '.join(found.superior)})"
    if found.is_non_inferior_everywhere:
        which = "at all"
        if found.left_out:
            which = "at all of these" if found.num_sites > 1 else "there"
        margin = amount(record.margin, record.primary, signed=False)
        said += f", non-inferior {which} (margin {margin})"
    return said


def _after_holm(record: BenefitRecord, method: MethodFact) -> str:
    num_sites = sum(gain is not None for gain in record.gains(method.key, LOCAL).values())
    return "" if num_sites == 1 else f" after Holm's correction for {num_sites} sites"


def _pooling_gain(record: BenefitRecord) -> str:
    num_sites = sum(g is not None for g in record.gains(POOLED, LOCAL).values())
    if not num_sites:
        return "There is no site where pooling could be compared."
    return (
        f"One model of all data minus training alone is {amount(_mean_pooling_gain(record), record.primary)} of "
        f"{metric_name(record.primary)}, as a mean over {_sites(num_sites)}."
    )


def _mean_pooling_gain(record: BenefitRecord) -> float:
    """Over the sites where pooling could be compared; 0 where there is none."""
    gains = [g.value for g in record.gains(POOLED, LOCAL).values() if g is not None]
    return sum(gains) / max(len(gains), 1)


def _sites(count: int) -> str:
    return "1 site" if count == 1 else f"{count} sites"


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
