"""Every rule against autograd one row at a time, in float64, and against Opacus' grad samplers."""

import itertools
import warnings
from collections.abc import Callable

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from fedhealth.privacy.dp_sgd import convolution_rule
from fedhealth.privacy.dp_sgd.clip_factor import clip_factors
from fedhealth.privacy.dp_sgd.layer_rules import LayerRule, rule_of

ROWS = 5
TOLERANCE = 1e-9
"""Of float64 sums."""


class Scale(nn.Module):
    """A layer that brings its own rule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale

    def row_gradients(self, inputs: Tensor, output_gradients: Tensor) -> dict[str, Tensor]:
        return {"scale": inputs * output_gradients}


def _conv(
    kind: type[nn.Module], *shape: int, **options: object
) -> Callable[[], tuple[nn.Module, Tensor]]:
    def make() -> tuple[nn.Module, Tensor]:
        return kind(4, 6, **options), torch.randn(ROWS, 4, *shape)

    return make


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(3, 4), torch.randn(ROWS, 3)),
    "linear without bias": lambda: (nn.Linear(3, 4, bias=False), torch.randn(ROWS, 3)),
    "linear over few positions": lambda: (nn.Linear(30, 40), torch.randn(ROWS, 2, 30)),
    "linear over many positions": lambda: (nn.Linear(3, 4), torch.randn(ROWS, 7, 2, 3)),
    "conv1d": _conv(nn.Conv1d, 40, kernel_size=3, stride=2, padding=1),
    "conv1d few positions": _conv(nn.Conv1d, 9, kernel_size=3, stride=2, dilation=2),
    "conv2d": _conv(nn.Conv2d, 20, 19, kernel_size=(3, 2), stride=(2, 1), padding=(1, 0)),
    "conv2d groups": _conv(nn.Conv2d, 20, 20, kernel_size=3, groups=2, dilation=2, bias=False),
    "conv2d few positions in groups": _conv(
        nn.Conv2d, 6, 5, kernel_size=3, groups=2, stride=2, padding=1
    ),
    "conv3d": _conv(nn.Conv3d, 7, 6, 5, kernel_size=3, padding=1),
    "conv3d some positions": _conv(nn.Conv3d, 5, 5, 5, kernel_size=3, stride=2, padding=1),
    "conv3d one position": _conv(nn.Conv3d, 3, 3, 3, kernel_size=3),
    "conv3d large kernel": _conv(nn.Conv3d, 12, 12, 12, kernel_size=7, stride=2, padding=3),
    "conv3d uneven few": _conv(
        nn.Conv3d, 7, 6, 5, kernel_size=(3, 2, 1), stride=(3, 2, 4), padding=(0, 1, 0)
    ),
    "conv2d circular": _conv(nn.Conv2d, 12, 12, kernel_size=3, padding=1, padding_mode="circular"),
    "conv2d same": _conv(nn.Conv2d, 12, 12, kernel_size=4, padding="same"),
    "conv2d same few": _conv(nn.Conv2d, 2, 3, kernel_size=4, padding="same"),
    "conv2d valid": _conv(nn.Conv2d, 12, 12, kernel_size=3, padding="valid"),
    "group norm": lambda: (nn.GroupNorm(2, 4), torch.randn(ROWS, 4, 3, 3, 3) + 100),
    "group norm without positions": lambda: (nn.GroupNorm(2, 4), torch.randn(ROWS, 4)),
    "layer norm": lambda: (nn.LayerNorm(4), torch.randn(ROWS, 4) + 100),
    "layer norm over positions": lambda: (nn.LayerNorm((3, 4)), torch.randn(ROWS, 5, 3, 4)),
    "embedding": lambda: (nn.Embedding(6, 3), torch.randint(0, 6, (ROWS, 4))),
    "embedding of one index": lambda: (nn.Embedding(6, 3), torch.randint(0, 6, (ROWS,))),
    "embedding with padding": lambda: (
        nn.Embedding(4, 3, padding_idx=1),
        torch.randint(0, 4, (ROWS, 8)),
    ),
    "a layer's own rule": lambda: (Scale(4), torch.randn(ROWS, 4)),
}


def _case(name: str) -> tuple[nn.Module, Tensor, LayerRule]:
    torch.manual_seed(0)
    layer, inputs = CASES[name]()
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    rule = rule_of(layer)
    assert rule is not None
    assert rule.reason_against(layer) is None
    return layer, inputs if inputs.dtype == torch.int64 else inputs.double(), rule


def _by_autograd(layer: nn.Module, inputs: Tensor, gradients: Tensor) -> list[dict[str, Tensor]]:
    rows = []
    for row in range(ROWS):
        layer.zero_grad()
        (layer(inputs[row : row + 1]) * gradients[row : row + 1]).sum().backward()
        rows.append({n: p.grad.clone() for n, p in layer.named_parameters() if p.grad is not None})
    return rows


def _squares(rows: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([torch.stack([g.square().sum() for g in r.values()]).sum() for r in rows])


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_the_gradients_that_autograd_gives_row_by_row(name: str) -> None:
    layer, inputs, rule = _case(name)
    gradients = torch.randn_like(layer(inputs)).detach()
    expected = _by_autograd(layer, inputs, gradients)
    squares = _squares(expected)
    torch.testing.assert_close(
        rule.squared_norms(layer, inputs, gradients), squares, rtol=TOLERANCE, atol=TOLERANCE
    )
    summed = rule.gradients(layer, inputs, gradients)
    assert set(summed) == set(expected[0])
    by_row = rule.row_gradients(layer, inputs, gradients)
    for key, value in summed.items():
        wanted = torch.stack([row[key] for row in expected])
        torch.testing.assert_close(value, wanted.sum(0), rtol=TOLERANCE, atol=TOLERANCE)
        if by_row is not None:
            torch.testing.assert_close(by_row[key], wanted, rtol=TOLERANCE, atol=TOLERANCE)


OPACUS_CANNOT = {
    "a layer's own rule",
    "conv2d circular",  # zero padding only
    "embedding with padding",  # counts the padding index, which autograd leaves out
}


@pytest.mark.parametrize("name", [name for name in CASES if name not in OPACUS_CANNOT])
def test_a_rule_gives_the_norms_that_opacus_gives(name: str) -> None:
    layer, inputs, rule = _case(name)
    gradients = torch.randn_like(layer(inputs)).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampled = GradSampleModule(layer, loss_reduction="sum")
        (sampled(inputs) * gradients).sum().backward()
    samples: list[Tensor] = [p.grad_sample for p in layer.parameters()]  # type: ignore[attr-defined]  # Opacus adds it
    squares = torch.stack([sample.flatten(1).square().sum(1) for sample in samples]).sum(0)
    torch.testing.assert_close(
        rule.squared_norms(layer, inputs, gradients), squares, rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("conv")])
def test_all_ways_of_a_convolution_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs, rule = _case(name)
    gradients = torch.randn_like(layer(inputs)).detach()
    found = []
    for gram, alone, kept in itertools.product((0, 10_000), (0, 10_000), (0, 1 << 25)):
        monkeypatch.setattr(convolution_rule, "_MAX_GRAM_POSITIONS", gram)
        monkeypatch.setattr(convolution_rule, "_MAX_ALONE_POSITIONS", alone)
        monkeypatch.setattr(convolution_rule, "_MAX_ROW_ELEMENTS", kept)
        by_row = rule.row_gradients(layer, inputs, gradients)
        if by_row is None:
            found.append(rule.squared_norms(layer, inputs, gradients))
        else:
            rows = [gradient.flatten(1).square().sum(1) for gradient in by_row.values()]
            found.append(torch.stack(rows).sum(0))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize(
    "name", ["linear", "conv3d", "conv3d one position", "group norm", "layer norm"]
)
def test_a_frozen_parameter_counts_nothing(name: str, frozen: str) -> None:
    layer, inputs, rule = _case(name)
    getattr(layer, frozen).requires_grad_(False)
    gradients = torch.randn_like(layer(inputs)).detach()
    expected = _by_autograd(layer, inputs, gradients)
    squares = _squares(expected)
    torch.testing.assert_close(
        rule.squared_norms(layer, inputs, gradients), squares, rtol=TOLERANCE, atol=TOLERANCE
    )
    assert set(rule.gradients(layer, inputs, gradients)) == set(expected[0])


def test_an_embedding_that_counts_over_patients_has_no_rule() -> None:
    layer = nn.Embedding(4, 3, scale_grad_by_freq=True)
    rule = rule_of(layer)
    assert rule is not None
    assert rule.reason_against(layer) is not None


def test_a_subclass_has_no_rule() -> None:
    class Odd(nn.Linear):
        pass

    assert rule_of(Odd(2, 2)) is None


@pytest.mark.parametrize("size", [1e2, 1e6, 1e12])
@pytest.mark.parametrize("kind", ["linear", "conv", "embedding"])
def test_terms_that_cancel_do_not_let_a_row_add_more_than_the_clipping_norm(
    kind: str, size: float
) -> None:
    """Two positions with opposite terms: float32 leaves a rest of `size` * 1e-7 where there is nothing."""
    torch.manual_seed(0)
    layer: nn.Module = nn.Linear(50, 50, bias=False)
    inputs = torch.randn(1, 1, 50).expand(1, 2, 50)
    terms = torch.randn(1, 1, 50) * size
    gradients = torch.cat([terms, -terms * (1 + 2**-20)], dim=1)
    if kind == "conv":
        layer, inputs, gradients = nn.Conv1d(50, 50, 1, bias=False), inputs.mT, gradients.mT
    elif kind == "embedding":
        layer, inputs = nn.Embedding(9, 50), torch.ones(1, 2, dtype=torch.int64)
    rule = rule_of(layer)
    assert rule is not None
    assert rule.row_gradients(layer, inputs, gradients) is None
    clipping_norm = 1e-2
    factor = clip_factors(rule.squared_norms(layer, inputs, gradients), clipping_norm=clipping_norm)
    added = rule.gradients(layer, inputs, gradients * factor.float()[:, None, None])
    assert torch.stack([part.norm() for part in added.values()]).norm() <= clipping_norm
