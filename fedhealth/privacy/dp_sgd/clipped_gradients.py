"""Each patient's gradient, clipped, added to a sum. Called by the private training steps.

Book-keeping where it can keep the patients apart, one patient at a time elsewhere: decided once, on made-up
patients, by holding one against the other. Both clip the same gradient; only time and float32 rounding differ.
"""

import math
from collections.abc import Mapping
from logging import getLogger

import torch
from torch import Tensor, nn

from fedhealth.data.batch import Batch
from fedhealth.models.protocol import Task, TaskWithRowLosses
from fedhealth.models.row_independence import as_if_trained
from fedhealth.privacy.dp_sgd.book_keeping import BookKeeping, BookKeepingProblem
from fedhealth.privacy.dp_sgd.patient_loop import add_clipped_by_loop

_CLIPS_ALL, _CLIPS_NONE = 1e-3, 1e30
"""Wrong norms show where every gradient is clipped, a wrong size of gradients where none is."""
_TRIAL_TOLERANCE = 1e-3
"""Of a tensor's norm: float32 in another order gave at most 6e-5 on a ResNet-10."""
_TRIAL_FLOOR = 1e-6
"""Of the norm over all tensors: below that a tensor's gradient is rounding."""

_log = getLogger(__name__)


class ClippedGradients:
    """Adds clipped gradients of a model's patients.

    Args:
        model: what is trained.
        task: its loss.
        parameters: every trainable tensor by name.
        trial: a made-up batch, on the model's device; its first two records are tried as one patient too.
    """

    def __init__(
        self, model: nn.Module, task: Task, parameters: Mapping[str, nn.Parameter], trial: Batch
    ) -> None:
        self._model, self._task = model, task
        self._parameters = dict(parameters)
        self._book_keeping: BookKeeping | None = None
        try:
            self._begin_book_keeping(task, trial)
        except BookKeepingProblem as problem:
            self._use_loop(problem)

    @property
    def uses_book_keeping(self) -> bool:
        """Whether gradients come from one pass for all patients, and not from one for each."""
        return self._book_keeping is not None

    def add_to(
        self, sums: Mapping[str, Tensor], batch: Batch, owners: Tensor, *, clipping_norm: float
    ) -> int:
        """Add the clipped gradient of each patient in the batch.

        Args:
            sums: float64 tensors by name; added to.
            batch: R records, all of a patient's records that count in this step; R >= 1.
            owners: (R,) int64 patient of each record, 0..P-1, each there at least once.
            clipping_norm: most that one patient adds, L2 over all tensors together.

        Returns:
            How many patients added nothing since their gradient is not finite or far too long.
        """
        if self._book_keeping is not None and isinstance(self._task, TaskWithRowLosses):
            try:
                return self._book_keeping.add_clipped(
                    self._task, sums=sums, batch=batch, owners=owners, clipping_norm=clipping_norm
                )
            except BookKeepingProblem as problem:
                self._use_loop(problem)
        return self._add_by_loop(sums, batch, owners, clipping_norm)

    def _add_by_loop(
        self, sums: Mapping[str, Tensor], batch: Batch, owners: Tensor, clipping_norm: float
    ) -> int:
        return add_clipped_by_loop(
            self._model,
            self._task,
            sums=sums,
            parameters=self._parameters,
            batch=batch,
            owners=owners,
            clipping_norm=clipping_norm,
        )

    def close(self) -> None:
        """Take the hooks off the model; the patients are gone through one by one from then on."""
        if self._book_keeping is not None:
            self._book_keeping.close()
        self._book_keeping = None

    def _begin_book_keeping(self, task: Task, trial: Batch) -> None:
        if not isinstance(task, TaskWithRowLosses):
            raise BookKeepingProblem("the task has no row_losses")
        self._book_keeping = book_keeping = BookKeeping(self._model, self._parameters)
        each_alone = torch.arange(len(trial), device=trial.labels.device)
        two_together = (each_alone - 1).clamp(min=0)
        with as_if_trained(self._model):
            self._try(book_keeping, task, trial, each_alone, clipping_norm=_CLIPS_ALL)
            self._try(book_keeping, task, trial, each_alone, clipping_norm=_CLIPS_NONE)
            self._try(book_keeping, task, trial, two_together, clipping_norm=_CLIPS_ALL)

    def _try(
        self,
        book_keeping: BookKeeping,
        task: TaskWithRowLosses,
        trial: Batch,
        owners: Tensor,
        *,
        clipping_norm: float,
    ) -> None:
        found, expected = self._zeros(), self._zeros()
        book_keeping.add_clipped(
            task, sums=found, batch=trial, owners=owners, clipping_norm=clipping_norm
        )
        if book_keeping.uncovered:
            raise BookKeepingProblem(f"no rule for parameter {book_keeping.uncovered[0]!r}")
        self._add_by_loop(expected, trial, owners, clipping_norm)
        norms = {name: float(wanted.norm()) for name, wanted in expected.items()}
        floor = _TRIAL_FLOOR * math.hypot(*norms.values())
        for name, wanted in expected.items():
            limit = _TRIAL_TOLERANCE * norms[name] + floor
            if not float((found[name] - wanted).norm()) <= limit:
                raise BookKeepingProblem(f"the gradient of {name!r} is not its layer's alone")

    def _zeros(self) -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(p, dtype=torch.float64, requires_grad=False)
            for name, p in self._parameters.items()
        }

    def _use_loop(self, problem: BookKeepingProblem) -> None:
        self.close()
        _log.warning("private training goes through the patients one by one: %s", problem)
