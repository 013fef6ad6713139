"""Which tensors belong to a modality. Called by both sides, so that they divide the same model in one way."""

from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.blocks import ModalityBlock, blocks_of
from fedhealth.contracts.local_training import KnowsModalities, TrainingMethod
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import ConfigError


def modality_blocks(
    method: TrainingMethod, study: Study, run: RunPlan, spec: TensorSpec
) -> tuple[ModalityBlock, ...]:
    """The blocks of a run's model: a pure function of study and run, the same at server and sites.

    None where the study averages every tensor over all sites.

    Raises:
        ConfigError: FH-MODEL-011 the model does not say what belongs to a modality, FH-MODEL-012 what it says does
            not fit the study.
    """
    if not study.averages_by_modality:
        return ()
    if not isinstance(method, KnowsModalities):
        raise ConfigError(
            "FH-MODEL-011",
            f"training method {study.training.name!r} does not say which tensors belong to a modality.",
            why="federation.average_encoders_over: sites_with_modality averages those over the sites that have it.",
            fix="Give the method `modality_prefixes(study, run)`, or average over all_sites.",
        )
    prefixes = method.modality_prefixes(study, run)
    try:
        blocks = blocks_of(spec, prefixes)
    except ValueError as error:
        raise _blocks_do_not_fit(str(error)) from None
    if not set(prefixes) <= set(study.modalities):
        raise _blocks_do_not_fit("a modality is not one of the study's")
    if not blocks:
        raise _blocks_do_not_fit(
            f"in run {run.name!r} no tensor that travels belongs to a modality"
        )
    return blocks


def sums_over_all(study: Study) -> bool:
    """Whether masks are all that hides a site, and every tensor is averaged over all of them."""
    masks = study.secure_aggregation
    if masks is None or masks.distributed_privacy is not None:
        return False
    return study.privacy is None and not study.averages_by_modality


def summed_modalities(
    method: TrainingMethod, study: Study, run: RunPlan, spec: TensorSpec
) -> tuple[str, ...]:
    """Modalities of which some tensor is in a masked sum over all sites, without noise of all sites on it.

    A site that lacks the modality gives such a tensor back as it came, so that its part of the sum is about the others
    only. Where a method or model does not say what belongs to a modality, each of the study's may have a tensor.

    Raises:
        ConfigError: the model cannot be built.
    """
    if not sums_over_all(study):
        return ()
    if not isinstance(method, KnowsModalities):
        return study.modalities
    try:
        blocks = blocks_of(spec, method.modality_prefixes(study, run))
    except ConfigError as error:
        if error.code != "FH-MODEL-011":
            raise
        return study.modalities
    except ValueError:
        return study.modalities
    named = {block.modality for block in blocks}
    return tuple(name for name in study.modalities if name in named)


def _blocks_do_not_fit(reason: str) -> ConfigError:
    return ConfigError(
        "FH-MODEL-012",
        f"the model's tensors cannot be averaged by modality: {reason}.",
        why="Server and sites must divide the same model in the same way.",
        fix="Correct the model's `modality_prefixes`, or set federation.average_encoders_over to all_sites.",
    )
