"""What `fedhealth study check` says about a study's secure aggregation."""

import math
from collections.abc import Iterator, Mapping

from fedhealth import plugins
from fedhealth.config.check import Finding
from fedhealth.config.study import Study
from fedhealth.errors import ConfigError, FedHealthError
from fedhealth.secagg.layout import MaskedLayout, TailLayout
from fedhealth.secagg.quorum import least_threshold
from fedhealth.secagg.refusals import MaskingError
from fedhealth.secagg.round_settings import distributed_plan, least_survivors, weighs_by_size


def masking_findings(study: Study) -> Iterator[Finding]:
    """Errors, warnings and notes on `study.secure_aggregation`."""
    masks = study.secure_aggregation
    if masks is None:
        text = "the server sees every site's own update. Write a section secure_aggregation where it must not."
        yield Finding(level="note", code="FH-SECAGG-020", text=text)
        return
    least = least_survivors(study, masks)
    if masks.distributed_privacy is None:
        for run in study.runs:
            weight = masks.max_train_size if weighs_by_size(study, run) else 1
            try:
                layout = MaskedLayout(
                    num_sites=least,
                    num_values=1000,
                    levels=2 ** (masks.bits - 1) - 1,
                    value_range=masks.value_range,
                    max_weight=weight,
                    tail=TailLayout(train_metrics=(), evaluate_metrics=()),
                )
            except MaskingError as error:
                text = f"runs.{run.name}: {error.what} {error.why} {error.fix}"
                yield Finding(level="error", code=error.code, text=text)
                continue
            text = (
                f"runs.{run.name}: with {least} sites a masked value takes {layout.modulus_bits} bits "
                f"({layout.modulus_bits / 8:.2f} bytes a parameter, 4 without masks), in steps of {layout.step:.2g}; "
                f"{least_threshold(least, masks.colluding)} sites' shares remove the masks."
            )
            yield Finding(level="note", code="FH-SECAGG-021", text=text)
    if (
        masks.distributed_privacy is None
        and "auc" in study.release.metrics
        and study.privacy is None
    ):
        text = (
            "release.metrics names auc: a site with one class among its validation patients has none, and where one "
            "site alone has one, the sum is that site's."
        )
        yield Finding(level="note", code="FH-SECAGG-026", text=text)
    if study.hides_sizes and study.averages_by_modality and masks.distributed_privacy is None:
        weighted = [run.name for run in study.runs if weighs_by_size(study, run)]
        if weighted:
            text = (
                f"runs.{weighted[0]}: the server gets the weight of all sites and that of a modality's: where one "
                "site alone lacks a modality, the difference is its declared size. Write strategy option weighting: "
                "uniform where it must not be known."
            )
            yield Finding(level="note", code="FH-SECAGG-028", text=text)
    if masks.distributed_privacy is None and study.privacy is None:
        yield from _without_noise(study, least)
    yield from _noise(study)


def _without_noise(study: Study, least: int) -> Iterator[Finding]:
    """What a sum tells where nothing but masks hides a site."""
    if len(study.modalities) > 1 and not study.averages_by_modality:
        text = (
            f"sites without a modality add nothing to its encoder: a round takes place only where each modality was "
            f"declared by none of its sites or by {least}. Write federation.average_encoders_over: "
            "sites_with_modality where fewer have one."
        )
        yield Finding(level="note", code="FH-SECAGG-029", text=text)
    if study.training.optimizer.name != "sgd" and study.training.local_steps == 1:
        sized = [run.name for run in study.runs if weighs_by_size(study, run)]
        if sized:
            text = (
                f"runs.{sized[0]}: the first step of {study.training.optimizer.name} is the learning rate up or down "
                "in every value, and a sum of such steps by size tells which site went which way. Take more local "
                "steps, sgd, or strategy option weighting: uniform."
            )
            yield Finding(level="warning", code="FH-SECAGG-030", text=text)


def _noise(study: Study) -> Iterator[Finding]:
    """Whether a grid and noise exist for each run's model; a model that cannot be built here is told elsewhere."""
    masks = study.secure_aggregation
    noise = None if masks is None else masks.distributed_privacy
    if masks is None or noise is None:
        return
    if noise.unit == "site" and study.privacy is not None:
        text = (
            "distributed_privacy hides a whole site in the sum, and privacy hides each patient at the site: a "
            "patient's account counts the local noise only."
        )
        yield Finding(level="note", code="FH-SECAGG-023", text=text)
    if study.release.metrics:
        text = (
            "release.metrics names metrics, and none of them will leave a site: beside a noised sum they would be "
            "without noise. Write release.metrics: [] to say so."
        )
        yield Finding(level="warning", code="FH-SECAGG-027", text=text)
    if noise.unit == "patient" and not _gives_gradients(study):
        text = (
            f"training {study.training.name} cannot give each patient's gradient, which distributed_privacy of unit "
            "patient adds up. Use supervised, or unit site."
        )
        yield Finding(level="error", code="FH-SECAGG-025", text=text)
    for run, size in _sizes(study).items():
        try:
            plan = distributed_plan(study, size)
        except FedHealthError as error:
            text = f"runs.{run}: {error.what} {error.why} {error.fix}"
            yield Finding(level="error", code=error.code, text=text)
            continue
        if plan is not None:
            divisor = noise.num_patients if noise.unit == "patient" else plan.num_sites
            std = plan.noise_std / (divisor or 1)
            what = "mean gradient" if noise.unit == "patient" else "mean update"
            text = (
                f"runs.{run}: noise multiplier {plan.noise_multiplier:g} over the {plan.num_honest} sites that are "
                f"honest at least; their noise on each coordinate of the {what} is {std:.2g}, in clipping norms "
                f"{std / plan.clipping_norm:.2g}. All sites add a share: with {plan.num_sites} it is "
                f"{math.sqrt(plan.num_sites / plan.num_honest):.2g} times that."
            )
            yield Finding(level="note", code="FH-SECAGG-024", text=text)


def _gives_gradients(study: Study) -> bool:
    try:
        method = plugins.load("fedhealth.training", study.training.name)
    except ConfigError:
        return True  # that it is not installed is told elsewhere
    return bool(getattr(method, "supports_patient_gradients", False))


def _sizes(study: Study) -> Mapping[str, int]:
    from fedhealth.site.sessions import model_sizes

    try:
        return model_sizes(study)
    except (ConfigError, ImportError):
        return {}
