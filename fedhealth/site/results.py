"""`site evaluate`: what each finished run, and training alone, is worth on this site's held-out patients.

The table is computed and kept at the site.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from fedhealth.config.personalisation import PersonalisationName
from fedhealth.config.study import RunPlan
from fedhealth.durable import write_json
from fedhealth.errors import UsageError
from fedhealth.site.home import Pinned, SiteHome, load_pinned
from fedhealth.site.sessions import Sessions, global_model_path, read_global_model

if TYPE_CHECKING:
    from fedhealth.training.held_out import PairedDifference, TestResult

BINARY_COLUMNS: Final = (
    "model",
    "auc",
    "auc_low",
    "auc_high",
    "log_loss",
    "brier",
    "calibration_error",
)
OTHER_COLUMNS: Final = ("model", "metric", "value", "low", "high", "log_loss", "brier")
TITLES: Final[dict[PersonalisationName, str]] = {
    "none": "",
    "private_head": ", private head",
    "private_blocks": ", private blocks",
    "fedrep": ", FedRep",
    "local_norm": ", own normalisation",
    "mr_mtl": ", MR-MTL",
    "ditto": ", Ditto",
    "fine_tune": ", fine-tuned here",
}
ALONE: Final = "trained alone (settings of the study, no noise)"
_METRIC_TITLES: Final = {
    "auc": "AUC",
    "macro_auc": "macro AUC",
    "c_index": "concordance",
    "dice": "Dice overlap",
}
_WHY_UNDEFINED: Final = {
    "auc": "one class",
    "macro_auc": "one class",
    "c_index": "no comparable pair",
    "dice": "no mask",
}
TUNED: Final = "trained alone (tuned, no noise)"


def evaluate_site(home: SiteHome, study_id: str | None) -> dict[str, Any]:
    """Train alone with the study's settings and with tuned ones, then judge each run's final model on the test side.

    Raises:
        UsageError: FH-USAGE-030 no run is finished here; FH-USAGE-031 nothing to judge in this study.
        SiteDataError, TrainingError: the cohort cannot be used.
    """
    pinned = load_pinned(home, home.choose_study(study_id))
    finished = finished_runs(pinned)
    result = {
        "site_id": pinned.config.site_id,
        "study_id": pinned.study.id,
        "has_privacy": pinned.study.privacy is not None,
        **_judge(home, pinned, finished),
    }
    write_json(pinned.folder.results / "evaluation.json", result)
    return result


def result_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What to show of the rows: the AUC's columns, or those of the task's own first metric."""
    return BINARY_COLUMNS if all(row["metric"] == "auc" for row in rows) else OTHER_COLUMNS


def finished_runs(pinned: Pinned) -> list[RunPlan]:
    """The runs whose final model is here.

    Raises:
        UsageError: FH-USAGE-030 no run is finished here; FH-USAGE-031 nothing to judge in this study.
    """
    if pinned.study.training.name != "supervised":
        raise UsageError(
            "FH-USAGE-031",
            f"training method {pinned.study.training.name!r} has no held-out result.",
            why="Only supervised training is judged on test patients.",
            fix="Look at the server's report instead.",
        )
    finished = [run for run in pinned.study.runs if global_model_path(pinned, run.name).exists()]
    if not finished:
        raise UsageError(
            "FH-USAGE-030",
            "no run of this study is finished at this site.",
            why="The final model comes with the closing trip of a run.",
            fix="Wait for the server to finish, then try again (`fedhealth site status`).",
        )
    return finished


def _judge(home: SiteHome, pinned: Pinned, finished: list[RunPlan]) -> dict[str, Any]:
    """The table's rows, and each run against the tuned baseline on the same patients."""
    from fedhealth.training.evaluation import bootstrap_seed, scores_on_test, train_alone
    from fedhealth.training.held_out import paired_difference, result_of
    from fedhealth.training.tuned_alone import train_alone_tuned

    study, sessions = pinned.study, Sessions(home, pinned)
    seed = bootstrap_seed(study, pinned.config.site_id)
    alone = train_alone(study, finished[0], sessions.context(finished[0].name))
    tuned = train_alone_tuned(study, finished[0], sessions.context(finished[0].name))
    rows = [_row(ALONE, alone), _row(TUNED, result_of(tuned.scores, seed=seed))]
    differences = []
    for run in finished:
        vector = read_global_model(pinned, run.name)
        scores = scores_on_test(study, run, vector, sessions.context(run.name))
        rows.append(_row(title_of(run), result_of(scores, seed=seed)))
        difference = paired_difference(scores, tuned.scores, seed=seed)
        differences.append(
            {
                "model": title_of(run),
                "minus": TUNED,
                **asdict(difference),
                "sentence": sentence_of(title_of(run), difference),
            }
        )
    return {
        "num_patients": alone.num_patients,
        "rows": rows,
        "tuned_setting": asdict(tuned.setting),
        "differences": differences,
    }


def sentence_of(model: str, difference: "PairedDifference") -> str:
    """One sentence for people: the two differences with their intervals, and what they allow to say."""
    first = difference.auc if difference.metric == "auc" else difference.primary
    if difference.log_loss is None and first is None:
        return f"{model}: there is no held-out patient to compare on."
    parts, said = [], []
    for name, found, better in (
        (_METRIC_TITLES.get(difference.metric, difference.metric), first, 1),
        ("log loss", difference.log_loss, -1),
    ):
        if found is None and name != "log loss":
            why = _WHY_UNDEFINED.get(difference.metric, "see the task")
            parts.append(f"{name} undefined ({why})")
        if found is None:
            continue
        parts.append(f"{name} {found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})")
        if found.low > 0 or found.high < 0:
            said.append(f"{'better' if found.value * better > 0 else 'worse'} in {name}")
    verdict = " and ".join(said) or "these patients show no difference either way"
    return f"{model} minus {TUNED}: {', '.join(parts)}: {verdict}."


def title_of(run: RunPlan) -> str:
    """How a run is called in the table."""
    return f"federated{TITLES[run.personalisation]} ({run.name})"


def _row(model: str, result: "TestResult") -> dict[str, Any]:
    return {"model": model, **asdict(result)}
