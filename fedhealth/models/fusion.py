"""Fusion of N modality embeddings into one vector. Called by `multimodal`."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn


class GatedFusion(nn.Module):
    """Each embedding through a gate that sees all of them, plus the products of every pair.

    The gate (Arevalo et al. 2017, "Gated Multimodal Units for Information Fusion", section 3.1) decides how
    far a modality counts for this patient. The elementwise products carry what is only visible in two
    modalities together (Kim et al. 2017, "Hadamard Product for Low-rank Bilinear Pooling", section 2), which
    a linear head on concatenated embeddings cannot express.

    Args:
        num_modalities: M.
        embedding_size: E.
    """

    def __init__(self, num_modalities: int, embedding_size: int) -> None:
        super().__init__()
        self._pairs = tuple(combinations(range(num_modalities), 2))
        width = num_modalities * embedding_size
        self.gate = nn.Linear(width + num_modalities, width)
        self.output_size = width + len(self._pairs) * embedding_size

    def forward(self, embeddings: Sequence[Tensor], present_BM: Tensor) -> Tensor:  # noqa: N803
        """The fused vector.

        Args:
            embeddings: M tensors (B, E) float32; the absent-modality token where a patient lacks one.
            present_BM: (B, M) float32, 1 where the patient has the modality.

        Returns:
            (B, output_size) float32: M * E gated values, then E products for each pair of modalities.
        """
        joined = torch.cat([*embeddings, present_BM], dim=1)
        gated = torch.sigmoid(self.gate(joined)) * torch.cat(list(embeddings), dim=1)
        products = [embeddings[i] * embeddings[j] for i, j in self._pairs]
        return torch.cat([gated, *products], dim=1)
