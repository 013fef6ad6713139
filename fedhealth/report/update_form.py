"""The form of a round's updates in its record: the sizes have to be those of that form. Called by `record`."""

from collections.abc import Sequence

import numpy as np

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.contracts.update_encoding import UpdateEncoding, encoded_size


def check_form(
    encoding: UpdateEncoding,
    *,
    is_plain_training: bool,
    shapes: Sequence[tuple[int, ...]],
    sizes_bytes: Sequence[int],
) -> None:
    """Compare what was received with what an update of this form takes.

    Args:
        encoding: what the round's manifest asked for; float32 is not looked at.
        is_plain_training: updates came, and without masks.
        shapes: of the model's tensors.
        sizes_bytes: of the updates that were verified.

    Raises:
        ValueError: another size, or a form in a round that has none.
    """
    if encoding == "float32":
        return
    if not is_plain_training:
        raise ValueError("only an update without masks has another form than float32")
    nothing = np.float32(0)
    spec = TensorSpec.of({str(i): np.broadcast_to(nothing, s) for i, s in enumerate(shapes)})
    if set(sizes_bytes) - {encoded_size(spec, encoding)}:
        raise ValueError("an update that was verified has another size than its form")
