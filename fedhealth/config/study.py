"""study.yaml: what a consortium agrees on. The same file, by digest, is pinned at every site."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhealth.config.base import ConfigModel, Name, OptionValue, PluginName, Slug
from fedhealth.config.data import DataConfig, LabelConfig
from fedhealth.config.federation import FederationConfig
from fedhealth.config.personalisation import PersonalisationName, check_options
from fedhealth.config.privacy import PatientPrivacy
from fedhealth.config.secure_aggregation import SecureAggregation
from fedhealth.contracts.metrics import METRIC_RANGES

SCHEMA_VERSION = 1
LONGEST_PULL = 1.0
"""Of learning rate times proximal_mu, or times a method's strength, with plain SGD: no pull goes past its end then, and
no number of steps makes an update longer than as many plain steps."""
TensorPrefix = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]


class PluginChoice(ConfigModel):
    """An installed plug-in by name, with its options."""

    name: PluginName = Field(description="Entry point name of an installed plug-in.")
    options: dict[Name, OptionValue] = Field(
        default_factory=dict, description="Options of that plug-in; unknown ones are refused by it."
    )


class SiteVariant(ConfigModel):
    """What sites of one variant train instead of the study's own model."""

    model: PluginChoice = Field(description="Entry point in fedhealth.models.")
    task: PluginChoice | None = Field(
        None, description="Entry point in fedhealth.tasks. Left out: the study's task."
    )
    label: LabelConfig | None = Field(
        None, description="What these sites predict. Left out: the study's label."
    )


class SiteModels(ConfigModel):
    """Sites that differ in encoder, width or task, and the blocks of the model that all of them share."""

    shared_blocks: tuple[TensorPrefix, ...] = Field(
        min_length=1,
        max_length=100,
        description="Prefixes of tensor names, such as encoders.table_ehr. with its dot. Runs with personalisation "
        "private_blocks average these tensors; all others stay at each site.",
    )
    variants: dict[Name, SiteVariant] = Field(
        default_factory=dict,
        max_length=100,
        description="Other models by name; a site chooses one in site.yaml (variant), or has the study's own.",
    )


class OptimizerConfig(ConfigModel):
    """The local optimiser at every site."""

    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="torch.optim algorithm.")
    learning_rate: float = Field(0.05, gt=0, le=10, description="Step size.")
    momentum: float = Field(0.0, ge=0, lt=1, description="SGD only.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 (sgd, adam) or decoupled (adamw).")


class SharedData(ConfigModel):
    """A public or made-up cohort that every site loads and mixes into local training (Zhao et al. 2018)."""

    package: PluginName = Field(
        description="Entry point in fedhealth.sites of a package that every site has installed."
    )
    options: dict[Name, OptionValue] = Field(
        default_factory=dict,
        description="Options of that package, the same everywhere; a seed among them for made-up patients.",
    )
    fraction: float = Field(
        gt=0, le=0.5, description="Share of the shared records in a step, at most one half."
    )


class TrainingConfig(ConfigModel):
    """Local training in every round, the same at all sites."""

    name: PluginName = Field("supervised", description="Entry point in fedhealth.training.")
    options: dict[Name, OptionValue] = Field(
        default_factory=dict, description="Options of that training method."
    )
    optimizer: OptimizerConfig = Field(
        default_factory=lambda: OptimizerConfig(name="sgd"), description="Optimiser of every site."
    )
    batch_size: int = Field(16, ge=1, le=4096, description="Patients a step.")
    local_epochs: int | None = Field(
        None, ge=1, le=1000, description="Passes over the training side."
    )
    local_steps: int | None = Field(
        None, ge=1, le=1_000_000, description="Optimiser steps instead of epochs."
    )
    modality_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Chance that a present modality is hidden from a training step.",
    )
    shared_data: SharedData | None = Field(
        None,
        description="Public records, the same at every site, in each local step. Left out: none.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("give exactly one of local_epochs and local_steps")
        return self


class RunPlan(ConfigModel):
    """One training. A study may hold several runs; they are done in order, by the same sites."""

    name: Slug = Field(description="Names the run's folder and its reports.")
    num_rounds: int = Field(ge=1, le=10_000, description="Rounds with a new model each.")
    strategy: PluginChoice = Field(
        default_factory=lambda: PluginChoice(name="fedavg"),
        description="Aggregation at the server: entry point in fedhealth.strategies.",
    )
    personalisation: PersonalisationName = Field(
        "none",
        description="What each site has of its own. private_head, fedrep: the head; private_blocks: all that is "
        "not in site_models.shared_blocks; local_norm: the weights of normalisation layers; mr_mtl, ditto, fine_tune: "
        "a whole model besides the shared one. What is a site's own never leaves it.",
    )
    personalisation_options: dict[Name, OptionValue] = Field(
        default_factory=dict,
        description="fedrep: head_share; mr_mtl, ditto: strength; fine_tune: epochs, learning_rate.",
    )
    control_variates: bool = Field(
        False,
        description="For strategy scaffold, which needs it: a control variate travels beside each tensor, both ways.",
    )

    @model_validator(mode="after")
    def _known_options(self) -> Self:
        check_options(self.personalisation, self.personalisation_options)
        return self

    def alone(self) -> Self:
        """The same run for one site by itself: nothing is kept from anybody, and nothing drifts."""
        return self.model_copy(
            update={
                "personalisation": "none",
                "personalisation_options": {},
                "control_variates": False,
            }
        )


class ReleaseConfig(ConfigModel):
    """What may leave a site besides the tensors."""

    metrics: tuple[str, ...] = Field(
        ("auc", "log_loss", "brier", "calibration_error", "train_loss"),
        description=f"Any of: {', '.join(METRIC_RANGES)}.",
    )
    metric_digits: int = Field(3, ge=1, le=4, description="Significant digits after rounding.")
    benefit: bool = Field(
        False,
        description="True if a site may release its row of `fedhealth benefit`: listed metrics of test patients.",
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        unknown = sorted(set(self.metrics) - set(METRIC_RANGES))
        if unknown:
            raise ValueError(f"unknown metrics {unknown}; known: {', '.join(METRIC_RANGES)}")
        return self


class PoolingPolicy(ConfigModel):
    """What the consortium's data policy says about pooling, so that `study check` can be honest."""

    pooling_allowed: bool = Field(
        False, description="True if the data may be brought to one place."
    )


class Study(ConfigModel):
    """A whole study: data contract, model, task, training, runs, release."""

    schema_version: Literal[1] = Field(description="Version of this file's format.")
    id: Slug = Field(description="Short id; becomes a folder name.")
    title: str = Field(min_length=1, max_length=200, description="One line for people.")
    seed: int = Field(ge=0, lt=2**31, description="Fixes initial weights, splits and batch order.")
    data: DataConfig = Field(description="The data contract of every site.")
    task: PluginChoice = Field(
        default_factory=lambda: PluginChoice(name="binary_classification"),
        description="Loss and metrics: entry point in fedhealth.tasks.",
    )
    model: PluginChoice = Field(
        default_factory=lambda: PluginChoice(name="multimodal"),
        description="Entry point in fedhealth.models.",
    )
    training: TrainingConfig = Field(description="Local training.")
    federation: FederationConfig = Field(
        default_factory=lambda: FederationConfig(min_cohort=2),
        description="Minimum cohort and waiting times.",
    )
    runs: tuple[RunPlan, ...] = Field(
        min_length=1, max_length=20, description="Trainings, done in order."
    )
    release: ReleaseConfig = Field(
        default_factory=lambda: ReleaseConfig(metric_digits=3),
        description="What may leave besides tensors.",
    )
    privacy: PatientPrivacy | None = Field(
        None,
        description="Differential privacy for every patient. Left out: none, and every report says so.",
    )
    secure_aggregation: SecureAggregation | None = Field(
        None,
        description="Masks under which the server sees the sum of all sites only. Left out: it sees every update.",
    )
    site_models: SiteModels | None = Field(
        None,
        description="Shared blocks, and models of their own for some sites. Left out: every site has the same model.",
    )
    policy: PoolingPolicy = Field(
        default_factory=lambda: PoolingPolicy(pooling_allowed=False),
        description="Whether the data could be pooled.",
    )

    @model_validator(mode="after")
    def _distinct_runs(self) -> Self:
        names = [run.name for run in self.runs]
        if len(set(names)) != len(names):
            raise ValueError(f"run names repeat: {names}")
        return self

    @model_validator(mode="after")
    def _masks_fit(self) -> Self:
        masks = self.secure_aggregation
        if masks is None:
            return self
        if self.federation.update_bits != 32:  # noqa: PLR2004 - the key's own value
            raise ValueError(
                "federation.update_bits does not go with secure_aggregation: scales of a site's own would be seen. A "
                "masked value has secure_aggregation.bits; kept_share lets some of the values travel"
            )
        if self.federation.min_cohort < masks.min_survivors:
            raise ValueError(
                "federation.min_cohort must be at least secure_aggregation.min_survivors: a smaller round has no sum"
            )
        noise = masks.distributed_privacy
        if noise is None or noise.unit == "site":
            return self
        if self.averages_by_modality:
            raise ValueError(
                "distributed_privacy of unit patient divides by the patients of all sites: how many of them are at the "
                "sites with a modality is not public. federation.average_encoders_over must be all_sites"
            )
        if self.training.local_steps != 1 or self.privacy is not None:
            raise ValueError(
                "distributed_privacy of unit patient takes one global step a round (training.local_steps: 1) and "
                "stands instead of `privacy`"
            )
        if self.training.shared_data is not None:
            raise ValueError(
                "distributed_privacy of unit patient sums patients' gradients only: training.shared_data would never "
                "be used"
            )
        optimizer = self.training.optimizer
        if (optimizer.name, optimizer.momentum, optimizer.weight_decay) != ("sgd", 0.0, 0.0):
            raise ValueError(
                "distributed_privacy of unit patient takes one plain step against the mean gradient: "
                "training.optimizer must be sgd without momentum and weight_decay"
            )
        if any(run.personalisation != "none" for run in self.runs):
            raise ValueError(
                "distributed_privacy of unit patient cannot protect what is a site's own, such as a private head: no "
                "noise of others covers it"
            )
        return self

    @model_validator(mode="after")
    def _site_models_fit(self) -> Self:
        have_blocks = [run.personalisation == "private_blocks" for run in self.runs]
        if self.site_models is None:
            if any(have_blocks):
                raise ValueError("personalisation private_blocks needs site_models.shared_blocks")
            return self
        if not any(have_blocks) or (self.site_models.variants and not all(have_blocks)):
            raise ValueError(
                "site_models goes with personalisation private_blocks: on every run if there are variants, since sites "
                "with other models have nothing else in common"
            )
        variants = self.site_models.variants.values()
        if self.release.metrics and any(
            v.task is not None or v.label is not None for v in variants
        ):
            raise ValueError(
                "variants with a task or label of their own need release.metrics []: a mean over sites that predict "
                "different things says nothing"
            )
        return self

    @model_validator(mode="after")
    def _control_variates_fit(self) -> Self:
        runs = [run for run in self.runs if run.control_variates]
        if not runs:
            return self
        optimizer = self.training.optimizer
        if (optimizer.name, optimizer.momentum) != ("sgd", 0.0):
            raise ValueError(
                "runs.control_variates needs training.optimizer sgd without momentum: a control variate is how far "
                "plain steps went, over the learning rate"
            )
        if self.averages_by_modality:
            raise ValueError(
                "runs.control_variates does not go with federation.average_encoders_over sites_with_modality: an "
                "encoder that some sites leave alone has no control variate of all"
            )
        if any(
            run.personalisation not in {"none", "private_head", "private_blocks"} for run in runs
        ):
            raise ValueError(
                "runs.control_variates goes with personalisation none, private_head or private_blocks: others take "
                "steps that the control variate would count as the shared model's"
            )
        masks = self.secure_aggregation
        noise = None if masks is None else masks.distributed_privacy
        if noise is not None and noise.unit == "patient":
            raise ValueError(
                "runs.control_variates does not go with distributed_privacy of unit patient: one global step a round "
                "does not drift"
            )
        if masks is not None and noise is None and self.training.local_steps is None:
            raise ValueError(
                "runs.control_variates under masks need training.local_steps: what travels beside a site's update is "
                "the update over its own number of steps, and of both sums the server has the site that takes others"
            )
        return self

    @model_validator(mode="after")
    def _pulls_stop_at_the_shared_model(self) -> Self:
        # With momentum, Adam or AdamW the pull is a proximal step, which never goes past (`training.pulls`).
        optimizer = self.training.optimizer
        if (optimizer.name, optimizer.momentum) != ("sgd", 0.0):
            return self
        for run in self.runs:
            strength = run.personalisation_options.get("strength", 0.0)
            if not isinstance(strength, int | float):
                continue
            if optimizer.learning_rate * strength > LONGEST_PULL:
                raise ValueError(
                    f"runs.{run.name}: learning_rate times personalisation_options.strength must be at most 1: a step "
                    "of the pull would end beyond the shared model"
                )
        return self

    @model_validator(mode="after")
    def _proximal_terms_pull_back(self) -> Self:
        optimizer = self.training.optimizer
        for run in self.runs:
            strength = run.strategy.options.get("proximal_mu", 0.0)
            if not isinstance(strength, int | float) or optimizer.name != "sgd":
                continue
            if optimizer.learning_rate * strength > LONGEST_PULL:
                raise ValueError(
                    f"runs.{run.name}: learning_rate times strategy option proximal_mu must be at most 1: a step of "
                    "the proximal term would end beyond the shared model, and sites refuse that"
                )
        return self

    @model_validator(mode="after")
    def _fedrep_has_two_phases(self) -> Self:
        if self.training.local_steps == 1 and any(r.personalisation == "fedrep" for r in self.runs):
            raise ValueError(
                "personalisation fedrep needs training.local_steps of 2 or more: one trains the head"
            )
        return self

    @property
    def hides_sizes(self) -> bool:
        """Whether the number of a site's patients stays at the site: masks carry it, and no privacy plan needs it."""
        return self.secure_aggregation is not None and self.privacy is None

    @property
    def averages_by_modality(self) -> bool:
        """Whether an encoder is averaged over the sites that declared its modality."""
        return self.federation.average_encoders_over == "sites_with_modality"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the data contract's modalities, in its order."""
        return tuple(modality.name for modality in self.data.modalities)

    def run(self, name: str) -> RunPlan:
        """The run of that name. Raises KeyError."""
        return {run.name: run for run in self.runs}[name]
