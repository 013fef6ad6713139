"""Which trainable tensors of a model never leave a site. Called by `learner`; the tensor spec follows from it."""

from typing import TYPE_CHECKING, Final

from torch import nn

from fedhealth.errors import ConfigError
from fedhealth.models.build import is_private, trainable_parameters

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

NORMALISATION: Final = (nn.GroupNorm, nn.LayerNorm)


def private_names(study: "Study", run: "RunPlan", model: nn.Module) -> frozenset[str]:
    """Names of the trainable tensors that never leave a site in this run.

    Raises:
        ConfigError: FH-MODEL-008 the method keeps tensors, and the model has none of them or nothing besides,
            FH-MODEL-040 no tensor is in `site_models.shared_blocks`.
    """
    match run.personalisation:
        case "private_head" | "fedrep":
            return _kept(run, model, head_names(model), "a head")
        case "local_norm":
            return _kept(run, model, norm_names(model), "normalisation layers")
        case "private_blocks":
            blocks = () if study.site_models is None else study.site_models.shared_blocks
            return _outside(model, blocks)
        case "none" | "mr_mtl" | "ditto" | "fine_tune":
            return frozenset()


def _kept(run: "RunPlan", model: nn.Module, names: frozenset[str], what: str) -> frozenset[str]:
    num_trainable = len(trainable_parameters(model))
    if 0 < len(names) < num_trainable:
        return names
    raise ConfigError(
        "FH-MODEL-008",
        f"personalisation {run.personalisation} needs a model with {what} and something besides it.",
        why=f"Of this model's trainable tensors, {len(names)} belong to it and "
        f"{num_trainable - len(names)} would be shared.",
        fix="Set personalisation to none, or correct the model's head_prefixes.",
    )


def _outside(model: nn.Module, blocks: tuple[str, ...]) -> frozenset[str]:
    names = frozenset(name for name, _ in trainable_parameters(model))
    private = frozenset(name for name in names if not name.startswith(blocks))
    if private == names:
        raise ConfigError(
            "FH-MODEL-040",
            "no trainable tensor of the model is in site_models.shared_blocks.",
            why="Sites that share nothing learn nothing from each other.",
            fix="Name blocks that every site trains (`fedhealth study check --build` lists tensors that travel).",
        )
    return private


def head_names(model: nn.Module) -> frozenset[str]:
    """Trainable tensors of the model's head."""
    prefixes: tuple[str, ...] = getattr(model, "head_prefixes", ())
    return frozenset(n for n, _ in trainable_parameters(model) if is_private(n, prefixes))


def norm_names(model: nn.Module) -> frozenset[str]:
    """Trainable tensors of group and layer normalisation."""
    trainable = {name for name, _ in trainable_parameters(model)}
    return frozenset(
        full
        for layer_name, layer in model.named_modules()
        if isinstance(layer, NORMALISATION)
        for name, _ in layer.named_parameters(recurse=False)
        if (full := f"{layer_name}.{name}" if layer_name else name) in trainable
    )
