"""Masks, voxel by voxel: entry point ``segmentation`` of group ``fedhealth.tasks``; for model ``unet``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.contracts.data import DataContract, MaskLabel
from fedhealth.models.options import parse_options
from fedhealth.models.protocol import Predictions
from fedhealth.models.task_parts import means, weighted_means, wrong_label

Values = NDArray[np.float64]

SMOOTH = 1e-5
"""Voxels added above and below in the Dice loss, as in MONAI: an empty class that is predicted empty has none."""


class SegmentationOptions(ConfigModel):
    """Options of the task in study.yaml."""

    cross_entropy_weight: float = Field(
        1.0, ge=0, le=100, description="Weight of the mean cross entropy beside the Dice loss."
    )


class Segmentation:
    """A logit for each voxel and each of the mask's K codes (a `ShapedTask`).

    Predictions are (N, D, H, W) float32 indices of the likeliest code, NaN where a logit is not finite.

    Args:
        contract: with a label of kind mask.
        options: see `SegmentationOptions`.

    Raises:
        ConfigError: FH-MODEL-001 an option is wrong, FH-MODEL-007 the label is of another kind.
    """

    primary_metric = "dice"
    metric_names = ("dice",)
    wants_voxels = True

    def __init__(self, contract: DataContract, options: Mapping[str, OptionValue]) -> None:
        if not isinstance(contract.target, MaskLabel):
            raise wrong_label("segmentation", "data.label of kind mask", contract)
        parsed = parse_options(SegmentationOptions, options, owner="task 'segmentation'")
        self._cross_entropy_weight = parsed.cross_entropy_weight
        self.num_outputs = len(contract.target.codes)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean of `row_losses`, of logits (B, K, D, H, W) and labels (B, D, H, W) of 0 .. K-1."""
        return self.row_losses(logits, labels).mean()

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) Dice loss, mean over foreground classes (Milletari et al. 2016), plus weighted mean cross entropy."""
        labels = labels.to(torch.int64)
        chances = torch.softmax(logits, dim=1)[:, 1:].flatten(2)
        truth = one_hot(labels, self.num_outputs).movedim(-1, 1)[:, 1:].flatten(2).to(logits.dtype)
        both = (chances * truth).sum(dim=2)
        either = chances.sum(dim=2) + truth.sum(dim=2)
        dice_loss = (1 - (2 * both + SMOOTH) / (either + SMOOTH)).mean(dim=1)
        entropies = cross_entropy(logits, labels, reduction="none").flatten(1).mean(dim=1)
        return dice_loss + self._cross_entropy_weight * entropies

    def predictions(self, logits: Tensor) -> Predictions:
        """(N, D, H, W) float32 indices, NaN where a logit is not finite."""
        found = logits.detach().argmax(dim=1).to(torch.float32)
        told = torch.isfinite(logits.detach()).all(dim=1)
        values: NDArray[np.float32] = found.masked_fill(~told, torch.nan).cpu().numpy()
        return values

    def metrics(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, float]:
        """Mean Dice overlap over patients, and within a patient over foreground classes."""
        return means(self.record_values(predictions, labels))

    def record_values(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, Values]:
        """Dice overlap 2 |A and B| / (|A| + |B|), mean over foreground classes, (N,).

        A class that is in neither the mask nor the prediction counts 1, and one that is in the prediction only
        counts 0. A prediction with a voxel that is not finite counts 0.
        """
        dice = [self._dice(p, t) for p, t in zip(predictions, labels, strict=True)]
        return {"dice": np.array(dice, dtype=np.float64)}

    def resampled_metric(
        self, predictions: Predictions, labels: NDArray[Any], weights: Values, /
    ) -> Values:
        """(R,) weighted mean Dice overlap."""
        return weighted_means(self.record_values(predictions, labels)["dice"], weights)

    def _dice(self, prediction: Predictions, truth: NDArray[Any]) -> float:
        if not np.isfinite(prediction).all():
            return 0.0
        overlaps = []
        for code in range(1, self.num_outputs):
            one, other = prediction == code, truth == code
            total = int(one.sum()) + int(other.sum())
            overlaps.append(2 * int((one & other).sum()) / total if total else 1.0)
        return float(np.mean(overlaps))
