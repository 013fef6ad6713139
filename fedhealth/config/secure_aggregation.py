"""Secure aggregation in study.yaml (what a consortium agrees on) and in site.yaml (what one hospital insists on)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fedhealth.config.base import ConfigModel


class DistributedPrivacy(ConfigModel):
    """Noise under the masks: every site adds a share, and only the sum of all shares hides what it should.

    The noise is sized for the fewest honest sites that can be in a sum, min_survivors less colluding ones.
    """

    unit: Literal["site", "patient"] = Field(
        description="What the noise hides. site: a whole hospital's update, after any number of local steps. patient: "
        "one patient, with one global step a round (local_steps: 1)."
    )
    num_sites: int = Field(
        ge=3, le=150, description="Most sites in a round: the public denominator of the mean."
    )
    num_patients: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="Unit patient: about the number of training patients of all sites, public; the sum of gradients "
        "is divided by it.",
    )
    clipping_norm: float = Field(
        ge=1e-6,
        le=1e6,
        description="Longest update of a site, or longest gradient of a patient (L2).",
    )
    target_epsilon: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Epsilon of the unit over all runs of the study; the noise is made to fit.",
    )
    noise_multiplier: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Instead of target_epsilon: noise of the sum of the fewest honest sites, over the sensitivity.",
    )
    spare_rounds: int = Field(
        0,
        ge=0,
        le=1000,
        description="Rounds of the longest run that the budget has to spare for rounds that must be repeated.",
    )
    delta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="With target_epsilon. Left out: the smaller of 0.001 and 0.1 / number of sites (unit site).",
    )
    modulus_bits: int = Field(
        24, ge=8, le=48, description="Bits of one masked value: more bits are a finer grid."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of target_epsilon and noise_multiplier")
        if (self.unit == "patient") != (self.num_patients is not None):
            raise ValueError("num_patients goes with unit patient, and only there")
        if self.unit == "patient" and self.target_epsilon is not None and self.delta is None:
            raise ValueError(
                "unit patient with target_epsilon needs a delta, at most 0.1 / patients of all sites"
            )
        return self


class SecureAggregation(ConfigModel):
    """Masks that hide each site's update, size and metrics from the server, which gets their sum only."""

    min_survivors: int = Field(
        3,
        ge=3,
        le=150,
        description="Fewest sites that a sum may be about; fewer: the round is void. With two, each could see the "
        "other's update.",
    )
    colluding: int = Field(
        1,
        ge=0,
        le=998,
        description="Sites that may work together with the server without breaking the masks of the others; with 0, "
        "the server and one hospital could.",
    )
    bits: int = Field(16, ge=2, le=24, description="Bits of one value of the update.")
    value_range: float = Field(
        1.0,
        gt=0,
        le=1e6,
        description="Largest change of a value in a round; what is larger is cut, and counted in the report.",
    )
    max_train_size: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Largest declared_train_size: sizes travel under the mask, and this bounds their sum.",
    )
    kept_share: float = Field(
        1.0,
        ge=0.001,
        le=1,
        description="Share of the coordinates that travel, drawn anew in every round, the same at all sites.",
    )
    distributed_privacy: DistributedPrivacy | None = Field(
        None, description="Noise shares under the masks. Left out: none."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_survivors - self.colluding < 2:  # noqa: PLR2004 - of one honest site the others see all
            raise ValueError(
                "min_survivors must be at least colluding + 2: what is left of a sum would be one hospital's update"
            )
        noise = self.distributed_privacy
        if noise is not None and noise.num_sites < self.min_survivors:
            raise ValueError("distributed_privacy.num_sites is below min_survivors")
        if noise is not None and self.kept_share < 1:
            raise ValueError("kept_share does not go with distributed_privacy")
        return self


class SiteSecureAggregation(ConfigModel):
    """What this hospital insists on, whatever a study proposes: outside of it the site refuses."""

    required: bool = Field(
        False, description="Refuse studies in which the server would see this site's own update."
    )
    min_survivors: int = Field(
        3, ge=3, le=1000, description="Fewest sites in a sum that holds this site's update."
    )
    colluding: int = Field(
        1, ge=0, le=998, description="Other sites that may work together with the server."
    )
