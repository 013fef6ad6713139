"""From a study to a checked model with known initial weights. Called by local training on both sides."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedhealth import plugins
from fedhealth.config.base import OptionValue
from fedhealth.contracts.data import DataContract
from fedhealth.errors import ConfigError
from fedhealth.models.protocol import ModelBuilder, Task
from fedhealth.models.seeds import derive_seed

if TYPE_CHECKING:
    from fedhealth.config.study import Study


def build_task(study: "Study", contract: DataContract) -> Task:
    """The study's task.

    Raises:
        ConfigError: not installed (FH-CONFIG-010 to 012), or its options are wrong.
    """
    task: Task = plugins.load("fedhealth.tasks", study.task.name)(contract, study.task.options)
    return task


def build_model(study: "Study", contract: DataContract, *, num_outputs: int) -> nn.Module:
    """The study's model with the weights of round 1: a pure function of the study.

    Raises:
        ConfigError: not installed (FH-CONFIG-010 to 012), its options are wrong, or the model breaks the
            model contract (see `check_model`).
    """
    builder = plugins.load("fedhealth.models", study.model.name)
    return seeded_model(builder, contract, num_outputs, study.model.options, seed=study.seed)


def seeded_model(
    builder: ModelBuilder,
    contract: DataContract,
    num_outputs: int,
    options: Mapping[str, OptionValue],
    *,
    seed: int,
) -> nn.Module:
    """A model whose random weights depend on `seed` only; torch's global generator is left as it was.

    Raises:
        ConfigError: as `build_model`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "initial weights"))
        model = builder(contract, num_outputs, options)
    check_model(model)
    return model


def check_output_fits(task: Task, model: nn.Module) -> None:
    """Refuse a task of voxels with a model of patients, and the other way round.

    Raises:
        ConfigError: FH-MODEL-020 the two do not fit.
    """
    wants, gives = (getattr(task, "wants_voxels", False), getattr(model, "gives_voxels", False))
    if wants != gives:
        raise ConfigError(
            "FH-MODEL-020",
            f"the task needs an output for each {'voxel' if wants else 'patient'}, and the model gives one for "
            f"each {'voxel' if gives else 'patient'}.",
            why="A mask is predicted voxel by voxel, everything else patient by patient.",
            fix="Name model unet with task segmentation, and another model with any other task.",
        )


def check_model(model: nn.Module) -> None:
    """Refuse a model whose state cannot travel as named float32 parameters.

    Raises:
        ConfigError: FH-MODEL-003 a layer keeps buffers (BatchNorm's running statistics, for one),
            FH-MODEL-004 a trainable parameter is not float32, FH-MODEL-005 nothing is trainable,
            FH-MODEL-006 `head_prefixes` is missing or names no trainable parameter.
    """
    for name, _ in model.named_buffers():
        layer = name.rpartition(".")[0] or "the model itself"
        raise ConfigError(
            "FH-MODEL-003",
            f"layer {layer!r} keeps a buffer ({name!r}).",
            why="A buffer is state besides the parameters; a running statistic mixes patients and would "
            "travel without being clipped.",
            fix="Use GroupNorm or LayerNorm instead of BatchNorm; make constants plain attributes.",
        )
    trainable = dict(trainable_parameters(model))
    for name, parameter in trainable.items():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                "FH-MODEL-004",
                f"parameter {name!r} is {parameter.dtype}, not float32.",
                why="One flat float32 vector travels.",
                fix="Build the model in float32.",
            )
    if not trainable:
        raise ConfigError("FH-MODEL-005", "the model has no trainable parameter.")
    prefixes = getattr(model, "head_prefixes", None)
    if not isinstance(prefixes, tuple) or not all(
        any(name.startswith(prefix) for name in trainable) for prefix in prefixes
    ):
        raise ConfigError(
            "FH-MODEL-006",
            "the model's head_prefixes is missing or holds a prefix of no trainable parameter.",
            why="It says which parameters personalisation private_head keeps at the site.",
            fix="Give the model class `head_prefixes: tuple[str, ...]`, such as ('head.',).",
        )


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that training changes, in the model's order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def modality_prefixes(model: nn.Module) -> Mapping[str, tuple[str, ...]]:
    """What a model says about the tensors of each modality (see `FederatedModel`).

    Raises:
        ConfigError: FH-MODEL-011 it says nothing, or something else than prefixes of its parameters' names.
    """
    said = getattr(model, "modality_prefixes", None)
    names = [name for name, _ in model.named_parameters()]
    if not isinstance(said, Mapping) or not all(
        isinstance(own, tuple) and all(any(n.startswith(p) for n in names) for p in own)
        for own in said.values()
    ):
        raise ConfigError(
            "FH-MODEL-011",
            "the model does not say which of its tensors belong to a modality.",
            why="federation.average_encoders_over: sites_with_modality averages those over the sites that have it.",
            fix="Give the model `modality_prefixes`, such as {'mri': ('encoders.mri.',)}, or average over all_sites.",
        )
    return {str(modality): own for modality, own in said.items()}


def is_private(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to the head."""
    return name.startswith(prefixes) if prefixes else False
