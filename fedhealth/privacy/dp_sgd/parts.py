"""What one layer adds to each patient's gradient: its norm, and its weighted sum. Called by `book_keeping`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedhealth.privacy.dp_sgd.clip_factor import beyond_float32
from fedhealth.privacy.dp_sgd.layer_rules import LayerRule


@dataclass(frozen=True, slots=True)
class Patients:
    """Whose each row is: (R,) int64, and whether no patient has two rows."""

    of_rows: Tensor
    are_distinct: bool

    @classmethod
    def of(cls, of_rows: Tensor) -> "Patients":
        """With the question answered."""
        return cls(of_rows, int(torch.unique(of_rows).numel()) == of_rows.numel())


class Part(Protocol):
    """One use of a layer, after the backward pass."""

    def add_squared_norms(self, squared: Tensor) -> None:
        """Add this part of each patient's squared norm to `squared`, (P,) float64."""
        ...

    def add_weighted(
        self, sums: Mapping[str, Tensor], factors: Tensor, kept: Tensor | None
    ) -> None:
        """Add the sum of factor * gradient to `sums`; `kept` (P,) bool leaves patients out, None leaves none."""
        ...


class RowsPart:
    """Where every row's gradient is at hand, (R, *shape) by name of the tensor in the model."""

    def __init__(self, gradients: Mapping[str, Tensor], patients: Patients) -> None:
        self._gradients = gradients
        self._patients = patients

    def add_squared_norms(self, squared: Tensor) -> None:
        """A patient's rows are summed before the norm is taken."""
        rows = self._patients.of_rows
        for gradient in self._gradients.values():
            flat = gradient.flatten(1)
            if self._patients.are_distinct:
                squared.index_add_(0, rows, _squares(flat))
            else:
                by_patient = flat.new_zeros((squared.numel(), flat.shape[1]))
                squared.add_(_squares(by_patient.index_add_(0, rows, flat)))

    def add_weighted(
        self, sums: Mapping[str, Tensor], factors: Tensor, kept: Tensor | None
    ) -> None:
        """One product of a vector and a matrix."""
        rows = self._patients.of_rows
        chosen = None if kept is None else kept[rows]
        weights = factors[rows] if chosen is None else factors[rows[chosen]]
        for name, gradient in self._gradients.items():
            these = gradient if chosen is None else gradient[chosen]
            flat = weights.to(these.dtype) @ these.flatten(1)
            sums[name].add_(flat.view_as(sums[name]))


class LayerPart:
    """Where gradients are made from a layer's input and output gradient.

    Args:
        names: the model's name of each parameter, by the layer's own.
        layer: the layer.
        rule: its rule.
        inputs: (R, ...).
        gradients: of its output, (R, ...).
        patients: whose rows they are.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        layer: nn.Module,
        rule: LayerRule,
        *,
        inputs: Tensor,
        gradients: Tensor,
        patients: Patients,
    ) -> None:
        self._names, self._layer, self._rule = names, layer, rule
        self._inputs, self._gradients, self._patients = inputs, gradients, patients

    def add_squared_norms(self, squared: Tensor) -> None:
        """By the rule; patient by patient where one has several rows."""
        rows = self._patients.of_rows
        squared[rows[beyond_float32(self._inputs)]] = math.inf
        if not self._one_at_a_time:
            norms = self._rule.squared_norms(self._layer, self._inputs, self._gradients)
            squared.index_add_(0, rows, norms)
            return
        for patient in torch.unique(rows).tolist():
            for gradient in self._of(patient).values():
                squared[patient] += _squares(gradient.reshape(1, -1))[0]

    def add_weighted(
        self, sums: Mapping[str, Tensor], factors: Tensor, kept: Tensor | None
    ) -> None:
        """One weight gradient from output gradients that are scaled; else as the norms, patient by patient."""
        rows, inputs, gradients = self._patients.of_rows, self._inputs, self._gradients
        if kept is not None:
            chosen = kept[rows]
            rows, inputs, gradients = rows[chosen], inputs[chosen], gradients[chosen]
        if self._one_at_a_time:
            # The very gradient that was measured: the terms of several records may cancel.
            for patient in torch.unique(rows).tolist():
                for name, gradient in self._of(patient).items():
                    sums[self._names[name]].add_(gradient * factors[patient])
            return
        weights = factors[rows].to(gradients.dtype).view(-1, *([1] * (gradients.dim() - 1)))
        found = self._rule.gradients(self._layer, inputs, gradients * weights)
        for name, gradient in found.items():
            sums[self._names[name]].add_(gradient)

    @property
    def _one_at_a_time(self) -> bool:
        return not self._patients.are_distinct or self._rule.one_at_a_time(
            self._layer, self._inputs, self._gradients
        )

    def _of(self, patient: int) -> dict[str, Tensor]:
        own = (self._patients.of_rows == patient).nonzero().squeeze(1)
        return self._rule.gradients(self._layer, self._inputs[own], self._gradients[own])


def layer_part(
    names: Mapping[str, str],
    layer: nn.Module,
    rule: LayerRule,
    *,
    inputs: Tensor,
    gradients: Tensor,
    patients: Patients,
) -> Part:
    """The part of a layer, with the gradient of every row where the rule finds that cheap."""
    by_row = rule.row_gradients(layer, inputs, gradients)
    if by_row is not None:
        return RowsPart({names[name]: gradient for name, gradient in by_row.items()}, patients)
    return LayerPart(names, layer, rule, inputs=inputs, gradients=gradients, patients=patients)


def _squares(flat: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return norms.square()
