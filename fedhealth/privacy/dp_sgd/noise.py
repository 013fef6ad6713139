"""Normals for torch from the site's keystream. Called by the private training steps.

The noise is drawn and added in float64, and the noised mean is then rounded to float32. Rounding after the noise
is post-processing. It does not close the gap between real numbers and floats: which float64 a Box-Muller draw can
be depends on its bits, so that an adversary who sees an exact noised value can in principle tell some inputs apart
(Mironov 2012, "On Significance of the Least Significant Bits for Differential Privacy", shown for Laplace).
Rounding to float32 drops 29 of the bits that such an attack reads, and every value mixes many patients and steps;
that makes it harder, it proves nothing. Only discrete noise would.
"""

import math

import numpy as np
import torch
from torch import Tensor

from fedhealth.privacy.randomness import Randomness

_UNIT_53 = 2.0**-53
_CHUNK_PAIRS = 2**18
"""Bounds the temporaries at a few MB."""


def normals(randomness: Randomness, count: int) -> Tensor:
    """(count,) float64 standard normals on the CPU, as `Randomness.normals` makes them, in torch: twice as fast."""
    result = torch.empty(count + count % 2, dtype=torch.float64)
    for start in range(0, result.numel(), 2 * _CHUNK_PAIRS):
        part = result[start : start + 2 * _CHUNK_PAIRS]
        half = part.numel() // 2
        words = (randomness.uniform_bits(part.numel()) >> np.uint64(11)).view(np.int64)
        uniforms = torch.from_numpy(words).double()
        radius = uniforms[:half].add_(1.0).mul_(_UNIT_53).log_().mul_(-2.0).sqrt_()
        angle = uniforms[half:].mul_(2.0 * math.pi * _UNIT_53)
        torch.mul(radius, angle.cos(), out=part[:half])
        torch.mul(radius, angle.sin(), out=part[half:])
    return result[:count]
