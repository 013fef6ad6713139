"""Each patient's gradient, clipped, added to a sum. Called by the private training steps."""

from collections.abc import Mapping

from torch import Tensor, nn

from fedhealth.data.batch import Batch
from fedhealth.models.protocol import Task
from fedhealth.privacy.dp_sgd.patient_loop import add_clipped_by_loop


class ClippedGradients:
    """Adds clipped gradients of a model's patients.

    Args:
        model: what is trained.
        task: its loss.
        parameters: every trainable tensor by name.
        clipping_norm: most that one patient adds, L2 over all of them together.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        parameters: Mapping[str, nn.Parameter],
        *,
        clipping_norm: float,
    ) -> None:
        self._model, self._task = model, task
        self._parameters = dict(parameters)
        self._clipping_norm = clipping_norm

    def add_to(self, sums: Mapping[str, Tensor], batch: Batch, owners: Tensor) -> int:
        """Add the clipped gradient of each patient in the batch.

        Args:
            sums: float64 tensors by name; added to.
            batch: R records, all of a patient's records that count in this step.
            owners: (R,) int64 patient of each record, 0..P-1.

        Returns:
            How many patients added nothing since their gradient is not finite.
        """
        return add_clipped_by_loop(
            self._model,
            self._task,
            sums=sums,
            parameters=self._parameters,
            batch=batch,
            owners=owners,
            clipping_norm=self._clipping_norm,
        )
