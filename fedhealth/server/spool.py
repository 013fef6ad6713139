"""Updates of one round on disk, so that they can be folded in roster order with one in memory at a time.

Floating-point addition depends on the order: folding in the order of arrival would give another model in
every run (docs/adr/0006).
"""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.tensors import vector_bytes


class Spool:
    """One folder, emptied when a round begins and when it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.clear()

    def put(self, site_id: str, vector: NDArray[np.float32]) -> None:
        """Keep one site's vector."""
        (self._folder / f"{site_id}.f4le").write_bytes(vector_bytes(vector))

    def load(self, site_id: str) -> NDArray[np.float32]:
        """Map one site's vector: pages are read when they are used and can be dropped again."""
        return np.memmap(self._folder / f"{site_id}.f4le", dtype="<f4", mode="r")

    def clear(self) -> None:
        """Forget all updates: the server keeps no site's update after the round."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)
