"""Rows of ``C^-1 z`` for the banded matrix of DP-FTRL, one round at a time.

The recursion of Denisov et al. 2022 (arXiv 2202.08312) and McKenna 2024 (arXiv 2405.15913), algorithm 1: row t of
``C w = z`` gives ``w_t = z_t - sum_{j=1}^{bands-1} r_j w_{t-j}``.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedhealth.privacy.accounting.matrix_mechanism import coefficients
from fedhealth.privacy.randomness import Randomness
from fedhealth_strategies.clipped_sum import Noise

Row = NDArray[np.float64]

STATE_PREFIX = "noise_row:"


class CorrelatedNoise:
    """Keeps the last ``bands - 1`` rows, in float64: rounding them would change what is accounted for.

    The rows are secret: who has them takes that part of the noise out of published models.
    """

    def __init__(self, bands: int) -> None:
        self._coefficients = coefficients(bands)
        self._rows: deque[Row] = deque(maxlen=bands - 1)  # newest first

    @property
    def num_rows(self) -> int:
        """Rows that are kept."""
        return len(self._rows)

    def next_row(self, randomness: Randomness, size: int) -> Noise:
        """The next row, to be asked for piece by piece; it takes the oldest one's place when all is drawn."""
        row: Row = np.empty(size if self._rows.maxlen else 0, dtype=np.float64)
        earlier = tuple(self._rows)
        drawn = 0

        def draw(count: int) -> Row:
            nonlocal drawn
            part = slice(drawn, drawn + count)
            piece = randomness.normals(count)
            for factor, old in zip(self._coefficients[1:], earlier, strict=False):
                piece -= factor * old[part]
            drawn += count
            if row.size:
                row[part] = piece
                if drawn == size:
                    self._rows.appendleft(row)
            return piece

        return draw

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """The rows, newest first; not copied."""
        return {f"{STATE_PREFIX}{age}": row for age, row in enumerate(self._rows)}

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `state_dict` gave."""
        ages = sorted(int(name.removeprefix(STATE_PREFIX)) for name in state)
        self._rows.clear()
        self._rows.extend(state[f"{STATE_PREFIX}{age}"].astype(np.float64) for age in ages)
