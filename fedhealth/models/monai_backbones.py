"""MONAI's ResNet and DenseNet as feature extractors that may train in a federation. Called by `image_encoders`.

The networks are MONAI's, with three layers exchanged: BatchNorm (see `channel_norm`), poolings without a deterministic
backward pass (see `pooling`), and the classifier, which is left out. Names of parameters stay MONAI's, so that
published weights fit. MONAI's own norm argument does not reach the blocks of its ResNet (1.6.1), so BatchNorm is
exchanged afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from fedhealth.models.channel_norm import replace_batch_norm
from fedhealth.models.pooling import GlobalMean, WindowMax, WindowMean

RESNET_LAYERS: Mapping[str, Sequence[int]] = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2)}
RESNET_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class DenseNetPlan:
    """Filters of the stem, filters that a layer adds, layers of each block."""

    init_features: int
    growth_rate: int
    block_layers: tuple[int, ...]


DENSENETS: Mapping[str, DenseNetPlan] = {
    "densenet_small": DenseNetPlan(16, 8, (2, 4, 4)),
    "densenet121": DenseNetPlan(64, 32, (6, 12, 24, 16)),
}


def resnet(name: str, *, spatial_dims: int, frozen_norm: bool) -> tuple[nn.Module, int]:
    """A ResNet of basic blocks, and the width of its features.

    He et al. 2016, "Deep Residual Learning for Image Recognition", section 3.3; the stem of MedicalNet (stride 2, then
    a maximum), projection shortcuts (option B): MONAI's option A passes no gradient on.
    """
    from monai.networks.nets.resnet import ResNet

    network = ResNet(
        block="basic",
        layers=list(RESNET_LAYERS[name]),
        block_inplanes=list(RESNET_WIDTHS),
        spatial_dims=spatial_dims,
        n_input_channels=1,
        conv1_t_size=7,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    network.add_module("maxpool", WindowMax())
    network.add_module("avgpool", GlobalMean())
    replace_batch_norm(network, frozen=frozen_norm)
    return network, RESNET_WIDTHS[-1]


class DenseFeatures(nn.Module):
    """The `features` of MONAI's DenseNet, ReLU, global mean."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, *sides) to (B, F)."""
        maps: Tensor = self.features(images)
        return maps.relu().flatten(2).mean(dim=2)


def densenet(name: str, *, spatial_dims: int, frozen_norm: bool) -> tuple[nn.Module, int]:
    """A DenseNet, and the width of its features (Huang et al. 2017, "Densely Connected Convolutional Networks")."""
    from monai.networks.nets.densenet import DenseNet

    plan = DENSENETS[name]
    whole = DenseNet(
        spatial_dims=spatial_dims,
        in_channels=1,
        out_channels=1,
        init_features=plan.init_features,
        growth_rate=plan.growth_rate,
        block_config=plan.block_layers,
    )
    num_features = cast("nn.Linear", whole.class_layers.get_submodule("out")).in_features
    network = DenseFeatures(whole.features)
    network.features.add_module("pool0", WindowMax())
    for number in range(1, len(plan.block_layers)):
        network.features.get_submodule(f"transition{number}").add_module("pool", WindowMean())
    replace_batch_norm(network, frozen=frozen_norm)
    return network, num_features
