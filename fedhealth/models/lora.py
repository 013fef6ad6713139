"""FFA-LoRA: low-rank changes of frozen layers, of which one factor is trained. Called by `trainable_parts`.

Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (arXiv 2403.12313), section 3: a layer's
change is B A with A random and frozen, the same at every site, and B zero at the start. A mean of Bs is then exactly
the mean of the changes, and noise on B stays linear in the weights; with both trained, neither holds.

Hu et al. 2021 (arXiv 2106.09685) has the rank r and the scale alpha / r. For a convolution A is a convolution of the
same kernel to r channels and B one of kernel 1. Both factors are plain layers, which per-patient clipping knows.
"""

import torch
from torch import Tensor, nn


class LowRankLayer(nn.Module):
    """base(x) + scale * B(A(x)); only B is trained.

    Args:
        base: a linear layer or a convolution; it is frozen.
        rank: r.
        alpha: the scale is alpha / r.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d | nn.Conv3d, *, rank: int, alpha: float) -> None:
        super().__init__()
        self._scale = alpha / rank
        self.base = base.requires_grad_(False)
        down, up = _factors(base, rank)
        self.lora_a = down.requires_grad_(False)
        self.lora_b = up
        nn.init.zeros_(up.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """As the base layer, changed."""
        outputs: Tensor = self.base(inputs) + self._scale * self.lora_b(self.lora_a(inputs))
        return outputs

    def weight_change(self) -> Tensor:
        """B A times the scale, in the shape of the base layer's weight."""
        with torch.no_grad():
            a, b = self.lora_a.weight, self.lora_b.weight
            product = b.flatten(1) @ a.flatten(1)
            return self._scale * product.view(b.shape[0], *a.shape[1:])


def _factors(
    base: nn.Linear | nn.Conv2d | nn.Conv3d, rank: int
) -> tuple[nn.Linear | nn.Conv2d | nn.Conv3d, nn.Linear | nn.Conv2d | nn.Conv3d]:
    if isinstance(base, nn.Linear):
        return (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )
    # torch types the settings of a convolution as loose tuples: they came from the same class, so they fit it.
    settings = {
        "kernel_size": base.kernel_size,
        "stride": base.stride,
        "padding": base.padding,
        "dilation": base.dilation,
        "padding_mode": base.padding_mode,
    }
    kind: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if isinstance(base, nn.Conv2d) else nn.Conv3d
    down = kind(base.in_channels, rank, bias=False, **settings)  # type: ignore[arg-type]  # see above
    return down, kind(rank, base.out_channels, 1, bias=False)


def add_low_rank(network: nn.Module, *, rank: int, alpha: float, least_inputs: int = 1) -> int:
    """Put a `LowRankLayer` in the place of each linear layer and ungrouped convolution; the rest is left as it is.

    Args:
        network: changed in place.
        rank: r.
        alpha: the scale is alpha / r.
        least_inputs: a layer with fewer inputs to an output (channels times kernel) is left as it is too.

    Returns:
        How many layers there are.
    """
    count = 0
    for parent in [m for m in network.modules() if not isinstance(m, LowRankLayer)]:
        for name, layer in list(parent.named_children()):
            if (
                isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
                and _is_plain(layer)
                and layer.weight[0].numel() >= least_inputs
            ):
                setattr(parent, name, LowRankLayer(layer, rank=rank, alpha=alpha))
                count += 1
    return count


def _is_plain(layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> bool:
    """By exact class, since a subclass may compute something else; a grouped convolution has no such factors."""
    is_known = type(layer) in {nn.Linear, nn.Conv2d, nn.Conv3d}
    return is_known and (isinstance(layer, nn.Linear) or layer.groups == 1)
