"""Which parts of a model are trained, and so travel: the freeze policies. Called by `multimodal`.

What is frozen is the same at every site, since it comes from the study's seed or from pinned weights. A projection
whose backbone is pretrained and which is not (`VolumeEncoder.projection_is_new`) counts as a part of the fusion: frozen
at random it would throw most of the features away.
"""

from collections.abc import Iterable
from typing import Literal

from torch import nn

from fedhealth.errors import ConfigError
from fedhealth.models.image_encoder import VolumeEncoder
from fedhealth.models.lora import add_low_rank

Policy = Literal["all", "head_only", "head_and_fusion", "lora", "image_frozen"]


def keep_trainable(
    model: nn.Module,
    policy: Policy,
    *,
    lora_rank: int,
    lora_alpha: float,
    fusion_parts: Iterable[str],
    low_rank_parts: Iterable[nn.Module] = (),
) -> None:
    """Freeze what the policy does not train.

    Args:
        model: all trainable; its head is called ``head``.
        policy: see the options of the model.
        lora_rank: r.
        lora_alpha: the scale is alpha / r.
        fusion_parts: prefixes of parameter names that count as fusion.
        low_rank_parts: with policy lora, what is changed in low rank besides image encoders. These begin at random: a
            layer of no more inputs than the rank, for which a factor would not be smaller, is trained in full.

    Raises:
        ConfigError: FH-MODEL-031 policy lora without a layer to change.
    """
    if policy in {"head_only", "head_and_fusion"}:
        kept = ("head.",) if policy == "head_only" else ("head.", *fusion_parts)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name.startswith(kept))
    encoders = [m for m in model.modules() if isinstance(m, VolumeEncoder)]
    if policy in {"image_frozen", "lora"}:
        for encoder in encoders:
            encoder.requires_grad_(False)
    if policy == "lora" and not (
        sum(_adapt(e, rank=lora_rank, alpha=lora_alpha) for e in encoders)
        + sum(
            add_low_rank(part, rank=lora_rank, alpha=lora_alpha, least_inputs=lora_rank + 1)
            for part in low_rank_parts
        )
    ):
        raise ConfigError(
            "FH-MODEL-031",
            "trainable lora needs an image encoder, and the study has no volume modality.",
            why="Low-rank changes are made to image encoders; there would be nothing to change.",
            fix="Set model.options.trainable to all, or model.options.lora_parts to all, in study.yaml.",
        )
    if policy not in {"all", "head_only"}:
        for encoder in encoders:
            if encoder.projection_is_new or (policy == "lora" and not encoder.adapts_projection):
                encoder.projection.requires_grad_(True)


def _adapt(encoder: VolumeEncoder, *, rank: int, alpha: float) -> int:
    if encoder.adapts_projection:
        return add_low_rank(encoder, rank=rank, alpha=alpha)
    return sum(
        add_low_rank(part, rank=rank, alpha=alpha)
        for name, part in encoder.named_children()
        if name != "projection"
    )
