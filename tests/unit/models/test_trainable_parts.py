"""Freeze policies and FFA-LoRA: who is trained, exactness under averaging, what travels."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedhealth.config.base import OptionValue
from fedhealth.config.load import load_study
from fedhealth.config.template import template_path
from fedhealth.errors import ConfigError
from fedhealth.models.build import seeded_model, trainable_parameters
from fedhealth.models.example_batch import random_batch
from fedhealth.models.image_encoders import ImageEncoderName, make_image_encoder
from fedhealth.models.lora import LowRankLayer, add_low_rank
from fedhealth.models.multimodal import build_multimodal
from fedhealth.models.trainable_parts import Policy
from fedhealth.testing.model_contract import example_contract

from .patient_oracle import assert_one_pass_is_the_patient_loop

IMAGE = "encoders.volume_mri."


def _model(**options: OptionValue) -> nn.Module:
    return seeded_model(build_multimodal, example_contract(), 1, options, seed=3)


def _trained(**options: OptionValue) -> set[str]:
    return {name for name, _ in trainable_parameters(_model(**options))}


def _num_bytes(**options: OptionValue) -> int:
    return 4 * sum(p.numel() for _, p in trainable_parameters(_model(**options)))


def test_policies_train_what_they_say() -> None:
    everything = _trained()
    assert _trained(trainable="head_only") == {n for n in everything if n.startswith("head.")}
    joined = ("head.", "fusion.", "absent.")
    assert _trained(trainable="head_and_fusion") == {n for n in everything if n.startswith(joined)}
    no_image = {n for n in everything if not n.startswith(IMAGE)}
    assert _trained(trainable="image_frozen") == no_image
    assert _trained(freeze_image_encoder=True) == no_image
    low_rank = _trained(trainable="lora")
    assert {n for n in low_rank if not n.startswith(IMAGE)} == no_image
    assert {n.removeprefix(IMAGE) for n in low_rank if n.startswith(IMAGE)} == {
        *(f"blocks.{i}.conv.lora_b.weight" for i in range(3)),
        "projection.lora_b.weight",
    }


@pytest.mark.parametrize("fusion", ["gated", "concatenation", "product", "cross_attention"])
def test_low_rank_changes_of_all_parts_train_one_factor_of_each_layer(fusion: str) -> None:
    options: dict[str, OptionValue] = {"fusion": fusion, "lora_parts": "all", "lora_rank": 4}
    model = _model(trainable="lora", **options)
    trained = {name for name, _ in trainable_parameters(model)}
    in_full = {
        "head.weight",
        "head.bias",
        "fusion.modality",
        *(n for n in trained if "absent." in n),
    }
    norms = {n for n in trained if ".norm" in n}
    assert all(name.endswith("lora_b.weight") for name in trained - in_full - norms)
    plain = {
        name
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer.weight.requires_grad
    }
    assert {name for name in plain if not name.endswith("lora_b")} == {"head"}
    assert_one_pass_is_the_patient_loop(model, example_contract())


def test_a_layer_that_a_factor_would_not_make_smaller_is_trained_in_full() -> None:
    trained = _trained(trainable="lora", lora_parts="all", lora_rank=16)
    hidden = "encoders.table_ehr.hidden"  # 4 inputs at most, and the projection has 32
    assert {n for n in trained if n.startswith(hidden)} == {f"{hidden}.weight", f"{hidden}.bias"}
    assert "encoders.table_ehr.projection.lora_b.weight" in trained


def test_low_rank_changes_of_all_parts_go_without_an_image_and_with_lora_only() -> None:
    tables = replace(example_contract(), modalities=example_contract().tables)
    model = build_multimodal(tables, 1, {"trainable": "lora", "lora_parts": "all", "lora_rank": 2})
    assert any(name.endswith("lora_b.weight") for name, _ in trainable_parameters(model))
    with pytest.raises(ConfigError, match=r"FH-MODEL-001.*lora_parts"):
        _model(lora_parts="all")


def test_low_rank_changes_want_an_encoder_that_may_change() -> None:
    with pytest.raises(ConfigError, match=r"FH-MODEL-001.*lora"):
        _model(trainable="lora", freeze_image_encoder=True)
    tables = example_contract().tables
    contract = example_contract().__class__(
        patient_id_column="patient_id",
        label_column="label",
        label_codes=(0, 1),
        modalities=tables,
        split=example_contract().split,
    )
    with pytest.raises(ConfigError, match="FH-MODEL-031"):
        build_multimodal(contract, 1, {"trainable": "lora"})


@pytest.mark.parametrize("encoder", ["cnn", "resnet10", "vit_tiny"])
def test_a_low_rank_model_begins_as_its_base(encoder: str) -> None:
    batch = random_batch(example_contract(), 3)
    base, changed = _model(image_encoder=encoder), _model(image_encoder=encoder, trainable="lora")
    renamed = {
        n.replace(".base.", "."): p for n, p in changed.named_parameters() if "lora" not in n
    }
    assert set(renamed) == {n for n, _ in base.named_parameters()}
    base.load_state_dict(renamed)
    with torch.no_grad():
        torch.testing.assert_close(changed(batch), base(batch), atol=1e-6, rtol=1e-6)


def test_frozen_factors_come_from_the_seed() -> None:
    first, again = (dict(_model(trainable="lora").named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    factors = [name for name in first if name.endswith("lora_a.weight")]
    assert len(factors) == 4
    assert not any(first[name].requires_grad for name in factors)
    assert all(first[name].abs().sum() > 0 for name in factors)


LAYERS = [
    nn.Linear(6, 5),
    nn.Conv2d(2, 4, 3, stride=2, padding=1),
    nn.Conv3d(2, 4, (3, 1, 2), dilation=(1, 2, 1)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@settings(deadline=None, max_examples=25)  # the first call imports parts of torch
@given(seed=st.integers(0, 2**16), rank=st.integers(1, 4), num_sites=st.integers(1, 5))
def test_the_mean_of_trained_factors_is_the_mean_of_the_changes(
    layer: nn.Linear | nn.Conv2d | nn.Conv3d, seed: int, rank: int, num_sites: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    low_rank = LowRankLayer(layer, rank=rank, alpha=3.0)
    factors = [
        torch.randn(low_rank.lora_b.weight.shape, generator=generator) for _ in range(num_sites)
    ]
    changes = []
    for factor in factors:
        low_rank.lora_b.weight.data.copy_(factor)
        changes.append(low_rank.weight_change())
    low_rank.lora_b.weight.data.copy_(torch.stack(factors).mean(0))
    # float32 sums of up to four products.
    torch.testing.assert_close(
        low_rank.weight_change(), torch.stack(changes).mean(0), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_change_is_a_change_of_the_weight(layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
    shape = (3, 6) if isinstance(layer, nn.Linear) else (3, 2, *[7] * (layer.weight.dim() - 2))
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    low_rank = LowRankLayer(layer, rank=2, alpha=4.0)
    nn.init.normal_(low_rank.lora_b.weight)
    merged = {"weight": layer.weight + low_rank.weight_change(), "bias": layer.bias}
    expected = torch.func.functional_call(layer, merged, (inputs,))
    torch.testing.assert_close(low_rank(inputs), expected, atol=1e-5, rtol=1e-4)


def test_grouped_convolutions_and_subclasses_are_left_alone() -> None:
    class Other(nn.Linear):
        pass

    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), Other(2, 2), nn.Linear(2, 2))
    assert add_low_rank(network, rank=1, alpha=1.0) == 1
    assert isinstance(network[2], LowRankLayer)


@pytest.mark.parametrize(
    "options",
    [
        {"trainable": "lora"},
        {"trainable": "lora", "image_encoder": "vit_tiny", "lora_rank": 2},
        {"trainable": "head_and_fusion"},
        {"trainable": "head_only"},
    ],
)
def test_patients_are_clipped_in_one_pass_as_one_by_one(
    options: Mapping[str, OptionValue],
) -> None:
    assert_one_pass_is_the_patient_loop(_model(**options), example_contract())


def test_a_tenth_travels_or_less() -> None:
    modality = example_contract().volumes[0]
    names: list[ImageEncoderName] = ["cnn", "resnet10", "densenet_small", "vit_tiny"]
    for name in names:
        encoder = make_image_encoder(
            name,
            modality,
            embedding_size=16,
            widths=(8, 16, 32),
            patch_size=8,
            frozen_norm=False,
        )
        whole = sum(p.numel() for p in encoder.parameters())
        encoder.requires_grad_(False)
        add_low_rank(encoder, rank=8, alpha=16.0)
        trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        assert whole >= 10 * trained
    # Of the whole model: tables, fusion and head are trained in full besides.
    assert _num_bytes(image_encoder="resnet10") >= 10 * _num_bytes(
        image_encoder="resnet10", trainable="lora"
    )
    assert _num_bytes() >= 10 * _num_bytes(trainable="lora", lora_parts="all")
    assert _num_bytes() >= 10 * _num_bytes(trainable="head_only")
    assert _num_bytes() >= 10 * _num_bytes(trainable="head_and_fusion")


def test_the_table_of_what_travels_is_true() -> None:
    page = Path(__file__).parents[3] / "docs" / "how-to" / "fine-tune-a-pretrained-model.md"
    study = load_study(template_path("synthetic").with_name("study-tests.yaml"))
    contract = study.data.to_contract(seed=study.seed)
    (volume,) = contract.volumes
    contract = replace(contract, modalities=(replace(volume, shape=(32, 32, 32)), *contract.tables))
    text = page.read_text("utf-8")
    (header,) = re.findall(r"^\| `trainable` \| (`cnn`.*) \|$", text, re.MULTILINE)
    encoders = [name.strip("`") for name in header.split(" | ")]
    form = r"^\| `(\w+)`(?:, rank 8)?(, `lora_parts: all`)? \| (\d[\d, |]*) \|$"
    rows = re.findall(form, text, re.MULTILINE)
    assert {row[0] for row in rows} == set(get_args(Policy))
    assert len(rows) == len(get_args(Policy)) + 1
    for policy, parts, told in rows:
        for encoder, count in zip(encoders, told.split(" | "), strict=True):
            with torch.device("meta"):
                options = {"image_encoder": encoder, "trainable": policy}
                options |= {"lora_parts": "all"} if parts else {}
                model = build_multimodal(contract, 1, options)
            trained = sum(p.numel() for _, p in trainable_parameters(model))
            assert trained == int(count.replace(",", "")), (policy, encoder)
