"""Weights from a file of somebody else's, put into an image encoder. Called by `multimodal`.

The whole backbone is loaded or nothing. Numbers of the file that the encoder has no place for, such as a classifier's,
are left out and counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedhealth.errors import ConfigError
from fedhealth.models.channel_norm import FrozenBatchNorm
from fedhealth.models.image_encoder import VolumeEncoder
from fedhealth.models.weight_files import PinnedFile, find_file
from fedhealth.models.weight_formats import bundle_metadata, read_tensors

_STATISTICS = ("running_mean", "running_var")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """What came of a file.

    Attributes:
        num_loaded: tensors of the file that are in the encoder now.
        unused: names of the others.
        has_projection: whether the projection is among the loaded ones.
        title: the bundle's name, if it says one.
        licence: the bundle's licence, if it says one.
    """

    num_loaded: int
    unused: tuple[str, ...]
    has_projection: bool
    title: str | None = None
    licence: str | None = None


def load_published(
    encoder: VolumeEncoder, pinned: PinnedFile, *, prefix: str = ""
) -> LoadedWeights:
    """Load the pinned file into an encoder, and mark its projection as new where the file has none.

    Args:
        encoder: whose backbone is overwritten.
        pinned: name and digest.
        prefix: of the backbone's names in the file, such as ``encoder.``; it is taken off, and names without it are
            left out.

    Raises:
        ConfigError: FH-MODEL-032 and 033, see `weight_files`; FH-MODEL-034 the file is of no known format;
            FH-MODEL-035 a tensor is missing or of another shape; FH-MODEL-036 it has BatchNorm statistics, and the
            encoder no place for them.
    """
    path, payload = find_file(pinned)
    tensors = read_tensors(pinned.name, payload)
    named = {
        name.removeprefix(prefix).removeprefix(encoder.weights_prefix): name
        for name in tensors
        if name.startswith(prefix)
    }
    used = _put_into(encoder, {own: tensors[name] for own, name in named.items()}, pinned.name)
    title, licence = bundle_metadata(path, payload)
    unused = set(tensors) - {named[own] for own in used}
    return LoadedWeights(
        num_loaded=len(used),
        unused=tuple(sorted(name for name in unused if not name.endswith(_COUNTER))),
        has_projection=not encoder.projection_is_new,
        title=title,
        licence=licence,
    )


def _put_into(encoder: VolumeEncoder, tensors: Mapping[str, Tensor], file: str) -> set[str]:
    """Names of the tensors that were used."""
    folded = {
        name.removeprefix(encoder.weights_prefix): layer
        for name, layer in encoder.named_modules()
        if isinstance(layer, FrozenBatchNorm)
    }
    if not folded:
        _refuse_statistics(tensors, file)
    targets = _targets(encoder, tensors)
    wanted = {name: tuple(parameter.shape) for name, parameter in targets.items()}
    for name, layer in folded.items():
        parts = ("weight", "bias", *_STATISTICS)
        wanted |= {f"{name}.{part}": tuple(layer.scale.shape) for part in parts}
    _check_shapes(tensors, wanted, file)
    with torch.no_grad():
        for name, parameter in targets.items():
            parameter.copy_(tensors[name])
    for name, layer in folded.items():
        layer.fold(
            weight=tensors[f"{name}.weight"],
            bias=tensors[f"{name}.bias"],
            mean=tensors[f"{name}.running_mean"],
            variance=tensors[f"{name}.running_var"],
        )
    return set(wanted)


def _targets(encoder: VolumeEncoder, tensors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Parameters to copy into, by name in the file: the backbone, and the projection if the file has one."""
    projection = {f"projection.{name}": p for name, p in encoder.projection.named_parameters()}
    encoder.projection_is_new = not any(name in tensors for name in projection)
    backbone = {
        name.removeprefix(encoder.weights_prefix): parameter
        for name, parameter in encoder.named_parameters()
        if name not in projection and not _is_folded(name, encoder)
    }
    return backbone if encoder.projection_is_new else backbone | projection


def _refuse_statistics(tensors: Mapping[str, Tensor], file: str) -> None:
    statistics = [name for name in tensors if name.endswith(_STATISTICS)]
    if statistics:
        raise ConfigError(
            "FH-MODEL-036",
            f"{file!r} has statistics of BatchNorm ({statistics[0]!r}, {len(statistics)} tensors in all).",
            why="Weights that were trained with them mean something else under another normalisation.",
            fix="Set model.options.image_norm to frozen_batch: the statistics are then folded in as constants.",
        )


def _check_shapes(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], file: str
) -> None:
    missing = [name for name in wanted if name not in tensors]
    if missing:
        known = ", ".join(list(tensors)[:3]) or "none"
        raise _does_not_fit(
            f"{file!r} lacks {len(missing)} of {len(wanted)} tensors of the encoder, such as {missing[0]!r}.",
            f"Names there, after image_weights_prefix: {known}.",
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise _does_not_fit(
                f"tensor {name!r} of {file!r} is {tuple(tensors[name].shape)}, the encoder's {shape}.",
                "The file is of another network, another number of axes or another grid.",
            )
        if not bool(torch.isfinite(tensors[name]).all()):
            raise _does_not_fit(
                f"tensor {name!r} of {file!r} is not finite.", "It would spoil every feature."
            )


def _does_not_fit(what: str, why: str) -> ConfigError:
    return ConfigError(
        "FH-MODEL-035",
        what,
        why=why,
        fix="Name the encoder that the file was made for (image_encoder), or the prefix of its names in the file.",
    )


def _is_folded(name: str, encoder: nn.Module) -> bool:
    return isinstance(encoder.get_submodule(name.rpartition(".")[0]), FrozenBatchNorm)
