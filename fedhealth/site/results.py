"""`site evaluate`: what each finished run, and training alone, is worth on this site's held-out patients.

The table is computed and kept at the site.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from fedhealth.config.study import RunPlan
from fedhealth.contracts.tensors import vector_from_bytes
from fedhealth.durable import write_json
from fedhealth.errors import UsageError
from fedhealth.site.home import Pinned, SiteHome, load_pinned
from fedhealth.site.sessions import Sessions, global_model_path

if TYPE_CHECKING:
    from fedhealth.training.evaluation import TestResult

RESULT_COLUMNS: Final = (
    "model",
    "auc",
    "auc_low",
    "auc_high",
    "log_loss",
    "brier",
    "calibration_error",
)
ALONE: Final = "trained alone"


def evaluate_site(home: SiteHome, study_id: str | None) -> dict[str, Any]:
    """Train alone with the same budget, then judge each run's final model on the test side.

    Raises:
        UsageError: FH-USAGE-030 no run is finished here; FH-USAGE-031 nothing to judge in this study.
        SiteDataError, TrainingError: the cohort cannot be used.
    """
    pinned = load_pinned(home, home.choose_study(study_id))
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
    rows, num_patients = _rows(home, pinned, finished)
    result = {
        "site_id": pinned.config.site_id,
        "study_id": pinned.study.id,
        "num_patients": num_patients,
        "rows": rows,
    }
    write_json(pinned.folder.results / "evaluation.json", result)
    return result


def _rows(
    home: SiteHome, pinned: Pinned, finished: list[RunPlan]
) -> tuple[list[dict[str, Any]], int]:
    from fedhealth.training.evaluation import evaluate_on_test, train_alone

    sessions = Sessions(home, pinned)
    alone = train_alone(pinned.study, finished[0], sessions.context(finished[0].name))
    rows = [_row(ALONE, alone)]
    for run in finished:
        vector = vector_from_bytes(global_model_path(pinned, run.name).read_bytes())
        context = sessions.context(run.name)
        rows.append(_row(title_of(run), evaluate_on_test(pinned.study, run, vector, context)))
    return rows, alone.num_patients


def title_of(run: RunPlan) -> str:
    """How a run is called in the table."""
    if run.personalisation == "private_head":
        return f"federated, private head ({run.name})"
    return f"federated ({run.name})"


def _row(model: str, result: "TestResult") -> dict[str, Any]:
    return {"model": model, **asdict(result)}
