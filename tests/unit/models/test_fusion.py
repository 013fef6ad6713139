"""Fusions against their formulas, and their gradients by patient against one patient at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedhealth.models.fusion import (
    FUSIONS,
    ConcatenationFusion,
    CrossAttentionFusion,
    FusionName,
    ProductFusion,
)
from fedhealth.models.multimodal import build_multimodal
from fedhealth.testing.model_contract import example_contract

from .patient_oracle import assert_one_pass_is_the_patient_loop

E = 3


def _embeddings(batch: int, modalities: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, E, generator=generator) for _ in range(modalities)]


def _noised(module: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


@pytest.mark.parametrize("name", list(FUSIONS))
@settings(deadline=None)  # the first call imports parts of torch
@given(seed=st.integers(0, 2**16), modalities=st.integers(1, 4))
def test_a_row_depends_on_its_own_patient_only(
    name: FusionName, seed: int, modalities: int
) -> None:
    fusion = _noised(FUSIONS[name](modalities, E))
    embeddings = _embeddings(5, modalities, seed)
    present = (
        torch.rand(5, modalities, generator=torch.Generator().manual_seed(seed)) > 0.4
    ).float()
    together = fusion(embeddings, present)
    assert together.shape == (5, fusion.output_size)
    assert torch.isfinite(together).all()
    for row in range(5):
        alone = fusion([e[row : row + 1] for e in embeddings], present[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


def test_concatenation_is_what_it_says() -> None:
    first, second = _embeddings(2, 2)
    present = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    fused = ConcatenationFusion(2, E)([first, second], present)
    assert torch.equal(fused, torch.cat([first, second, present], dim=1))


def test_a_product_is_the_product_of_linear_functions() -> None:
    fusion = _noised(ProductFusion(3, E))
    embeddings = _embeddings(4, 3)
    expected = torch.ones(4, E)
    for number, embedding in enumerate(embeddings):
        weight = fusion.get_parameter(f"factors.{number}.weight")
        bias = fusion.get_parameter(f"factors.{number}.bias")
        expected = expected * torch.einsum("be,oe->bo", embedding, weight) + expected * bias
    torch.testing.assert_close(fusion(embeddings, torch.ones(4, 3)), expected)


def test_a_zero_token_begins_as_the_factor_one() -> None:
    fusion = ProductFusion(2, E)
    first, _ = _embeddings(4, 2)
    with_token = fusion([first, torch.zeros(4, E)], torch.tensor([[1.0, 0.0]] * 4))
    alone = first @ fusion.get_parameter("factors.0.weight").T + 1
    torch.testing.assert_close(with_token, alone)


def test_cross_attention_agrees_with_torch_s_own() -> None:
    fusion = _noised(CrossAttentionFusion(3, E))
    embeddings = _embeddings(4, 3)
    present = torch.tensor([[1.0, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]])
    oracle = nn.MultiheadAttention(E, 1, batch_first=True)
    with torch.no_grad():
        names = ("query", "key", "value")
        oracle.in_proj_weight.copy_(torch.cat([fusion.get_parameter(f"{n}.weight") for n in names]))
        biases = [fusion.get_parameter("query.bias"), torch.zeros(E)]
        oracle.in_proj_bias.copy_(torch.cat([*biases, fusion.get_parameter("value.bias")]))
        oracle.out_proj.weight.copy_(torch.eye(E))
        oracle.out_proj.bias.zero_()
    tokens = torch.stack(embeddings, dim=1)
    named = tokens + fusion.get_parameter("modality")
    hidden = (present == 0) & (present.sum(1, keepdim=True) > 0)
    answers, _ = oracle(named, named, named, key_padding_mask=hidden)
    expected = torch.cat([(tokens + answers).flatten(1), present], dim=1)
    torch.testing.assert_close(fusion(embeddings, present), expected, atol=1e-5, rtol=1e-5)


def test_one_modality_needs_no_attention() -> None:
    fusion = CrossAttentionFusion(1, E)
    assert list(fusion.parameters()) == []
    (embedding,) = _embeddings(2, 1)
    assert torch.equal(fusion([embedding], torch.ones(2, 1))[:, :E], embedding)


@pytest.mark.parametrize("name", list(FUSIONS))
def test_patients_are_clipped_in_one_pass_as_one_by_one(name: FusionName) -> None:
    contract = example_contract()
    options = {"fusion": name, "image_widths": [4], "embedding_size": 4, "table_hidden_size": 4}
    model = build_multimodal(contract, 1, options)
    assert_one_pass_is_the_patient_loop(model, contract)
