"""Whose row is it: what a model says while it runs, so that gradients can be kept apart by patient.

Called by models, read by `fedhealth.privacy.dp_sgd`. Private training needs each patient's own gradient. A layer
sees rows, and row i of its input is row i of the batch, unless the model says otherwise:

    with rows_of_patients(rows):        # the encoder sees only some rows of the batch
        encoded = self.encoder(volumes[rows])

    token = row_copies(self.token, len(batch))  # a parameter that is no layer's, one copy a row

Without private training both cost nothing and change nothing. A model that says nothing is trained as privately,
one patient at a time, which takes longer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

Recorder = Callable[[nn.Parameter, Tensor], None]

_patients_of_rows: ContextVar[Tensor | None] = ContextVar("patients_of_rows", default=None)
_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def rows_of_patients(rows: Tensor) -> Iterator[None]:
    """Inside, layers see these rows of what they saw outside; contexts compose.

    Args:
        rows: (R,) int64 row numbers of the enclosing rows.
    """
    outer = _patients_of_rows.get()
    token = _patients_of_rows.set(rows if outer is None else outer[rows])
    try:
        yield
    finally:
        _patients_of_rows.reset(token)


def current_patients() -> Tensor | None:
    """(R,) int64: whose each row is, as of now; None when nobody has said."""
    return _patients_of_rows.get()


def row_copies(parameter: nn.Parameter, num_rows: int) -> Tensor:
    """The parameter once for each row, (num_rows, *shape), as a view; use it once in a forward pass."""
    copies = parameter.expand(num_rows, *parameter.shape)
    recorder = _recorder.get()
    if recorder is not None:
        recorder(parameter, copies)
    return copies


@contextmanager
def recording_copies(recorder: Recorder) -> Iterator[None]:
    """Inside, `recorder` is told of every call of `row_copies`. For `fedhealth.privacy.dp_sgd`."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)
