"""Other things to predict than the disease: a grade, and the time to progression, from the same latents.

Drawn from a stream of their own, so that images, records and labels are the same with and without them.
"""

from dataclasses import dataclass

import numpy as np

from fedhealth_site_synthetic.latents import EFFECT, disease_logit

OUTCOME_COLUMNS = ("grade", "days", "progressed")
NUM_GRADES = 4
FOLLOW_UP_DAYS = 1800.0
"""End of the study: who has not progressed by then is censored."""

_GRADE_STEP = 1.5
"""On the logit, with logistic noise: grade 2 or above has the prevalence of the disease."""
_MEDIAN_DAYS = 900.0
_LOG_HAZARD = 0.9 / EFFECT
"""Of progression for one unit of the disease's logit without its bias."""
_SHORTEST_FOLLOW_UP_DAYS = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Grade 0 to 3, and days until progression (1) or censoring (0)."""

    grade: int
    days: float
    progressed: int


def draw_outcomes(rng: np.random.Generator, *, burden: float, risk: float, bias: float) -> Outcomes:
    """One patient's outcomes.

    The grade counts thresholds below the disease's logit plus logistic noise (proportional odds). Progression has an
    exponential time with hazard ``exp(_LOG_HAZARD * logit)``; entry into the study is uniform, which censors
    independently of everything.
    """
    noise = float(rng.logistic())
    level = float(disease_logit(burden, risk, bias)) + noise
    grade = int(np.digitize(level, [-_GRADE_STEP, 0.0, _GRADE_STEP]))
    hazard = (
        np.log(2) / _MEDIAN_DAYS * np.exp(_LOG_HAZARD * float(disease_logit(burden, risk, 0.0)))
    )
    time = float(rng.exponential(1 / hazard))
    last_seen = float(rng.uniform(_SHORTEST_FOLLOW_UP_DAYS, FOLLOW_UP_DAYS))
    return Outcomes(
        grade=grade, days=max(1.0, min(time, last_seen)), progressed=int(time <= last_seen)
    )
