"""How a layer's gradient is kept apart by row, from its input and its output's gradient. Called by `book_keeping`.

Shape legend: R rows, T positions of a row. Every rule returns gradients of the layer's trainable parameters, by
their name in the layer. A layer class of a model package can bring its own rule, as a method

    def row_gradients(self, inputs: Tensor, output_gradients: Tensor) -> dict[str, Tensor]

which returns (R, *parameter.shape) for each of its own trainable parameters. It takes and returns one tensor.
"""

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhealth.privacy.dp_sgd.clip_factor import against_cancellation
from fedhealth.privacy.dp_sgd.convolution_rule import ConvolutionRule

Gradients = dict[str, Tensor]


class LayerRule(Protocol):
    """Rule of one kind of layer; `inputs` and `output_gradients` have R as their first dimension."""

    def reason_against(self, layer: nn.Module) -> str | None:
        """Why this layer cannot be kept apart by row after all; None when it can."""
        ...

    def row_gradients(
        self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor
    ) -> Gradients | None:
        """(R, *shape) each, where that is the cheap way; else None, and the other two are asked."""
        ...

    def one_at_a_time(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> bool:
        """Where `row_gradients` gave None: whether `squared_norms` is no way either, and each row is made twice."""
        ...

    def squared_norms(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Tensor:
        """(R,) float64: squared norm of each row's gradient, all parameters together."""
        ...

    def gradients(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Gradients:
        """Summed over rows."""
        ...


def trainable(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The layer's own trainable parameters, without those of layers inside it."""
    return {n: p for n, p in layer.named_parameters(recurse=False) if p.requires_grad}


class LinearRule:
    """y = x W^T + b over the last dimension (Bu et al. 2023, arXiv 2210.00038, section 2)."""

    def reason_against(self, layer: nn.Module) -> str | None:  # noqa: ARG002 - the protocol's shape
        """Always possible."""
        return None

    def row_gradients(
        self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor
    ) -> Gradients | None:
        """Only for many positions, where the Gram matrices would be larger than the weight."""
        num_positions = _positions(inputs)
        if num_positions == 1 or num_positions * sum(_widths(layer)) <= _size(layer):
            return None
        x_RTI, g_RTO = _flat(inputs), _flat(output_gradients)  # noqa: N806 - shape suffixes
        found = {"weight": torch.bmm(g_RTO.mT, x_RTI), "bias": g_RTO.sum(1)}
        return {name: found[name] for name in trainable(layer)}

    def one_at_a_time(self, *_: object) -> bool:
        """Never needed."""
        return False

    def squared_norms(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Tensor:
        """|g|^2 |x|^2 for one position; sum of (x x^T) * (g g^T) for several ("ghost norm")."""
        names = trainable(layer)
        total = torch.zeros(inputs.shape[0], dtype=torch.float64, device=inputs.device)
        x_RTI, g_RTO = _flat(inputs), _flat(output_gradients)  # noqa: N806
        if "weight" in names and x_RTI.shape[1] == 1:
            total += _squares(x_RTI) * _squares(g_RTO)
        elif "weight" in names:
            # float64: positions may cancel, and a norm that comes out too small lets a patient count too much.
            x_RTI, g_RTO = x_RTI.double(), g_RTO.double()  # noqa: N806
            products = torch.bmm(x_RTI, x_RTI.mT) * torch.bmm(g_RTO, g_RTO.mT)
            magnitudes = (x_RTI.norm(dim=2) * g_RTO.norm(dim=2)).sum(1)
            total += against_cancellation(products.sum((1, 2)).clamp(min=0), magnitudes)
        if "bias" in names:
            magnitudes = torch.linalg.vector_norm(g_RTO, dim=2, dtype=torch.float64).sum(1)
            total += against_cancellation(_squares(g_RTO.sum(1)), magnitudes)
        return total

    def gradients(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Gradients:
        """One matrix product."""
        names = trainable(layer)
        g_NO = output_gradients.flatten(0, -2)  # noqa: N806
        found: Gradients = {}
        if "weight" in names:
            found["weight"] = g_NO.T @ inputs.flatten(0, -2)
        if "bias" in names:
            found["bias"] = g_NO.sum(0)
        return found


class _SmallRule:
    """A layer with so few parameters that every row's gradient is simply made."""

    def reason_against(self, layer: nn.Module) -> str | None:  # noqa: ARG002 - the protocol's shape
        return None

    def row_gradients(
        self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor
    ) -> Gradients | None:
        raise NotImplementedError

    def one_at_a_time(self, *_: object) -> bool:
        """Never needed."""
        return False

    def squared_norms(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Tensor:
        rows = self._rows(layer, inputs, output_gradients).values()
        return torch.stack([_squares(gradient) for gradient in rows]).sum(0)

    def gradients(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Gradients:
        rows = self._rows(layer, inputs, output_gradients)
        return {name: gradient.sum(0) for name, gradient in rows.items()}

    def _rows(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Gradients:
        return cast("Gradients", self.row_gradients(layer, inputs, output_gradients))


class GroupNormRule(_SmallRule):
    """y = w * x_hat + b by channel; x_hat is made again, since sum(x g) - mean * sum(g) would cancel."""

    def row_gradients(
        self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor
    ) -> Gradients | None:
        """(R, C) each."""
        norm = cast("nn.GroupNorm", layer)
        names = trainable(layer)
        channels = output_gradients.shape[:2]
        g_RCT = output_gradients.reshape(*channels, -1)  # noqa: N806
        found: Gradients = {}
        if "weight" in names:
            x_hat = functional.group_norm(inputs, norm.num_groups, eps=norm.eps)
            found["weight"] = torch.linalg.vecdot(x_hat.reshape(*channels, -1), g_RCT)
        if "bias" in names:
            found["bias"] = g_RCT.sum(2)
        return found


class LayerNormRule(_SmallRule):
    """y = w * x_hat + b over the last dimensions."""

    def row_gradients(
        self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor
    ) -> Gradients | None:
        """(R, *normalized_shape) each."""
        norm = cast("nn.LayerNorm", layer)
        names = trainable(layer)
        shape = tuple(norm.normalized_shape)
        between = tuple(range(1, inputs.dim() - len(shape)))
        found: Gradients = {}
        if "weight" in names:
            x_hat = functional.layer_norm(inputs, shape, eps=norm.eps)
            found["weight"] = _sum(x_hat * output_gradients, between)
        if "bias" in names:
            found["bias"] = _sum(output_gradients, between)
        return found


class EmbeddingRule:
    """y = W[x]: rows of the same index add up."""

    def reason_against(self, layer: nn.Module) -> str | None:
        """Counts over the whole batch belong to no patient."""
        embedding = cast("nn.Embedding", layer)
        return "scale_grad_by_freq counts over patients" if embedding.scale_grad_by_freq else None

    def row_gradients(
        self,
        layer: nn.Module,  # noqa: ARG002 - the protocol's shape, as below
        inputs: Tensor,  # noqa: ARG002
        output_gradients: Tensor,  # noqa: ARG002
    ) -> Gradients | None:
        """Never: a row's gradient is as large as the table."""
        return None

    def one_at_a_time(self, *_: object) -> bool:
        """Never needed."""
        return False

    def squared_norms(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Tensor:
        """Sum over pairs of positions with the same index of their gradients' product."""
        x_RT, g_RTE = self._parts(layer, inputs, output_gradients)  # noqa: N806
        same_RTT = x_RT[:, :, None] == x_RT[:, None, :]  # noqa: N806
        g_RTE = g_RTE.double()  # noqa: N806 - positions may cancel, as in LinearRule
        squares = (torch.bmm(g_RTE, g_RTE.mT) * same_RTT).sum((1, 2)).clamp(min=0)
        return against_cancellation(squares, g_RTE.norm(dim=2).sum(1))

    def gradients(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Gradients:
        """A table of zeros with the gradients added at their indices."""
        x_RT, g_RTE = self._parts(layer, inputs, output_gradients)  # noqa: N806
        table = torch.zeros_like(cast("nn.Embedding", layer).weight, requires_grad=False)
        return {"weight": table.index_add(0, x_RT.flatten(), g_RTE.flatten(0, 1))}

    def _parts(
        self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor
    ) -> tuple[Tensor, Tensor]:
        embedding = cast("nn.Embedding", layer)
        num_rows = inputs.shape[0]
        x_RT = inputs.reshape(num_rows, -1).long()  # noqa: N806
        g_RTE = output_gradients.reshape(num_rows, x_RT.shape[1], -1)  # noqa: N806
        if embedding.padding_idx is not None:
            g_RTE = g_RTE.masked_fill((x_RT == embedding.padding_idx)[:, :, None], 0.0)  # noqa: N806
        return x_RT, g_RTE


class OwnRule(_SmallRule):
    """The layer's own `row_gradients` method."""

    def row_gradients(
        self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor
    ) -> Gradients | None:
        """What the layer says."""
        found: Gradients = layer.row_gradients(inputs, output_gradients)  # type: ignore[operator]  # own method
        return {name: found[name] for name in trainable(layer)}


RULES: Mapping[type[nn.Module], LayerRule] = {
    nn.Linear: LinearRule(),
    nn.Conv1d: ConvolutionRule(),
    nn.Conv2d: ConvolutionRule(),
    nn.Conv3d: ConvolutionRule(),
    nn.GroupNorm: GroupNormRule(),
    nn.LayerNorm: LayerNormRule(),
    nn.Embedding: EmbeddingRule(),
}
"""By exact class: a subclass may compute something else."""


def rule_of(layer: nn.Module) -> LayerRule | None:
    """The rule for a layer, its own one first."""
    if callable(getattr(layer, "row_gradients", None)):
        return OwnRule()
    return RULES.get(type(layer))


def _positions(tensor: Tensor) -> int:
    return tensor.shape[1:-1].numel()


def _flat(tensor: Tensor) -> Tensor:
    """(R, T, last)."""
    return tensor.reshape(tensor.shape[0], _positions(tensor), tensor.shape[-1])


def _widths(layer: nn.Module) -> tuple[int, int]:
    linear = cast("nn.Linear", layer)
    return linear.in_features, linear.out_features


def _size(layer: nn.Module) -> int:
    return cast("nn.Linear", layer).weight.numel()


def _squares(gradient: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)
    return norms.square()


def _sum(gradient: Tensor, dims: tuple[int, ...]) -> Tensor:
    return gradient.sum(dims) if dims else gradient
