"""Privacy in study.yaml (what a consortium agrees on) and in site.yaml (what one hospital insists on)."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from fedhealth.config.base import ConfigModel, Slug

Tuning = Literal["not_stated", "fixed_in_advance", "public_or_synthetic_data"]


class PatientPrivacy(ConfigModel):
    """Differential privacy for every patient: clipped, noised, Poisson-sampled training at every site.

    A patient is in or out of a site's data (add or remove one). All a study releases about a patient, over all
    its runs, is inside one epsilon.
    """

    target_epsilon: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Epsilon of each patient over the whole study; each site's noise is made to fit.",
    )
    noise_multiplier: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Instead of target_epsilon: the same noise, over clipping_norm, at every site.",
    )
    delta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="At most 0.1 / declared_train_size of every site. Left out: the smaller of that and 0.001.",
    )
    clipping_norm: float = Field(
        1.0,
        ge=1e-6,
        le=1e6,
        description="Most that one patient's gradient counts in a step (L2, all trained tensors together).",
    )
    tuning: Tuning = Field(
        "not_stated",
        description="How learning rate, rounds and other settings were chosen; the report says it. Trying them on "
        "the patients themselves would be a release that nobody accounts for.",
    )
    spare_rounds: int = Field(
        0,
        ge=0,
        le=1000,
        description="Rounds of the longest run that the budget has to spare for rounds that must be repeated.",
    )
    release_metrics: Literal["never", "closing", "every_round"] = Field(
        "never",
        description="When noised validation metrics (accuracy, brier, log_loss) leave a site.",
    )
    metrics_noise_multiplier: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="With noise_multiplier: the noise of released metrics. With target_epsilon it is worked out.",
    )

    @field_validator("tuning", mode="before")
    @classmethod
    def _tuned_elsewhere(cls, value: object) -> object:
        if value == "on_these_patients":
            raise ValueError(
                "settings that were tried on these patients are a release outside of the account: tune on public or "
                "synthetic data, or leave privacy out"
            )
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of target_epsilon and noise_multiplier")
        wants_metrics_noise = self.noise_multiplier is not None and self.release_metrics != "never"
        if wants_metrics_noise != (self.metrics_noise_multiplier is not None):
            raise ValueError(
                "metrics_noise_multiplier goes with noise_multiplier and released metrics, and only there"
            )
        return self


class SitePrivacy(ConfigModel):
    """What this hospital allows, whatever a study proposes: outside of it the site refuses, it never adjusts."""

    dataset: Slug = Field(
        "cohort",
        description="Name of the data behind data_dir: all studies on it share one privacy ledger.",
    )
    ledger_dir: Path | None = Field(
        None,
        description="Folder of the privacy ledger; left out: `ledger` in this home. Two homes on the same data "
        "must name the same folder.",
    )
    max_epsilon_per_study: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Most that one study may cost a patient; left out: no limit.",
    )
    max_epsilon_per_dataset: float | None = Field(
        None, gt=0, le=1000, description="Most that all studies together may cost a patient."
    )
    min_noise_multiplier: float | None = Field(
        None, gt=0, le=1000, description="Least noise of a training step, over the clipping norm."
    )
    max_clipping_norm: float | None = Field(
        None, gt=0, le=1e6, description="Largest clipping norm that a study may ask for."
    )
    min_patients: int = Field(
        1, ge=1, le=10_000_000, description="Fewest training patients with which this site trains."
    )
