"""Fusion of N modality embeddings into one vector, four ways behind one name. Called by `multimodal`.

Shape legend: B patients, M modalities, E embedding size. Every fusion takes M embeddings (B, E) float32, the
absent-modality token where a patient lacks one, and present_BM (B, M) float32, 1 where the patient has the modality;
it gives (B, output_size) float32. Row i depends on patient i only, and each layer is used once, so that private
training keeps the patients apart in one pass.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from fedhealth.models.patient_rows import row_copies

FusionName = Literal["gated", "concatenation", "product", "cross_attention"]


class Fusion(nn.Module):
    """What `multimodal` needs of a fusion: to be called with embeddings and presence, and its output size."""

    output_size: int


class GatedFusion(Fusion):
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
        """M * E gated values, then E products for each pair of modalities."""
        joined = torch.cat([*embeddings, present_BM], dim=1)
        gated = torch.sigmoid(self.gate(joined)) * torch.cat(list(embeddings), dim=1)
        products = [embeddings[i] * embeddings[j] for i, j in self._pairs]
        return torch.cat([gated, *products], dim=1)


class ConcatenationFusion(Fusion):
    """The embeddings side by side, and who is present: with a linear head, an additive model of the modalities.

    The baseline of every comparison of fusions (Ngiam et al. 2011, "Multimodal Deep Learning", section 3). It has no
    parameter, and no term in which two modalities meet.

    Args:
        num_modalities: M.
        embedding_size: E.
    """

    def __init__(self, num_modalities: int, embedding_size: int) -> None:
        super().__init__()
        self.output_size = num_modalities * (embedding_size + 1)

    def forward(self, embeddings: Sequence[Tensor], present_BM: Tensor) -> Tensor:  # noqa: N803
        """M * E embedding values, then the M presences."""
        return torch.cat([*embeddings, present_BM], dim=1)


class ProductFusion(Fusion):
    """One factor a modality, multiplied: E products of M linear functions.

    Liu et al. 2018, "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors", equation 6, with one rank an
    output: the constant in every factor makes the product hold each modality alone and all of them together. The
    constants begin at 1 and the tokens at 0, so that an absent modality begins as the factor 1, which changes nothing.

    Args:
        num_modalities: M.
        embedding_size: E.
    """

    def __init__(self, num_modalities: int, embedding_size: int) -> None:
        super().__init__()
        factors = [nn.Linear(embedding_size, embedding_size) for _ in range(num_modalities)]
        for factor in factors:
            nn.init.ones_(factor.bias)
        self.factors = nn.ModuleList(factors)
        self.output_size = embedding_size

    def forward(self, embeddings: Sequence[Tensor], present_BM: Tensor) -> Tensor:  # noqa: ARG002, N803
        """E products. Presence is in the tokens: a factor of its own would only repeat it."""
        fused: Tensor | None = None
        for factor, embedding in zip(self.factors, embeddings, strict=True):
            value = factor(embedding)
            fused = value if fused is None else fused * value
        if fused is None:
            raise ValueError("a fusion needs at least one modality")
        return fused


class CrossAttentionFusion(Fusion):
    """Every modality asks all that are present: scaled dot-product attention over M tokens, added to the embeddings.

    Vaswani et al. 2017, "Attention Is All You Need", equation 1, between modalities as in Tsai et al. 2019, "Multimodal
    Transformer for Unaligned Multimodal Language Sequences", section 3.1. An absent modality asks with its token, and
    is not asked; where a patient has no modality at all, all tokens are asked. One modality has nobody to ask: its
    embedding is passed on, without a parameter.

    Args:
        num_modalities: M.
        embedding_size: E.
    """

    def __init__(self, num_modalities: int, embedding_size: int) -> None:
        super().__init__()
        self._is_alone = num_modalities == 1
        self._scale = embedding_size**-0.5
        self.output_size = num_modalities * (embedding_size + 1)
        if self._is_alone:
            return
        self.modality = nn.Parameter(torch.zeros(num_modalities, embedding_size))
        nn.init.trunc_normal_(self.modality, std=0.02)
        self.query = nn.Linear(embedding_size, embedding_size)
        # No bias: it would add the same to all scores of a query, which softmax takes out again.
        self.key = nn.Linear(embedding_size, embedding_size, bias=False)
        self.value = nn.Linear(embedding_size, embedding_size)

    def forward(self, embeddings: Sequence[Tensor], present_BM: Tensor) -> Tensor:  # noqa: N803
        """M * E values, then the M presences."""
        tokens_BME = torch.stack(list(embeddings), dim=1)  # noqa: N806
        if not self._is_alone:
            tokens_BME = tokens_BME + self._answers(tokens_BME, present_BM)  # noqa: N806
        return torch.cat([tokens_BME.flatten(1), present_BM], dim=1)

    def _answers(self, tokens_BME: Tensor, present_BM: Tensor) -> Tensor:  # noqa: N803
        named_BME = tokens_BME + row_copies(self.modality, tokens_BME.shape[0])  # noqa: N806
        scores_BMM = self.query(named_BME) @ self.key(named_BME).mT * self._scale  # noqa: N806
        has_nothing = present_BM.sum(dim=1, keepdim=True) == 0
        may_be_asked = (present_BM > 0) | has_nothing
        scores_BMM = scores_BMM.masked_fill(~may_be_asked[:, None, :], -torch.inf)  # noqa: N806
        answers_BME: Tensor = torch.softmax(scores_BMM, dim=2) @ self.value(named_BME)  # noqa: N806
        return answers_BME


FUSIONS: Mapping[FusionName, Callable[[int, int], Fusion]] = {
    "gated": GatedFusion,
    "concatenation": ConcatenationFusion,
    "product": ProductFusion,
    "cross_attention": CrossAttentionFusion,
}
