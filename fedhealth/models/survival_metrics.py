"""Metrics of survival predictions under right censoring, in numpy float64. Called by the survival tasks.

`times` (N,) are times to event or censoring, `events` (N,) are 1 where the event was seen and 0 where it was not.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def concordance(
    risks: Values, times: NDArray[Any], events: NDArray[Any], weights: Values
) -> Values:
    """Harrell's concordance index (Harrell et al. 1982, "Evaluating the Yield of Medical Tests").

    A pair is comparable when one patient's event was seen before the other's time, or at the same time as the
    other was censored. It is concordant when the first has the higher risk; equal risks count half.

    Args:
        risks: (N,), higher is earlier.
        times: (N,).
        events: (N,).
        weights: (R, N): how often each record counts.

    Returns:
        (R,); NaN where no pair is comparable.
    """
    earlier = (times[:, None] < times) | ((times[:, None] == times) & (events[None, :] == 0))
    comparable = np.asarray((events[:, None] == 1) & earlier, dtype=np.float64)
    won = comparable * ((risks[:, None] > risks) + 0.5 * (risks[:, None] == risks))
    num_won = ((weights @ won) * weights).sum(axis=1)
    num_pairs = ((weights @ comparable) * weights).sum(axis=1)
    found: Values = np.divide(
        num_won, num_pairs, out=np.full(num_won.shape, np.nan), where=num_pairs > 0
    )
    return found


def integrated_brier(
    survival: Values, edges: Values, times: NDArray[Any], events: NDArray[Any]
) -> float | None:
    """Integrated Brier score with inverse probability of censoring weights (Graf et al. 1999, section 4).

    At a time t the squared error of a patient with an earlier event is divided by the chance G of being uncensored
    just before that event, that of a patient still observed by G(t), and a patient censored before t adds nothing.
    G is the Kaplan-Meier estimate of censoring among these patients, events first where times are equal: it assumes
    that censoring depends on nothing that the model knows. Trapezoids from 0 to the last edge that is not beyond all
    observed times, divided by that time. Not a mean over patients: G depends on all of them.

    Args:
        survival: (N, T) predicted survival at the edges.
        edges: (T,) times, ascending, above 0.
        times: (N,).
        events: (N,).

    Returns:
        In [0, 1]; None where no edge is within the observed times.
    """
    scores = [0.0]
    kept = [0.0]
    for position, edge in enumerate(edges):
        at_edge = _uncensored_chance(times, events, np.array([edge]), before=False)[0]
        if edge > times.max() or at_edge <= 0:
            break
        gone = (times <= edge) & (events == 1)
        weights = np.zeros(len(times))
        weights[gone] = 1 / _uncensored_chance(times, events, times[gone], before=True)
        weights[times > edge] = 1 / at_edge
        errors = ((times > edge) - survival[:, position]) ** 2
        scores.append(float(np.mean(weights * errors)))
        kept.append(float(edge))
    return float(np.trapezoid(scores, kept) / kept[-1]) if len(kept) > 1 else None


def _uncensored_chance(
    times: NDArray[Any], events: NDArray[Any], at: NDArray[Any], *, before: bool
) -> Values:
    """Kaplan-Meier estimate of not being censored until each time of `at`, or until just before it."""
    steps = np.unique(times)
    # Who has the event at a time is no longer there to be censored at it.
    num_there = np.array([(times > s).sum() + ((times == s) & (events == 0)).sum() for s in steps])
    num_censored = np.array([((times == s) & (events == 0)).sum() for s in steps])
    stay = np.cumprod(1 - num_censored / np.maximum(num_there, 1))
    passed = np.searchsorted(steps, at, side="left" if before else "right")
    chances: Values = np.concatenate([[1.0], stay])[passed]
    return chances
