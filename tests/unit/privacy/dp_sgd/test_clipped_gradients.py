"""Clipped sums: book-keeping against Opacus and against autograd one patient at a time, and what it must refuse."""

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from fedhealth.config.base import OptionValue
from fedhealth.contracts.data import DataContract
from fedhealth.data.batch import Batch
from fedhealth.models.build import seeded_model, trainable_parameters
from fedhealth.models.classification import BinaryClassification
from fedhealth.models.example_batch import random_batch, without
from fedhealth.models.multimodal import build_multimodal
from fedhealth.models.patient_rows import row_copies, rows_of_patients
from fedhealth.privacy.dp_sgd import convolution_rule
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients
from fedhealth.privacy.dp_sgd.patient_loop import patient_gradients
from fedhealth.testing.model_contract import example_contract

ROWS = 6
TOLERANCE = 2e-5
"""Of the clipping norm: float32 gradients in another order, and the margin of 1e-5 below the norm."""

CONTRACT = example_contract()


class Model(nn.Module):
    """Takes the table's features only; `build` makes what is tried."""

    head_prefixes = ("head.",)

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(4, 1)

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.head(self.body(batch.tables["ehr"]))
        return logits


def _task(contract: DataContract = CONTRACT) -> BinaryClassification:
    return BinaryClassification(contract, {})


def _batch(seed: int = 0) -> Batch:
    batch = random_batch(CONTRACT, ROWS, seed=seed)
    rows = torch.arange(ROWS)
    return without(without(batch, "ehr", rows % 3 == 1), "mri", rows % 3 == 2)


OPTIONS: dict[str, OptionValue] = {"image_widths": [4, 8], "embedding_size": 4}


def _multimodal() -> nn.Module:
    return seeded_model(build_multimodal, CONTRACT, 1, OPTIONS, seed=0).train()


def _model(make_body: Callable[[int], nn.Module]) -> Model:
    torch.manual_seed(0)
    return Model(make_body(_batch().tables["ehr"].shape[1])).train()


def _gradients(model: nn.Module, task: object = None) -> ClippedGradients:
    return ClippedGradients(model, task or _task(), dict(trainable_parameters(model)), _batch(9))  # type: ignore[arg-type]


def _zeros(model: nn.Module) -> dict[str, Tensor]:
    return {n: torch.zeros(p.shape, dtype=torch.float64) for n, p in trainable_parameters(model)}


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


def _sum(model: nn.Module, batch: Batch, owners: Tensor, *, clipping_norm: float) -> Tensor:
    sums = _zeros(model)
    gradients = _gradients(model)
    assert gradients.uses_book_keeping
    gradients.add_to(sums, batch, owners, clipping_norm=clipping_norm)
    gradients.close()
    return _flat(sums)


def _each(model: nn.Module, batch: Batch, owners: Tensor) -> Tensor:
    """(P, D): autograd on every patient alone, with the loss of the task itself."""
    rows = []
    for patient in range(int(owners.max()) + 1):
        own = (owners == patient).nonzero().squeeze(1)
        model.zero_grad(set_to_none=True)
        _task().loss(model(batch.take(own)), batch.labels[own]).backward()  # type: ignore[no-untyped-call]
        grads = {
            n: torch.zeros_like(p) if p.grad is None else p.grad
            for n, p in trainable_parameters(model)
        }
        rows.append(_flat(grads))
    return torch.stack(rows)


def _clipped(rows: Tensor, clipping_norm: float) -> Tensor:
    factors = (clipping_norm / rows.norm(dim=1)).clamp(max=1.0)
    clipped: Tensor = (rows * factors[:, None]).sum(0)
    return clipped


OWNERS = {
    "one record each": torch.arange(ROWS),
    "several records": torch.tensor([0, 1, 1, 2, 0, 1]),
    "one patient": torch.zeros(ROWS, dtype=torch.int64),
}


@pytest.mark.parametrize("clipping_norm", [1e-3, 0.1, 1e6])
@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
def test_the_multimodal_model_with_missing_modalities_agrees_with_autograd(
    owners: Tensor, clipping_norm: float
) -> None:
    model, batch = _multimodal(), _batch()
    each = _each(model, batch, owners)
    scale = min(clipping_norm, float(each.norm(dim=1).max()))
    torch.testing.assert_close(
        _sum(model, batch, owners, clipping_norm=clipping_norm),
        _clipped(each, clipping_norm),
        rtol=0,
        atol=TOLERANCE * scale,
    )


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
@pytest.mark.parametrize("gram", [0, 10_000])
def test_rows_whose_gradients_would_not_fit_are_made_twice_and_are_right(
    owners: Tensor, gram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_rule, "_MAX_ROW_ELEMENTS", 0)
    monkeypatch.setattr(convolution_rule, "_MAX_GRAM_POSITIONS", gram)
    model, batch = _multimodal(), _batch()
    found = _sum(model, batch, owners, clipping_norm=0.01)
    expected = _clipped(_each(model, batch, owners), 0.01)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * 0.01)


def test_the_multimodal_model_agrees_with_opacus() -> None:
    """Nobody lacks anything here: Opacus does not know whose the rows of a part of the batch are."""
    model, batch = _multimodal(), random_batch(CONTRACT, ROWS)
    ours = _sum(model, batch, torch.arange(ROWS), clipping_norm=0.1)
    frozen = seeded_model(build_multimodal, CONTRACT, 1, OPTIONS, seed=0)
    frozen.get_submodule("absent").requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampled = GradSampleModule(frozen.train(), loss_reduction="mean")
        _task().loss(sampled(batch), batch.labels).backward()  # type: ignore[no-untyped-call]
    rows = {
        name: torch.zeros(ROWS, p.numel()) if not p.requires_grad else p.grad_sample.flatten(1)  # type: ignore[attr-defined]
        for name, p in frozen.named_parameters()
    }
    expected = torch.cat([rows[name] for name, _ in trainable_parameters(model)], dim=1).double()
    torch.testing.assert_close(ours, _clipped(expected, 0.1), rtol=0, atol=TOLERANCE * 0.1)


def test_one_patient_adds_no_more_than_the_clipping_norm_over_all_tensors_together() -> None:
    model, batch = _multimodal(), _batch()
    for row in range(ROWS):
        one = _sum(
            model,
            batch.take(torch.tensor([row])),
            torch.zeros(1, dtype=torch.int64),
            clipping_norm=1e-3,
        )
        assert one.square().sum() <= 1e-3**2
        assert one.norm() == pytest.approx(1e-3, rel=2e-5)


def test_a_small_gradient_is_not_scaled_up() -> None:
    model, batch = _multimodal(), _batch()
    owners = torch.arange(ROWS)
    expected = _each(model, batch, owners).sum(0)
    torch.testing.assert_close(
        _sum(model, batch, owners, clipping_norm=1e6), expected, rtol=1e-4, atol=1e-6
    )


def test_a_zero_gradient_adds_zero() -> None:
    model = _model(lambda width: nn.Linear(width, 4))
    with torch.no_grad():
        model.head.bias.fill_(200.0)  # label 1 with certainty: the gradient underflows to zero
    batch = replace(_batch(), labels=torch.ones(ROWS, dtype=torch.int64))
    found = _sum(model, batch, torch.arange(ROWS), clipping_norm=1.0)
    assert float(found.abs().max()) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, 1e20])
@pytest.mark.parametrize("use_book_keeping", [True, False])
def test_a_patient_whose_gradient_is_not_finite_adds_nothing_and_spoils_nobody(
    value: float, use_book_keeping: bool
) -> None:
    model, batch = _multimodal(), random_batch(CONTRACT, ROWS)
    owners = torch.tensor([0, 1, 2, 3, 3, 4])
    gradients = _gradients(model)
    if not use_book_keeping:
        gradients.close()
    clean = _zeros(model)
    keep = torch.tensor([0, 1, 2, 5])
    gradients.add_to(clean, batch.take(keep), torch.arange(4), clipping_norm=1.0)
    volumes = batch.volumes["mri"].clone()
    volumes[4, 0, 3, 3, 3] = value
    sums = _zeros(model)
    spoilt = replace(batch, volumes={"mri": volumes})
    num_left_out = gradients.add_to(sums, spoilt, owners, clipping_norm=1.0)
    difference = _flat(sums) - _flat(clean)
    assert torch.isfinite(difference).all()
    if math.isfinite(value):
        assert difference.norm() <= 1.0 + TOLERANCE  # either way its influence is bounded
    else:
        assert num_left_out == 1
        assert difference.norm() <= TOLERANCE


@pytest.mark.parametrize("size", [1e3, 1e8, 1e15])
def test_a_huge_patient_moves_the_sum_by_the_clipping_norm_at_most_head_included(
    size: float,
) -> None:
    model, batch = _multimodal(), random_batch(CONTRACT, ROWS)
    owners = torch.arange(ROWS)
    huge = replace(batch, tables={"ehr": batch.tables["ehr"].clone()})
    huge.tables["ehr"][2] *= size
    gone = torch.tensor([0, 1, 3, 4, 5])
    without_it = _sum(model, batch.take(gone), torch.arange(5), clipping_norm=0.5)
    with_it = _sum(model, huge, owners, clipping_norm=0.5)
    assert (with_it - without_it).norm() <= 0.5 * (1 + TOLERANCE)


class _Twice(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, 4)
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(self.enter(inputs))))  # type: ignore[no-any-return]


class _Raw(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


class _Functional(nn.Module):
    """The layer's weight is used a second time, behind its back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.layer(inputs) + (inputs @ self.layer.weight.T).tanh()
        return hidden


class _Tied(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(self.enter(inputs)))  # type: ignore[no-any-return]


class _Silent(nn.Module):
    """Sends a part of the rows through a layer and says nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.layer = nn.Linear(width, 4), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        entered = self.enter(inputs)
        rows = (inputs[:, 0] > 0).nonzero().squeeze(1)
        return entered.index_add(0, rows, self.layer(entered[rows]))  # type: ignore[no-any-return]


class _Hidden(nn.Module):
    """A bilinear layer: trainable, and no rule knows it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Bilinear(width, width, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs, inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_Twice, "'body.layer' is used more than once"),
        (_Raw, "no rule for parameter 'body.weight'"),
        (_Functional, "'body.layer.weight' is not its layer's alone"),
        (_Tied, "'body.first' and 'body.second' share a parameter"),
        (_Silent, "'body.layer' sees rows that are not known"),
        (_Hidden, "no rule for parameter 'body.layer.weight'"),
    ],
)
def test_what_book_keeping_cannot_see_through_goes_one_patient_at_a_time_and_is_right(
    make: Callable[[int], nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = _model(make), random_batch(CONTRACT, ROWS)
    owners = OWNERS["several records"]
    with caplog.at_level(logging.WARNING):
        gradients = _gradients(model)
        sums = _zeros(model)
        for _ in range(2):
            gradients.add_to(sums, batch, owners, clipping_norm=0.1)
    assert not gradients.uses_book_keeping
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    expected = _clipped(_each(model, batch, owners), 0.1)
    torch.testing.assert_close(_flat(sums) / 2, expected, rtol=0, atol=TOLERANCE * 0.1)


class _Spoken(nn.Module):
    """As `_Silent` and `_Raw`, in the words of `patient_rows`; activations in place; a nested context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.layer, self.inner = nn.Linear(width, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.token = nn.Parameter(torch.randn(4))

    def forward(self, inputs: Tensor) -> Tensor:
        entered = nn.functional.relu(self.enter(inputs), inplace=True)
        rows = (inputs[:, 0] > -0.5).nonzero().squeeze(1)
        with rows_of_patients(rows):
            some = self.layer(entered[rows])
            few = (inputs[rows, 0] > 0).nonzero().squeeze(1)
            with rows_of_patients(few):
                some = some.index_add(0, few, self.inner(some[few]))
        token = row_copies(self.token, len(inputs))
        return entered + token.index_add(0, rows, some)


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
def test_a_model_that_says_whose_rows_are_whose_is_kept_apart(owners: Tensor) -> None:
    model, batch = _model(_Spoken), random_batch(CONTRACT, ROWS)
    found = _sum(model, batch, owners, clipping_norm=0.1)
    expected = _clipped(_each(model, batch, owners), 0.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * 0.1)


def test_a_zero_gate_does_not_hide_a_parameter_without_a_rule() -> None:
    """At first the gradient behind a gate of zero is zero either way; the trial adds noise to the weights."""

    class Gated(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.enter = nn.Linear(width, 4)
            self.layer = nn.Linear(width, 4)
            self.gate = nn.Linear(4, 4)
            nn.init.zeros_(self.gate.weight)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.layer(inputs) + inputs @ self.layer.weight.T
            return self.enter(inputs) + self.gate(hidden)  # type: ignore[no-any-return]

    assert not _gradients(_model(Gated)).uses_book_keeping


def test_a_task_without_row_losses_goes_one_patient_at_a_time() -> None:
    class Plain:
        num_outputs = 1

        def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            return _task().loss(logits, labels)

    model, batch = _multimodal(), _batch()
    gradients = _gradients(model, Plain())
    assert not gradients.uses_book_keeping
    sums = _zeros(model)
    gradients.add_to(sums, batch, torch.arange(ROWS), clipping_norm=0.1)
    expected = _clipped(_each(model, batch, torch.arange(ROWS)), 0.1)
    torch.testing.assert_close(_flat(sums), expected, rtol=0, atol=TOLERANCE * 0.1)


def test_row_losses_that_are_not_the_loss_are_found_out() -> None:
    class Wrong(BinaryClassification):
        def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
            losses = super().row_losses(logits, labels)
            return losses * losses.mean()

    gradients = _gradients(_multimodal(), Wrong(CONTRACT, {}))
    assert not gradients.uses_book_keeping


def test_the_trial_leaves_model_and_random_state_as_they_were() -> None:
    model = _multimodal().eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    _gradients(model).close()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    assert torch.equal(state, torch.get_rng_state())
    assert not any(layer._forward_hooks for layer in model.modules())


def test_several_records_are_one_patient_with_their_mean_loss() -> None:
    """Repeating a record changes nothing: neither the norm nor the weight of its patient."""
    model, batch = _multimodal(), random_batch(CONTRACT, 2)
    twice = batch.take(torch.tensor([0, 0, 0, 1]))
    torch.testing.assert_close(
        _sum(model, twice, torch.tensor([0, 0, 0, 1]), clipping_norm=0.1),
        _sum(model, batch, torch.tensor([0, 1]), clipping_norm=0.1),
        rtol=0,
        atol=TOLERANCE * 0.1,
    )


def test_loop_and_oracle_give_each_patient_the_same_gradient() -> None:
    model, batch = _multimodal(), _batch()
    owners = OWNERS["several records"]
    parameters = dict(trainable_parameters(model))
    found = [
        _flat({name: gradients.get(name, torch.zeros_like(p)) for name, p in parameters.items()})
        for gradients in patient_gradients(model, _task(), parameters, batch, owners)
    ]
    torch.testing.assert_close(
        torch.stack(found), _each(model, batch, owners), rtol=1e-6, atol=1e-8
    )
