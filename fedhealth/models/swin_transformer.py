"""A Swin transformer of plain layers, with MONAI's names for its parameters. Called by `image_encoders`.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", in the sizes of the encoder
of Swin UNETR (Hatamizadeh et al. 2022, arXiv 2201.01266): patches of 2, windows of 7, two blocks a stage, four stages,
each of which halves the sides. MONAI's `SwinTransformer` computes the same from the same weights, asks for einops,
puts windows into the batch, so that rows are no patients any more, and its position index is a buffer. Here
windows are a dimension of their own and the bias table is copied for every row: private training keeps patients apart
in one pass. Shape legend: B images, W windows, T positions of a window, C channels, N heads.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, pad

from fedhealth.models.patient_rows import row_copies

PATCH_SIZE: Final = 2
WINDOW: Final = 7
BLOCKS_PER_STAGE: Final = 2
STAGE_HEADS: Final = (3, 6, 12, 24)
MLP_RATIO: Final = 4
INIT_STD: Final = 0.02
OTHER_REGION: Final = -100.0
"""Added to the score of two positions that only the cyclic shift made neighbours (Liu et al., section 3.2)."""

Sides = tuple[int, ...]


def window_and_shift(sides: Sides, *, shifted: bool) -> tuple[Sides, Sides]:
    """Window and shift by axis: an axis that is no longer than a window is one window, and is not shifted."""
    window = tuple(min(side, WINDOW) for side in sides)
    shift = tuple(WINDOW // 2 if shifted and side > WINDOW else 0 for side in sides)
    return window, shift


def to_windows(maps: Tensor, window: Sides) -> Tensor:
    """(B, *sides, C), sides multiples of the window, to (B, W, T, C)."""
    dims = len(window)
    counts = [side // size for side, size in zip(maps.shape[1:-1], window, strict=True)]
    split = maps.reshape(
        len(maps), *(n for pair in zip(counts, window, strict=True) for n in pair), -1
    )
    order = (0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    return split.permute(order).reshape(len(maps), prod(counts), prod(window), -1)


def from_windows(windows: Tensor, window: Sides, sides: Sides) -> Tensor:
    """Undo `to_windows`."""
    dims = len(window)
    counts = [side // size for side, size in zip(sides, window, strict=True)]
    split = windows.reshape(len(windows), *counts, *window, -1)
    order = (0, *(n for axis in range(dims) for n in (1 + axis, 1 + dims + axis)), 2 * dims + 1)
    return split.permute(order).reshape(len(windows), *sides, -1)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # kept for later calls, which may take gradients
def region_bias(sides: Sides, window: Sides, shift: Sides) -> Tensor:
    """(W, T, T): 0 for positions of one region of the image, `OTHER_REGION` for those that the shift put together."""
    regions = torch.zeros(1, *sides, 1)
    for axis, (side, size, step) in enumerate(zip(sides, window, shift, strict=True)):
        if step:
            places = torch.arange(side)
            number = (places >= side - size).float() + (places >= side - step).float()
            shape = [1] * (len(sides) + 2)
            shape[axis + 1] = side
            regions = regions * 3 + number.reshape(shape)
    of_window = to_windows(regions, window)[0, :, :, 0]
    differs = of_window[:, :, None] != of_window[:, None, :]
    return torch.zeros(differs.shape).masked_fill(differs, OTHER_REGION)


@lru_cache(maxsize=2)
@torch.inference_mode(mode=False)
def position_index(dims: int) -> Tensor:
    """(T, T) int64 of a whole window: the row of the bias table for each pair of positions."""
    places = torch.tensor(list(product(range(WINDOW), repeat=dims)))
    apart = places[:, None] - places[None, :] + WINDOW - 1
    base = torch.tensor([(2 * WINDOW - 1) ** power for power in reversed(range(dims))])
    return (apart * base).sum(-1)


class WindowAttention(nn.Module):
    """Scaled dot-product attention within windows, with a learnt bias for each relative position."""

    def __init__(self, width: int, num_heads: int, dims: int) -> None:
        super().__init__()
        self._num_heads, self._dims = num_heads, dims
        table = torch.zeros((2 * WINDOW - 1) ** dims, num_heads)
        self.relative_position_bias_table = nn.Parameter(table)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=INIT_STD)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, windows_BWTC: Tensor, regions_WTT: Tensor | None) -> Tensor:  # noqa: N803 - shape suffix
        """(B, W, T, C) to the same; `regions_WTT` of a shifted block, else None."""
        split = self.qkv(windows_BWTC).unflatten(3, (3, self._num_heads, -1))
        queries, keys, values = split.permute(3, 0, 1, 4, 2, 5)
        scores = queries * queries.shape[-1] ** -0.5 @ keys.mT + self._bias(windows_BWTC)
        if regions_WTT is not None:
            scores = scores + regions_WTT[:, None].to(scores.device)
        mixed = torch.softmax(scores, dim=-1) @ values
        answers: Tensor = self.proj(mixed.transpose(2, 3).flatten(3))
        return answers

    def _bias(self, windows_BWTC: Tensor) -> Tensor:  # noqa: N803
        """(B, 1, N, T, T). A window cut to the image takes the first T rows of a whole one's index, as MONAI does."""
        num_images, _, size, _ = windows_BWTC.shape
        tables = row_copies(self.relative_position_bias_table, num_images)
        index = position_index(self._dims)[:size, :size].to(tables.device)
        chosen: Tensor = tables[:, index].permute(0, 3, 1, 2)[:, None]
        return chosen


class FeedForward(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, MLP_RATIO * width)
        self.linear2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, maps: Tensor) -> Tensor:
        """(..., C) to the same."""
        mapped: Tensor = self.linear2(gelu(self.linear1(maps)))
        return mapped


class SwinBlock(nn.Module):
    """Window attention and feed-forward, each after a LayerNorm and added to what came in."""

    def __init__(self, width: int, num_heads: int, dims: int, *, shifted: bool) -> None:
        super().__init__()
        self._shifted = shifted
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, num_heads, dims)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, *sides, C) to the same."""
        maps = maps + self._attended(self.norm1(maps))
        mapped: Tensor = maps + self.mlp(self.norm2(maps))
        return mapped

    def _attended(self, maps: Tensor) -> Tensor:
        sides = tuple(maps.shape[1:-1])
        window, shift = window_and_shift(sides, shifted=self._shifted)
        padded = pad_to_multiples(maps, window)
        whole, axes = tuple(padded.shape[1:-1]), tuple(range(1, 1 + len(sides)))
        regions = None
        if any(shift):
            padded = padded.roll(tuple(-step for step in shift), axes)
            regions = region_bias(whole, window, shift)
        mixed = from_windows(self.attn(to_windows(padded, window), regions), window, whole)
        if any(shift):
            mixed = mixed.roll(shift, axes)
        return mixed[(slice(None), *(slice(side) for side in sides))]


class PatchMerging(nn.Module):
    """Each cube of 2 neighbours a side becomes one position of twice the channels."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self._parts = _merging_order(dims)
        self.reduction = nn.Linear(2**dims * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2**dims * width)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, *sides, C) to (B, *halves rounded up, 2 C)."""
        even = pad_to_multiples(maps, (2,) * (maps.dim() - 2))
        parts = [
            even[(slice(None), *(slice(first, None, 2) for first in part))] for part in self._parts
        ]
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return merged


def _merging_order(dims: int) -> list[Sides]:
    """Which neighbour comes first: MONAI's order, so that published weights fit."""
    if dims == 2:  # noqa: PLR2004 - an image
        return [(j, i) for i, j in product(range(2), repeat=2)]
    return [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]


class Stage(nn.Module):
    """Blocks, every second one with shifted windows, and a merging."""

    def __init__(self, width: int, num_heads: int, dims: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(width, num_heads, dims, shifted=number % 2 == 1)
            for number in range(BLOCKS_PER_STAGE)
        )
        self.downsample = PatchMerging(width, dims)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, *sides, C) to (B, *halves, 2 C)."""
        for block in self.blocks:
            maps = block(maps)
        merged: Tensor = self.downsample(maps)
        return merged


class PatchEmbed(nn.Module):
    """Patches that do not overlap, each mapped linearly."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.proj = convolution(1, width, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, *sides) to (B, *halves, C)."""
        even = pad_to_multiples(images.movedim(1, -1), (PATCH_SIZE,) * (images.dim() - 2))
        maps: Tensor = self.proj(even.movedim(-1, 1))
        return maps.movedim(1, -1)


class SwinTransformer(nn.Module):
    """Patches, four stages, LayerNorm without weights, mean over positions.

    Args:
        width: channels after the patches, a multiple of 3; MONAI's `feature_size`.
        spatial_dims: 2 or 3.
    """

    def __init__(self, width: int, *, spatial_dims: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width, spatial_dims)
        stages = [
            Stage(width * 2**number, heads, spatial_dims)
            for number, heads in enumerate(STAGE_HEADS)
        ]
        self.layers1, self.layers2, self.layers3, self.layers4 = (
            nn.ModuleList([stage]) for stage in stages
        )
        self.num_features = width * 2 ** len(STAGE_HEADS)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, *sides) to (B, F), F 16 times the width."""
        maps: Tensor = self.patch_embed(images)
        for stages in (self.layers1, self.layers2, self.layers3, self.layers4):
            maps = stages[0](maps)
        return layer_norm(maps, maps.shape[-1:]).flatten(1, -2).mean(dim=1)


def pad_to_multiples(maps: Tensor, sizes: Sequence[int]) -> Tensor:
    """(B, *sides, C) with zeros behind, so that each side is a multiple of its size."""
    missing = [-side % size for side, size in zip(maps.shape[1:-1], sizes, strict=True)]
    if not any(missing):
        return maps
    return pad(maps, [0, 0, *(n for number in reversed(missing) for n in (0, number))])
