"""Which tensors of a model belong to one modality: what a site without that modality cannot train.

Derived from study and run by server and sites alike (`TrainingMethod.modality_prefixes`, the model's tensor spec).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from fedhealth.contracts.control_variates import CONTROL_PREFIX
from fedhealth.contracts.tensors import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityBlock:
    """The tensors that only patients with one modality train, in the order of the spec."""

    modality: str
    tensors: tuple[str, ...]


def blocks_of(
    spec: TensorSpec, prefixes: Mapping[str, tuple[str, ...]]
) -> tuple[ModalityBlock, ...]:
    """The blocks of a model, in the order of `prefixes`; a modality of which no tensor travels has none.

    A control variate belongs where its tensor does.

    Args:
        spec: tensors that travel.
        prefixes: for each modality, prefixes of its tensors' names.

    Raises:
        ValueError: a tensor belongs to two modalities.
    """
    blocks = [
        ModalityBlock(
            modality=modality,
            tensors=tuple(
                name
                for name in spec.names()
                if own and name.removeprefix(CONTROL_PREFIX).startswith(own)
            ),
        )
        for modality, own in prefixes.items()
    ]
    named = [name for block in blocks for name in block.tensors]
    if len(set(named)) != len(named):
        raise ValueError("a tensor belongs to two modalities")
    return tuple(block for block in blocks if block.tensors)


def ranges_of(spec: TensorSpec, tensors: Collection[str]) -> Iterator[slice]:
    """Where these tensors lie in the flat vector: slices in order, neighbours merged."""
    start = stop = 0
    for entry in spec.entries:
        if entry.name not in tensors:
            continue
        if entry.offset != stop:
            if stop > start:
                yield slice(start, stop)
            start = entry.offset
        stop = entry.offset + entry.num_elements
    if stop > start:
        yield slice(start, stop)
