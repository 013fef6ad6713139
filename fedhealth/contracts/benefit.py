"""Numbers of a comparison that a site may release: what goes into the gate, and what comes out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodMetrics:
    """Metrics of one method on a site's test patients, by the names of `contracts.metrics`."""

    method: str
    metrics: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodGain:
    """One method against another in one metric, above zero where the first is better, with a 95 % interval."""

    method: str
    over: str
    metric: str
    value: float = field(repr=False)
    low: float = field(repr=False)
    high: float = field(repr=False)
    p_value: float = field(repr=False)
    standard_error: float = field(repr=False)
