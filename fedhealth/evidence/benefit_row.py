"""A site's released row of `fedhealth benefit`, as a signed statement. Written by a site, read by a consortium."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.evidence.statements import Hex64, SiteId, Statement, UtcTime

MetricName = Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
RunKey = Annotated[str, Field(pattern=r"^run:[a-z][a-z0-9-]{1,39}$")]
MethodKey = RunKey | Literal["local"]
Share = Annotated[float, Field(ge=0, le=1)]


class ReleasedMetrics(Statement):
    """Metrics of one method on the site's test patients: listed by the study, rounded."""

    method: MethodKey
    metrics: dict[MetricName, float]


class ReleasedGain(Statement):
    """A run over training alone in one metric, above zero where the run is better; rounded."""

    method: RunKey
    over: Literal["local"]
    metric: MetricName
    value: float
    low: float
    high: float
    p_value: Share
    standard_error: float = Field(ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        lowest, highest = METRIC_RANGES.get(self.metric, (0.0, 0.0))
        span = highest - lowest
        if not -span <= self.low <= self.high <= span or not -span <= self.value <= span:
            raise ValueError("no difference of this metric is like that")
        return self


class BenefitRow(Statement):
    """From a hospital to the consortium: what each run is worth here, against training alone. No counts.

    Attributes:
        primary: the metric that verdicts are about.
        margin: a loss of it below this is taken as no loss.
        is_simulation: one party played all hospitals.
        personal_runs: runs that were judged with this site's own part of the model.
    """

    study_id: SiteId
    study_sha256: Hex64
    site_id: SiteId
    primary: MetricName
    larger_is_better: bool
    margin: float = Field(ge=0)
    fewest: int = Field(ge=1)
    is_simulation: bool
    personal_runs: tuple[SiteId, ...]
    results: tuple[ReleasedMetrics, ...] = Field(max_length=50)
    gains: tuple[ReleasedGain, ...] = Field(min_length=1, max_length=500)
    issued_at: UtcTime

    @model_validator(mode="after")
    def _says_a_thing_once(self) -> Self:
        gains = [(gain.method, gain.metric) for gain in self.gains]
        methods = [result.method for result in self.results]
        if len(set(gains)) != len(gains) or len(set(methods)) != len(methods):
            raise ValueError("a difference or a method is there twice")
        return self
