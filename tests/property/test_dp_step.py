"""Algebra of clipping: whatever the patients, each adds at most C, and the sum is that of its parts."""

import math
from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedhealth.data.batch import Batch
from fedhealth.models.build import trainable_parameters
from fedhealth.models.classification import BinaryClassification
from fedhealth.models.example_batch import random_batch
from fedhealth.privacy.dp_sgd.clip_factor import clip_factors
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients
from fedhealth.testing.model_contract import example_contract

NUM_RECORDS = 6
TOLERANCE = 1e-3
"""Of the clipping norm: float32 in another order, where records of opposite labels nearly cancel."""


class _Model(nn.Module):
    head_prefixes = ("head.",)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh())
        self.head = nn.Linear(5, 1)

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.head(self.body(batch.tables["ehr"]))
        return logits


@cache
def _made() -> tuple[_Model, ClippedGradients]:
    torch.manual_seed(0)
    contract = example_contract()
    model = _Model().train()
    task = BinaryClassification(contract, {})
    parameters = dict(trainable_parameters(model))
    gradients = ClippedGradients(model, task, parameters, random_batch(contract, 4))
    assert gradients.uses_book_keeping
    return model, gradients


def _sum(batch: Batch, owners: Tensor, clipping_norm: float) -> Tensor:
    model, gradients = _made()
    sums = {n: torch.zeros(p.shape, dtype=torch.float64) for n, p in trainable_parameters(model)}
    gradients.add_to(sums, batch, owners, clipping_norm=clipping_norm)
    return torch.cat([part.flatten() for part in sums.values()])


seeds = st.integers(0, 2**32)
scales = st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e3, 1e12])
norms = st.sampled_from([1e-4, 0.1, 1.0, 100.0])
groupings = st.lists(st.integers(0, 2), min_size=NUM_RECORDS, max_size=NUM_RECORDS)


def _batch(seed: int, scale: float) -> Batch:
    batch = random_batch(example_contract(), NUM_RECORDS, seed=seed)
    batch.tables["ehr"].mul_(scale)
    return batch


def _owners(grouping: list[int]) -> Tensor:
    """Numbered from 0 without gaps."""
    _, owners = torch.unique(torch.tensor(grouping), return_inverse=True)
    numbered: Tensor = owners
    return numbered


@settings(max_examples=40, deadline=None)
@given(seeds, scales, norms, groupings)
def test_a_sum_of_patients_is_at_most_so_many_clipping_norms_and_that_of_each_alone(
    seed: int, scale: float, clipping_norm: float, grouping: list[int]
) -> None:
    batch, owners = _batch(seed, scale), _owners(grouping)
    whole = _sum(batch, owners, clipping_norm)
    alone = []
    for patient in range(int(owners.max()) + 1):
        rows = (owners == patient).nonzero().squeeze(1)
        alone.append(_sum(batch.take(rows), torch.zeros_like(rows), clipping_norm))
        assert alone[-1].norm() <= clipping_norm
    assert torch.isfinite(whole).all()
    assert (whole - torch.stack(alone).sum(0)).norm() <= TOLERANCE * clipping_norm


@settings(max_examples=20, deadline=None)
@given(seeds, norms, st.permutations(range(NUM_RECORDS)), groupings)
def test_the_order_of_records_and_patients_does_not_matter(
    seed: int, clipping_norm: float, order: list[int], grouping: list[int]
) -> None:
    batch, owners = _batch(seed, 1.0), _owners(grouping)
    rows = torch.tensor(order)
    found = _sum(batch.take(rows), _owners(owners[rows].tolist()), clipping_norm)
    expected = _sum(batch, owners, clipping_norm)
    assert (found - expected).norm() <= TOLERANCE * clipping_norm


@given(
    st.lists(st.floats(0) | st.just(math.nan), min_size=1, max_size=5),
    st.floats(1e-6, 1e6),
)
def test_a_clip_factor_never_scales_up_and_brings_every_norm_to_the_limit(
    squares: list[float], clipping_norm: float
) -> None:
    squared = torch.tensor(squares, dtype=torch.float64)
    factors = clip_factors(squared, clipping_norm=clipping_norm)
    finite = torch.isfinite(squared)
    assert bool(((factors >= 0) & (factors <= 1)).all())
    assert bool((factors[~finite] == 0).all())
    assert bool((squared[finite].sqrt() * factors[finite] <= clipping_norm).all())
    small = finite & (squared.sqrt() <= clipping_norm * 0.999)
    assert bool((factors[small] == 1).all())
