"""Encoders by name: shapes, refused grids, oracles for the parts that are not MONAI's, gradients by patient."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.nets import swin_unetr
from torch import nn
from torch.nn import functional

from fedhealth.contracts.data import DataContract, VolumeModality
from fedhealth.errors import ConfigError
from fedhealth.models.channel_norm import FrozenBatchNorm, replace_batch_norm
from fedhealth.models.image_encoder import VolumeEncoder
from fedhealth.models.image_encoders import (
    DENSENETS,
    MIN_SIDE,
    SWIN_WIDTHS,
    TRANSFORMERS,
    BackboneEncoder,
    ImageEncoderName,
    make_image_encoder,
)
from fedhealth.models.logistic_fusion import build_logistic_fusion
from fedhealth.models.lora import add_low_rank
from fedhealth.models.monai_backbones import RESNET_LAYERS
from fedhealth.models.multimodal import build_multimodal
from fedhealth.models.pooling import WindowMax, WindowMean
from fedhealth.models.swin_transformer import SwinTransformer, position_index, region_bias
from fedhealth.models.vision_transformer import VisionTransformer
from fedhealth.testing.model_contract import example_contract

from .patient_oracle import assert_one_pass_is_the_patient_loop

SMALL: list[ImageEncoderName] = ["cnn", "resnet10", "densenet_small", "vit_tiny"]
SWIN: list[ImageEncoderName] = ["swin_unetr_24", "swin_unetr_48"]
LARGE: list[ImageEncoderName] = ["resnet18", "densenet121", "vit_base", *SWIN]
SHAPES = [(32, 32, 32), (32, 40, 1)]


def _modality(shape: tuple[int, int, int]) -> VolumeModality:
    return VolumeModality(name="image", shape=shape, spacing_mm=(1.0, 1.0, 1.0))


def _make(name: ImageEncoderName, shape: tuple[int, int, int]) -> VolumeEncoder:
    return make_image_encoder(
        name,
        _modality(shape),
        embedding_size=5,
        widths=(4, 8),
        patch_size=8,
        frozen_norm=False,
    )


def _contract(shape: tuple[int, int, int]) -> DataContract:
    whole = example_contract()
    return replace(whole, modalities=(*whole.tables, _modality(shape)))


def _check_encoder(name: ImageEncoderName, shape: tuple[int, int, int]) -> None:
    encoder = _make(name, shape)
    assert not list(encoder.buffers())
    volumes = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeddings = encoder(volumes)
        alone = encoder(volumes[1:])
    assert embeddings.shape == (2, 5)
    assert embeddings.dtype == torch.float32
    # float32 sums in another order through up to 121 layers.
    torch.testing.assert_close(alone[0], embeddings[1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=["3d", "2d"])
@pytest.mark.parametrize("name", SMALL)
def test_an_encoder_gives_an_embedding_of_each_patient_alone(
    name: ImageEncoderName, shape: tuple[int, int, int]
) -> None:
    _check_encoder(name, shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=["3d", "2d"])
@pytest.mark.parametrize("name", LARGE)
def test_a_large_encoder_gives_an_embedding_of_each_patient_alone(
    name: ImageEncoderName, shape: tuple[int, int, int]
) -> None:
    _check_encoder(name, shape)


def test_swin_gives_an_embedding_of_each_patient_alone() -> None:
    _check_encoder("swin_unetr_24", (32, 40, 1))


def test_every_name_has_a_network_and_a_smallest_grid() -> None:
    names = {*SMALL, *LARGE}
    assert names == {*MIN_SIDE, *TRANSFORMERS}
    assert set(MIN_SIDE) == {"cnn", *RESNET_LAYERS, *DENSENETS, *SWIN_WIDTHS}


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("resnet10", (16, 15, 16), "at least 16 voxels a side; modality 'image' has 16 x 15 x 16"),
        ("densenet121", (31, 40, 1), "at least 32 voxels a side; modality 'image' has 31 x 40"),
        (
            "swin_unetr_24",
            (32, 31, 32),
            "at least 32 voxels a side; modality 'image' has 32 x 31 x 32",
        ),
        ("vit_tiny", (16, 20, 16), "multiples of 8; modality 'image' has 16 x 20 x 16"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(
    name: ImageEncoderName, shape: tuple[int, int, int], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=f"FH-MODEL-030.*{re.escape(wanted)}"):
        _make(name, shape)


@pytest.mark.parametrize("name", [name for name in SMALL if name in MIN_SIDE])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_smallest_grid_works(name: ImageEncoderName, dims: int) -> None:
    side = MIN_SIDE[name]
    shape = (side, side, 1) if dims == 2 else (side, side, side)
    assert torch.isfinite(_make(name, shape)(torch.randn(1, 1, *shape))).all()


def test_the_shipped_weights_are_for_volumes() -> None:
    with pytest.raises(ConfigError, match=r"FH-MODEL-030.*2D image"):
        build_multimodal(_contract((16, 16, 1)), 1, {"image_weights": "phantom"})
    with pytest.raises(ConfigError, match=r"FH-MODEL-030.*2D image"):
        build_logistic_fusion(_contract((16, 16, 1)), 1, {})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (16, 16, 16)),
        ("cnn", (16, 16, 1)),
        ("resnet10", (16, 16, 1)),
        pytest.param("resnet10", (16, 16, 16), marks=pytest.mark.slow),
        ("densenet_small", (16, 16, 16)),
        ("vit_tiny", (16, 16, 16)),
    ],
)
def test_patients_are_clipped_in_one_pass_as_one_by_one(
    name: ImageEncoderName, shape: tuple[int, int, int]
) -> None:
    contract = _contract(shape)
    model = build_multimodal(contract, 1, {"image_encoder": name, "image_widths": [4, 4]})
    assert_one_pass_is_the_patient_loop(model, contract)


@pytest.mark.parametrize(
    ("shape", "is_low_rank"),
    [((16, 18, 1), False), ((16, 14, 18), False), ((16, 18, 1), True)],
    ids=["2d", "3d", "lora"],
)
def test_patients_of_swin_are_clipped_in_one_pass_as_one_by_one(
    shape: tuple[int, int, int], is_low_rank: bool
) -> None:
    """Windows are no rows here: with a small width, shifted and cut windows, and padding."""
    contract = _contract(shape)
    model = build_multimodal(contract, 1, {"image_encoder": "cnn", "image_widths": [4]})
    dims = contract.volumes[0].spatial_dims
    swin = SwinTransformer(3, spatial_dims=dims)
    model.encoders["volume_image"] = BackboneEncoder(swin, swin.num_features, 16, spatial_dims=dims)
    if is_low_rank:
        swin.requires_grad_(False)
        add_low_rank(swin, rank=2, alpha=4.0)
    assert_one_pass_is_the_patient_loop(model, contract)


class TestPooling:
    @pytest.mark.parametrize("sides", [(7, 8), (1, 5), (5, 6, 7)])
    def test_the_maximum_is_torch_s(self, sides: tuple[int, ...]) -> None:
        inputs = torch.randn(2, 3, *sides, requires_grad=True)
        pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[len(sides)]
        expected, found = pool(inputs, 3, 2, 1), WindowMax()(inputs)
        assert torch.equal(found, expected)
        weights = torch.randn_like(expected)
        wanted = torch.autograd.grad((expected * weights).sum(), inputs)[0]
        torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), inputs)[0], wanted)

    @pytest.mark.parametrize("sides", [(7, 8), (4, 5, 6)])
    def test_the_mean_is_torch_s(self, sides: tuple[int, ...]) -> None:
        inputs = torch.randn(2, 3, *sides)
        pool = {2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(sides)]
        torch.testing.assert_close(WindowMean()(inputs), pool(inputs, 2))


class TestChannelNorm:
    def test_every_batch_norm_is_replaced_and_no_group_is_one_channel(self) -> None:
        network = nn.Sequential(nn.BatchNorm3d(12), nn.Sequential(nn.BatchNorm3d(96)))
        replace_batch_norm(network, frozen=False)
        groups = [m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)]
        assert groups == [3, 24]

    def test_frozen_statistics_are_batch_norm_in_evaluation(self) -> None:
        norm = nn.BatchNorm3d(4).eval()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(4) + 0.5)
        frozen = FrozenBatchNorm(4, eps=norm.eps)
        frozen.fold(
            weight=norm.weight, bias=norm.bias, mean=norm.running_mean, variance=norm.running_var
        )
        inputs = torch.randn(2, 4, 3, 3, 3)
        torch.testing.assert_close(frozen(inputs), norm(inputs))
        assert not any(parameter.requires_grad for parameter in frozen.parameters())


def _permuted(images: torch.Tensor, pattern: str, **_: int) -> torch.Tensor:
    """What MONAI asks einops for: a permutation by names."""
    before, after = (side.split() for side in pattern.split("->"))
    return images.permute([before.index(name) for name in after])


@pytest.mark.parametrize("sides", [(16, 16), (30, 14), (16, 14, 18)], ids=str)
def test_swin_agrees_with_monai_s_from_the_same_weights(
    sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """(30, 14): windows that are shifted and padded along one axis, and one window along the other."""
    monkeypatch.setattr(swin_unetr, "rearrange", _permuted)
    dims = len(sides)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        oracle = swin_unetr.SwinTransformer(
            1, 12, [7] * dims, [2] * dims, [2, 2, 2, 2], [3, 6, 12, 24], spatial_dims=dims
        )
        own = SwinTransformer(12, spatial_dims=dims)
        for parameter in oracle.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    weights = {n: w for n, w in oracle.state_dict().items() if "relative_position_index" not in n}
    own.load_state_dict(weights)  # strict: the names are MONAI's
    images = torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = oracle(images)[-1].flatten(2).mean(2)
        torch.testing.assert_close(own(images), expected, atol=2e-5, rtol=1e-4)


def test_swin_trains_after_it_was_evaluated_first() -> None:
    """What it keeps between calls must not come from inference mode, whose tensors no gradient may use."""
    for kept in (region_bias, position_index):
        kept.cache_clear()
    swin, images = SwinTransformer(3, spatial_dims=2), torch.randn(1, 1, 16, 18)
    with torch.inference_mode():
        swin(images)
    swin(images).sum().backward()
    assert all(parameter.grad is not None for parameter in swin.parameters())


def test_the_transformer_agrees_with_torch_s_encoder_layers() -> None:
    own = VisionTransformer(
        (8, 8), patch_size=4, hidden_size=12, num_layers=2, num_heads=3, inner_size=20
    ).eval()
    layers = [
        nn.TransformerEncoderLayer(
            12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ).eval()
        for _ in range(2)
    ]
    names = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.out_proj.weight": "attn.out_proj.weight",
        "self_attn.out_proj.bias": "attn.out_proj.bias",
        "linear1.weight": "mlp.linear1.weight",
        "linear1.bias": "mlp.linear1.bias",
        "linear2.weight": "mlp.linear2.weight",
        "linear2.bias": "mlp.linear2.bias",
        "norm1.weight": "norm1.weight",
        "norm1.bias": "norm1.bias",
        "norm2.weight": "norm2.weight",
        "norm2.bias": "norm2.bias",
    }
    for number, layer in enumerate(layers):
        state = {
            theirs: own.get_parameter(f"blocks.{number}.{ours}") for theirs, ours in names.items()
        }
        state["self_attn.in_proj_bias"] = torch.zeros(36)
        layer.load_state_dict(state)
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        tokens = own.patch_embedding(images)
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).reshape(3, 4, 16)
        weight = own.get_parameter("patch_embedding.patch_embeddings.weight").flatten(1)
        bias = own.get_parameter("patch_embedding.patch_embeddings.bias")
        position = own.get_parameter("patch_embedding.position_embeddings")
        torch.testing.assert_close(tokens, patches @ weight.T + bias + position)
        for layer in layers:
            tokens = layer(tokens)
        torch.testing.assert_close(own(images), own.norm(tokens).mean(1), atol=1e-5, rtol=1e-5)


def test_the_table_of_encoders_is_true() -> None:
    page = Path(__file__).parents[3] / "docs" / "how-to" / "choose-a-model.md"
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) MB \| ([\d,]+) \|",
        page.read_text("utf-8"),
        re.MULTILINE,
    )
    assert {row[0] for row in rows} == {*SMALL, *LARGE}
    for name, in_3d, megabytes, in_2d in rows:
        for told, shape in ((in_3d, (32, 32, 32)), (in_2d, (128, 128, 1))):
            with torch.device("meta"):
                encoder = make_image_encoder(
                    name,
                    _modality(shape),
                    embedding_size=16,
                    widths=(8, 16, 32),
                    patch_size=8,
                    frozen_norm=False,
                )
            count = sum(p.numel() for p in encoder.parameters())
            assert count == int(told.replace(",", "")), name
            if shape[2] > 1:
                assert f"{4 * count / 1e6:.2f}" == megabytes
