"""Tensors that one round leaves as they came: encoders of modalities that this site, or too few sites, declared."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen_tensors(
    parameters: Mapping[str, nn.Parameter], names: Collection[str]
) -> Iterator[None]:
    """Within, these parameters have no gradient: no step, no weight decay and no noise reaches them.

    Args:
        parameters: all that are trained, by name.
        names: of those to leave alone; names of other tensors are skipped.
    """
    chosen = [parameter for name, parameter in parameters.items() if name in names]
    for parameter in chosen:
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimiser skips a parameter without one
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)


def trained(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those that are not frozen now."""
    return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
