"""Clipped gradients from one forward and one backward pass: book-keeping. Called by `clipped_gradients`.

Bu et al. 2023, "Differentially Private Optimization on Large Model at Small Cost" (arXiv 2210.00038), algorithm 1:
the backward pass goes to the layers' outputs only; norms come from each layer's input and output gradient; then
every row's output gradient is scaled by its patient's clip factor, and one product a layer gives the clipped sum.

Hooks note what each layer saw, and `models.patient_rows` whose rows they were. What the hooks cannot see through
(a layer that is used twice, rows that nobody names, a parameter outside of every layer) is a *problem*: nothing
is added then, and the caller goes through the patients one by one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedhealth.data.batch import Batch
from fedhealth.models.patient_rows import current_patients, recording_copies, rows_of_patients
from fedhealth.models.protocol import TaskWithRowLosses
from fedhealth.privacy.dp_sgd.clip_factor import clip_factors
from fedhealth.privacy.dp_sgd.layer_rules import LayerRule, rule_of, trainable
from fedhealth.privacy.dp_sgd.parts import Part, Patients, RowsPart, layer_part


class BookKeepingProblem(Exception):  # noqa: N818 - not an error: the patient loop takes over
    """Book-keeping cannot keep this model's patients apart; the text names the layer and the reason."""


@dataclass(frozen=True, slots=True)
class _Use:
    """One use of a layer (or, without inputs, a row copy), and the edge at which its gradient arrives."""

    name: str
    edge: GradientEdge
    patients: Patients
    inputs: Tensor | None = None
    version: int = 0


@dataclass(slots=True)
class _Notes:
    """What the hooks noted in one forward pass. Exceptions wait until it is over: models may catch some."""

    patients: Patients
    uses: dict[str, _Use] = field(default_factory=dict)
    problem: str | None = None

    def patients_now(self) -> Patients:
        rows = current_patients()
        if rows is None or rows is self.patients.of_rows:
            return self.patients
        return Patients.of(rows)


class BookKeeping:
    """Hooks on a model; they are idle outside of `add_clipped`.

    Args:
        model: what is trained.
        parameters: every trainable tensor by name.

    Raises:
        BookKeepingProblem: two layers have a parameter in common, or a layer's settings mix rows.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model = model
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._rules = _rules(model, set(self._names))
        self._covered = {
            self._names[id(parameter)]
            for layer, _ in self._rules.values()
            for parameter in trainable(layer).values()
        }
        self._notes: _Notes | None = None
        self._handles = [
            layer.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, (layer, _) in self._rules.items()
        ]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    @property
    def uncovered(self) -> list[str]:
        """Trainable tensors of no known layer, and of which no forward pass so far has made row copies."""
        return [name for name in self._names.values() if name not in self._covered]

    def add_clipped(
        self,
        task: TaskWithRowLosses,
        *,
        sums: Mapping[str, Tensor],
        batch: Batch,
        owners: Tensor,
        clipping_norm: float,
    ) -> int:
        """Add each patient's clipped gradient to `sums`.

        Args:
            task: with a loss for each record.
            sums: float64 tensors by name.
            batch: R records, at least one.
            owners: (R,) int64 patient of each record, 0..P-1.
            clipping_norm: C.

        Returns:
            How many patients added nothing, because their gradient is not finite or far too long.

        Raises:
            BookKeepingProblem: see the module; `sums` is as before.
        """
        parts = self._parts(task, batch, owners)
        squared = torch.zeros(int(owners.max()) + 1, dtype=torch.float64, device=owners.device)
        for part in parts:
            part.add_squared_norms(squared)
        factors = clip_factors(squared, clipping_norm=clipping_norm)
        is_kept = factors > 0
        num_left_out = squared.numel() - int(is_kept.sum())
        for part in parts:
            part.add_weighted(sums, factors, is_kept if num_left_out else None)
        return num_left_out

    def _parts(self, task: TaskWithRowLosses, batch: Batch, owners: Tensor) -> list[Part]:
        loss, notes = self._forward(task, batch, owners)
        uses = list(notes.uses.values())
        if not uses or not loss.requires_grad:
            return []
        found = torch.autograd.grad(loss, [use.edge for use in uses], allow_unused=True)
        return [
            self._part(use, gradient)
            for use, gradient in zip(uses, found, strict=True)
            if gradient is not None  # type: ignore[redundant-expr]  # torch types allow_unused away
        ]

    def _forward(
        self, task: TaskWithRowLosses, batch: Batch, owners: Tensor
    ) -> tuple[Tensor, _Notes]:
        """The sum over patients of the mean loss of their records, and the notes on the way."""
        notes = _Notes(Patients.of(owners))
        self._notes = notes
        try:
            with rows_of_patients(owners), recording_copies(self._note_copies):
                losses = task.row_losses(self._model(batch), batch.labels)
        finally:
            self._notes = None
        if notes.problem is None and losses.shape != owners.shape:
            notes.problem = "the task's row_losses are not one for each row"
        if notes.problem is not None:
            raise BookKeepingProblem(notes.problem)
        if notes.patients.are_distinct:
            return losses.sum(), notes
        shares = 1.0 / torch.bincount(owners).to(losses.dtype)
        return (losses * shares[owners]).sum(), notes

    def _part(self, use: _Use, gradient: Tensor) -> Part:
        if use.inputs is None:
            return RowsPart({use.name: gradient}, use.patients)
        if use.inputs._version != use.version:  # noqa: SLF001 - autograd asks the same way
            raise BookKeepingProblem(f"the input of layer {use.name!r} is changed in place")
        layer, rule = self._rules[use.name]
        names = {key: self._names[id(p)] for key, p in trainable(layer).items()}
        return layer_part(
            names, layer, rule, inputs=use.inputs, gradients=gradient, patients=use.patients
        )

    def _hook(self, name: str) -> Callable[..., None]:
        def note(
            layer: nn.Module,  # noqa: ARG001 - torch's shape
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: object,
        ) -> None:
            notes = self._notes
            if notes is None or notes.problem is not None:
                return
            if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
                notes.problem = f"layer {name!r} is called with more than one tensor"
            elif not isinstance(output, Tensor):
                notes.problem = f"layer {name!r} returns something else than a tensor"
            elif name in notes.uses:
                notes.problem = f"layer {name!r} is used more than once"
            elif output.requires_grad:
                self._note_layer(notes, name, args[0], output)

        return note

    def _note_layer(self, notes: _Notes, name: str, inputs: Tensor, output: Tensor) -> None:
        patients = notes.patients_now()
        num_rows = patients.of_rows.numel()
        if inputs.shape[:1] != (num_rows,) or output.shape[:1] != (num_rows,):
            notes.problem = f"layer {name!r} sees rows that are not known to be patients'"
            return
        # The edge, not the tensor: an in-place activation would turn the tensor into its own output.
        notes.uses[name] = _Use(
            name,
            get_gradient_edge(output),
            patients,
            inputs.detach(),
            inputs._version,  # noqa: SLF001
        )

    def _note_copies(self, parameter: nn.Parameter, copies: Tensor) -> None:
        notes = self._notes
        name = self._names.get(id(parameter))
        if notes is None or name is None or notes.problem is not None:
            return
        patients = notes.patients_now()
        if f"copies of {name}" in notes.uses or copies.shape[0] != patients.of_rows.numel():
            notes.problem = f"row copies of {name!r} are made twice, or not for every row"
            return
        self._covered.add(name)
        notes.uses[f"copies of {name}"] = _Use(name, get_gradient_edge(copies), patients)


def _rules(model: nn.Module, known: set[int]) -> dict[str, tuple[nn.Module, LayerRule]]:
    rules: dict[str, tuple[nn.Module, LayerRule]] = {}
    owner_of: dict[int, str] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        own = trainable(layer)
        for parameter in own.values():
            other = owner_of.setdefault(id(parameter), name)
            if other != name:
                raise BookKeepingProblem(f"layers {other!r} and {name!r} share a parameter")
            if id(parameter) not in known:
                raise BookKeepingProblem(f"a trainable parameter of layer {name!r} is not trained")
        rule = rule_of(layer) if own else None
        if rule is not None:
            reason = rule.reason_against(layer)
            if reason is not None:
                raise BookKeepingProblem(f"layer {name!r}: {reason}")
            rules[name] = (layer, rule)
    return rules
