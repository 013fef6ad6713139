"""site.yaml: what one hospital decides for itself. It stays at the hospital."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from fedhealth.config.base import ConfigModel, Name, Slug
from fedhealth.config.levels import LogLevel
from fedhealth.config.privacy import SitePrivacy
from fedhealth.config.secure_aggregation import SiteSecureAggregation
from fedhealth.config.study import PluginChoice, Study
from fedhealth.errors import ConfigError


class SiteConfig(ConfigModel):
    """One site: its package, its data folder, the size it declares, how its processes run."""

    schema_version: Literal[1] = Field(description="Version of this file's format.")
    site_id: Slug = Field(description="Public id of the site in the consortium, such as st-mary.")
    package: PluginChoice = Field(
        description="Site package that reads the cohort: entry point in fedhealth.sites, and its options."
    )
    data_dir: Path = Field(
        description="Folder with the site's data. Relative paths start at this file's folder."
    )
    declared_train_size: int = Field(
        ge=1,
        le=10_000_000,
        description="Number of training patients that the site makes public, and its weight in FedAvg. "
        "Round it if the exact number is sensitive.",
    )
    modalities: tuple[Name, ...] | None = Field(
        None,
        min_length=1,
        description="Kinds of data that this site declares, by the names of its studies; public. Left out: all that "
        "a study has. An encoder of a modality that is not declared may be left to other sites "
        "(federation.average_encoders_over).",
    )
    variant: Name | None = Field(
        None,
        description="Which of the study's site_models.variants this site trains; public. Left out: the study's own "
        "model.",
    )
    privacy: SitePrivacy = Field(
        default_factory=lambda: SitePrivacy(dataset="cohort"),
        description="The hospital's own limits, and its privacy ledger.",
    )
    secure_aggregation: SiteSecureAggregation = Field(
        default_factory=lambda: SiteSecureAggregation(required=False),
        description="The hospital's own floors for sums that hold its update.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the worker trains; auto: cuda if there is one."
    )
    num_threads: int = Field(
        1, ge=1, le=256, description="CPU threads of the worker's tensor library."
    )
    isolation: Literal["auto", "enforce", "off"] = Field(
        "auto",
        description="Own network namespace for the worker. auto: when the kernel allows it; "
        "enforce: refuse to start without it; off: never.",
    )
    fast_transport: bool = Field(
        True,
        description="Small changes to Flower's message transport (docs/adr/0007); "
        "false: Flower as it comes.",
    )
    reconnect_first_s: float = Field(
        1, gt=0, le=3600, description="First wait after a lost connection; it doubles from there."
    )
    reconnect_max_s: float = Field(
        60, gt=0, le=86_400, description="Longest wait between two attempts to reconnect."
    )
    stop_grace_s: float = Field(
        20, gt=0, le=600, description="How long processes may take to end before they are killed."
    )
    log_level: LogLevel = Field("info", description="Detail of the site's own log files.")

    def declared_modalities(self, study: Study) -> tuple[str, ...]:
        """The modalities of a study that this site says it has, in the study's order.

        Raises:
            ConfigError: FH-CONFIG-033 it has none of them.
        """
        if self.modalities is None:
            return study.modalities
        declared = tuple(name for name in study.modalities if name in self.modalities)
        if not declared:
            raise ConfigError(
                "FH-CONFIG-033",
                f"site.yaml declares none of the modalities of study {study.id}.",
                why=f"The study has {', '.join(study.modalities)}; a site without any has nothing to train on.",
                fix="Correct `modalities` in site.yaml, or leave it out to declare all.",
            )
        return declared

    @model_validator(mode="after")
    def _waits(self) -> Self:
        if self.reconnect_first_s > self.reconnect_max_s:
            raise ValueError("reconnect_first_s is at most reconnect_max_s")
        return self
