"""The record of a comparison: what each method is worth at each site, and every difference with its verdict.

Written by `fedhealth benefit`; the page is made from it and from nothing else. Like a round's record it holds no
sentence. Numbers of a hospital's patients are in it, so it stays where it was made; what may leave is a row that the
gate released (`evidence.benefit_row`).
"""

import hashlib
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fedhealth.evidence.signing import canonical_json
from fedhealth.report.schema import Closed, Count, Hex64, SlugId, Watermarked
from fedhealth.statistics.verdicts import Gain, Verdict

BENEFIT_SCHEMA: Literal["fedhealth/benefit/v1"] = "fedhealth/benefit/v1"
LOCAL: Final = "local"
POOLED: Final = "pooled"
LEFT_OUT: Final = "left-out"

MethodKey = Annotated[str, Field(pattern=r"^(local|pooled|left-out|run:[a-z][a-z0-9-]{1,39})$")]
MethodKind = Literal["local", "federated", "personalised", "pooled", "left_out"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class MethodFact(Closed):
    """One way to a model. `run_name` is set for runs of the study."""

    key: MethodKey
    kind: MethodKind
    run_name: SlugId | None = None

    @classmethod
    def of_run(cls, run_name: str, *, is_personal: bool) -> "MethodFact":
        """The method of a run."""
        kind: MethodKind = "personalised" if is_personal else "federated"
        return cls(key=f"run:{run_name}", kind=kind, run_name=run_name)


class PointFact(Closed):
    """A bin of a calibration plot: mean probability, share of cases with a 95 % interval."""

    predicted: Share
    observed: Share
    low: Share
    high: Share


class CalibrationFact(Closed):
    """Calibration of probabilities. `error_expected` and `error_high` (95 % quantile) are of a perfect model."""

    error: Share
    error_expected: Share
    error_high: Share
    slope: float | None = None
    intercept: float | None = None
    points: tuple[PointFact, ...] = ()


class ResultFact(Closed):
    """What one method is worth at one site: means over seeds; an undefined metric is left out."""

    method: MethodKey
    metrics: dict[Name, float]
    calibration: CalibrationFact | None = None


class GainFact(Closed):
    """One method against another at one site in one metric; above zero the first one is better."""

    method: MethodKey
    over: MethodKey
    metric: Name
    value: float
    low: float
    high: float
    p_value: Share
    adjusted_p: Share | None = None
    standard_error: Annotated[float, Field(ge=0)]
    verdict: Verdict | None = None
    """None in other than the primary metric."""
    delong_p: Share | None = None
    """DeLong's p-value of two AUCs, with one split and one record a patient: to hold the bootstrap against."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high:
            raise ValueError("an interval has its lower limit first")
        return self

    @property
    def gain(self) -> Gain:
        """As the verdicts take it."""
        return Gain(
            value=self.value,
            low=self.low,
            high=self.high,
            p_value=self.p_value,
            standard_error=self.standard_error,
        )


class CurvePoint(Closed):
    """One point of a learning curve; `at` is a round or a number of epochs."""

    at: Count
    value: float


class CurveFact(Closed):
    """A metric of validation patients while a model is trained."""

    method: MethodKey
    metric: Name
    unit: Literal["round", "epoch"]
    points: tuple[CurvePoint, ...] = Field(min_length=1)


class SiteBenefit(Closed):
    """One site. Counts are None in a record of released rows, where they did not leave the site."""

    site_id: SlugId
    num_patients: Count | None = None
    prevalence: Share | None = None
    missing: dict[Name, Share] = Field(default_factory=dict)
    results: tuple[ResultFact, ...]
    gains: tuple[GainFact, ...]
    curves: tuple[CurveFact, ...] = ()

    def result(self, method: str) -> ResultFact | None:
        """The result of a method."""
        return next((r for r in self.results if r.method == method), None)

    def gain(self, method: str, over: str, metric: str) -> GainFact | None:
        """The comparison of two methods in a metric; None where it could not be made."""
        return next(
            (g for g in self.gains if (g.method, g.over, g.metric) == (method, over, metric)), None
        )


class BenefitRecord(Watermarked):
    """A comparison of methods over sites.

    Attributes:
        origin: simulation (all sites on one machine), site (one site's own), released (rows that
            sites let out, signatures checked), released_unverified (nobody has checked them).
        primary: the metric that verdicts are about.
        margin: a loss of the primary metric below it is taken as no loss.
        fewest: patients of each class below which no comparison is made.
        is_simulation: one party played all hospitals, whatever the origin; written only then.
        curves: learning curves of runs, means over the hospitals; where masks hide each hospital's own.
    """

    schema_id: Literal["fedhealth/benefit/v1"] = BENEFIT_SCHEMA
    study_id: SlugId
    study_sha256: Hex64
    origin: Literal["simulation", "site", "released", "released_unverified"]
    primary: Name
    larger_is_better: bool
    margin: Annotated[float, Field(ge=0)]
    fewest: Count
    num_seeds: Annotated[int, Field(ge=1)]
    has_patient_privacy: bool
    pooling_allowed: bool
    methods: tuple[MethodFact, ...] = Field(min_length=1)
    sites: tuple[SiteBenefit, ...] = Field(min_length=1)
    curves: tuple[CurveFact, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        keys = [method.key for method in self.methods]
        ids = [site.site_id for site in self.sites]
        if len(set(keys)) != len(keys) or len(set(ids)) != len(ids):
            raise ValueError("a method or a site is there twice")
        named = {r.method for site in self.sites for r in site.results}
        named |= {key for site in self.sites for g in site.gains for key in (g.method, g.over)}
        if not named <= set(keys):
            raise ValueError("a result is of a method that is not listed")
        if self.origin == "simulation" and not self.is_simulation:
            raise ValueError("a simulation says that it is one")
        return self

    @property
    def runs(self) -> tuple[MethodFact, ...]:
        """The methods that are runs of the study."""
        return tuple(method for method in self.methods if method.run_name is not None)

    def has(self, method: str) -> bool:
        """Whether the method was compared."""
        return any(m.key == method for m in self.methods)

    def gains(self, method: str, over: str) -> dict[str, GainFact | None]:
        """The comparison in the primary metric, by site."""
        return {site.site_id: site.gain(method, over, self.primary) for site in self.sites}


def benefit_json(record: BenefitRecord) -> bytes:
    """Canonical JSON: the same record has the same bytes everywhere."""
    return canonical_json(record.model_dump(mode="json"))


def benefit_digest(record: BenefitRecord) -> str:
    """SHA-256 of `benefit_json`, in hex."""
    return hashlib.sha256(benefit_json(record)).hexdigest()
