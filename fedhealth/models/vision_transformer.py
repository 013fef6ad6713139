"""A vision transformer of plain layers, with MONAI's names for its parameters. Called by `image_encoders`.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1, without a class token: the features are the mean
over patches. MONAI's `ViT` computes the same and asks for einops; this one needs torch only, and its position
embedding is copied for every row, so that private training keeps patients apart in one pass. Shape legend: B images,
T patches, H hidden size, N heads.
"""

from collections.abc import Sequence
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fedhealth.models.patient_rows import row_copies

INIT_STD = 0.02


class PatchEmbedding(nn.Module):
    """Patches that do not overlap, each mapped linearly, plus a learnt position."""

    def __init__(self, sides: Sequence[int], patch_size: int, hidden_size: int) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(sides)]
        self.patch_embeddings = convolution(1, hidden_size, patch_size, stride=patch_size)
        num_patches = prod(side // patch_size for side in sides)
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_patches, hidden_size))
        nn.init.trunc_normal_(self.position_embeddings, std=INIT_STD)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, *sides) to (B, T, H)."""
        patches_BTH = self.patch_embeddings(images).flatten(2).mT  # noqa: N806 - shape suffix
        return cast(
            "Tensor", patches_BTH + row_copies(self.position_embeddings, images.shape[0])[:, 0]
        )


class SelfAttention(nn.Module):
    """Scaled dot-product attention with N heads; no bias on queries, keys and values."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens_BTH: Tensor) -> Tensor:  # noqa: N803
        """(B, T, H) to the same."""
        split = self.qkv(tokens_BTH).unflatten(2, (3, self._num_heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.mT * queries.shape[-1] ** -0.5
        mixed = torch.softmax(scores, dim=-1) @ values
        answers: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return answers


class FeedForward(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_size, inner_size)
        self.linear2 = nn.Linear(inner_size, hidden_size)

    def forward(self, tokens_BTH: Tensor) -> Tensor:  # noqa: N803
        """(B, T, H) to the same."""
        mapped: Tensor = self.linear2(gelu(self.linear1(tokens_BTH)))
        return mapped


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each after a LayerNorm and added to what came in."""

    def __init__(self, hidden_size: int, num_heads: int, inner_size: int) -> None:
        super().__init__()
        self.mlp = FeedForward(hidden_size, inner_size)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = SelfAttention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size)

    def forward(self, tokens_BTH: Tensor) -> Tensor:  # noqa: N803
        """(B, T, H) to the same."""
        tokens_BTH = tokens_BTH + self.attn(self.norm1(tokens_BTH))  # noqa: N806
        mapped: Tensor = tokens_BTH + self.mlp(self.norm2(tokens_BTH))
        return mapped


class VisionTransformer(nn.Module):
    """Patches, blocks, LayerNorm, mean over patches.

    Args:
        sides: of the image, 2 or 3, each a multiple of `patch_size`.
        patch_size: side of a patch.
        hidden_size: H, a multiple of `num_heads`.
        num_layers: blocks.
        num_heads: N.
        inner_size: of the feed-forward layers.
    """

    def __init__(
        self,
        sides: Sequence[int],
        *,
        patch_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        inner_size: int,
    ) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(sides, patch_size, hidden_size)
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden_size, num_heads, inner_size) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, *sides) to (B, H)."""
        tokens_BTH = self.patch_embedding(images)  # noqa: N806
        for block in self.blocks:
            tokens_BTH = block(tokens_BTH)  # noqa: N806
        features: Tensor = self.norm(tokens_BTH).mean(dim=1)
        return features
