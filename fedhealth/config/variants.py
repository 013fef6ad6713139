"""Models that differ between sites: which one a site has, and whether all of them share the same blocks.

Called by both sides, so that they build the same tensors from the same study.
"""

from fedhealth.config.blocks import modality_blocks, summed_modalities
from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.local_training import TrainingMethod
from fedhealth.contracts.tensors import TensorEntry, TensorSpec
from fedhealth.errors import ConfigError


def own_study(study: Study, variant: str | None) -> Study:
    """The study as a site of this variant builds it: with the variant's model, task and label.

    Its digest is another one; what is signed and pinned is the study itself.

    Raises:
        ConfigError: FH-CONFIG-045 the study has no such variant.
    """
    if variant is None:
        return study
    known = {} if study.site_models is None else study.site_models.variants
    if variant not in known:
        raise ConfigError(
            "FH-CONFIG-045",
            f"study {study.id} has no variant {variant!r}.",
            why=f"Its variants are: {', '.join(known) or 'none'}.",
            fix="Correct `variant` in site.yaml, or leave it out for the study's own model.",
        )
    chosen = known[variant]
    changes = {
        "model": chosen.model,
        "task": chosen.task or study.task,
        "data": study.data.model_copy(update={"label": chosen.label or study.data.label}),
    }
    # Checked again: a label may collide with a column of the data contract.
    return Study.model_validate({**dict(study), **changes})


def check_variants(method: TrainingMethod, study: Study, run: RunPlan, spec: TensorSpec) -> None:
    """Every variant of the study shares the same tensors, of the same shapes, in the same order.

    Args:
        method: the study's training method.
        study: the study.
        run: of the study.
        spec: what the study's own model shares in that run.

    Raises:
        ConfigError: FH-MODEL-041 a variant shares others; or a variant cannot be built (see
            `TrainingMethod.initial_tensors`).
    """
    if study.site_models is None:
        return
    blocks = modality_blocks(method, study, run, spec)
    summed = summed_modalities(method, study, run, spec)
    for name in study.site_models.variants:
        own = own_study(study, name)
        found = TensorSpec.of(method.initial_tensors(own, run))
        if found != spec:
            raise ConfigError(
                "FH-MODEL-041",
                f"variant {name!r} shares other tensors than the study's own model: {_difference(spec, found)}.",
                why="A shared block is averaged number by number over all sites.",
                fix="Give the variants the same sizes in site_models.shared_blocks, or share less.",
            )
        divided = modality_blocks(method, own, run, found)
        if (divided, summed_modalities(method, own, run, found)) != (blocks, summed):
            raise ConfigError(
                "FH-MODEL-041",
                f"variant {name!r} divides the shared tensors by modality in another way.",
                why="Sites would not agree on whose updates are in the mean, or in the masked sum, of a tensor.",
                fix="Give the models the same `modality_prefixes` for what they share.",
            )


def _difference(spec: TensorSpec, found: TensorSpec) -> str:
    wanted = {entry.name: entry for entry in spec.entries}
    given = {entry.name: entry for entry in found.entries}
    for name in [*wanted, *given]:
        if name not in given or name not in wanted:
            return f"{name} is in one of them only"
        if wanted[name].shape != given[name].shape:
            return f"{name} is {_shape(wanted[name])} there, {_shape(given[name])} here"
    return "their order differs"


def _shape(entry: TensorEntry) -> str:
    return "x".join(str(side) for side in entry.shape) or "a number"
