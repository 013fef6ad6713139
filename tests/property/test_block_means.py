"""Encoders over their owners: a strategy's mean of a block is the owners' mean, whoever is there."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedhealth.config.study import PluginChoice, RunPlan
from fedhealth.contracts.aggregation import SiteReply
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.evidence.statements import CohortMember, Manifest, manifest_tensors
from fedhealth.flower.strategy_adapter import build_aggregator
from fedhealth.server.block_means import block_means, keep_unowned, over_owners
from fedhealth.testing.flower_task import flower_task

SPEC = TensorSpec.of(
    {
        name: np.zeros(size, dtype=np.float32)
        for name, size in {"mri.w": 3, "shared": 4, "mri.b": 1, "ehr.w": 2}.items()
    }
)
PARTS = {"mri": [slice(0, 3), slice(7, 8)], "ehr": [slice(8, 10)]}
TENSORS = {"mri": ("mri.w", "mri.b"), "ehr": ("ehr.w",)}
OTHER = slice(3, 7)
VALUE = st.floats(-100, 100, width=32)
ROUNDING = 4e-4
"""A rescaled value is rounded at up to 100 + 200 W / W_B and counts w / W in the mean: that is 300 at 24 bits, however
small W_B is, a few times over for strategies that fold in float32."""
Vector = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _in_a_task() -> Iterator[None]:
    with flower_task():
        yield


def vectors() -> st.SearchStrategy[Vector]:
    return st.lists(VALUE, min_size=10, max_size=10).map(lambda v: np.array(v, dtype=np.float32))


@st.composite
def federations(draw: st.DrawFn) -> Any:
    """Sites with what they declared, their sizes and updates, and who of them contributed; at least two."""
    num = draw(st.integers(2, 5))
    present = [draw(st.sets(st.sampled_from(["mri", "ehr"]), min_size=1)) for _ in range(num)]
    sizes = [draw(st.integers(1, 5000)) for _ in range(num)]
    contributed = draw(st.sets(st.integers(0, num - 1), min_size=2))
    return (
        present,
        sizes,
        [draw(vectors()) for _ in range(num)],
        sorted(contributed),
        draw(vectors()),
    )


def manifest(present: list[set[str]]) -> Manifest:
    hexes = [f"{number:064x}" for number in range(len(present))]
    return Manifest(
        study_id="study",
        study_sha256="a" * 64,
        run_name="main",
        flower_run_id="1",
        round_number=1,
        attempt=1,
        kind="train",
        model_sha256="b" * 64,
        tensors=manifest_tensors(SPEC),
        cohort=tuple(
            CohortMember(site_id=f"site-{i}", key_id=hexes[i], modalities=tuple(sorted(own)))
            for i, own in enumerate(present)
        ),
        blocks=tuple({"modality": m, "tensors": names} for m, names in TENSORS.items()),  # type: ignore[misc]
        min_cohort=2,
        strategy_config={},
        deadline_s=1,
        opened_at="2026-01-01T00:00:00Z",
    )


def aggregated(federation: Any, name: str, **options: object) -> Vector:
    present, sizes, updates, contributed, origin = federation
    run = RunPlan(
        name="property",
        num_rounds=1,
        strategy=PluginChoice.model_validate({"name": name, "options": options}),
    )
    replies = [
        SiteReply(
            site_id=f"site-{i}",
            weight=float(sizes[i]),
            load_vector=lambda i=i: updates[i],  # type: ignore[misc]
            train_metrics={},
            evaluate_metrics={},
        )
        for i in contributed
    ]
    blocks = block_means(manifest(present), [reply.site_id for reply in replies])
    one = build_aggregator(run, SPEC, min_cohort=2)
    one.configure(1, origin, [reply.site_id for reply in replies])
    by_size = options.get("weighting", "size") == "size"
    rescaled = over_owners(replies, blocks, origin, by_size=by_size)
    return keep_unowned(one.aggregate(1, rescaled).vector, blocks, origin)


def mean_of(federation: Any, names: list[int], part: slice, *, by_size: bool) -> Any:
    """By hand: the weighted mean over these sites, of one part of the vector."""
    _, sizes, updates, _, _ = federation
    weights = [sizes[i] if by_size else 1 for i in names]
    weighted = sum(
        w * updates[i][part].astype(np.float64) for i, w in zip(names, weights, strict=True)
    )
    return weighted / sum(weights)


def owners(federation: Any, modality: str) -> list[int]:
    """Contributing sites with the modality, if at least two declared it and two contributed."""
    present, _, _, contributed, _ = federation
    found = [i for i in contributed if modality in present[i]]
    return found if len(found) >= 2 else []


@pytest.mark.parametrize(
    ("name", "options"),
    [("fedavg", {}), ("fedavg", {"weighting": "uniform"}), ("flower-fedavg", {})],
)
@settings(max_examples=25, deadline=None)
@given(federation=federations())
def test_a_mean_strategy_gives_every_block_its_owners_mean(
    name: str, options: dict[str, object], federation: Any
) -> None:
    vector = aggregated(federation, name, **options)
    _, _, _, contributed, origin = federation
    by_size = "weighting" not in options
    whole = mean_of(federation, contributed, OTHER, by_size=by_size)
    np.testing.assert_allclose(vector[OTHER], whole, rtol=0, atol=ROUNDING)
    for modality, parts in PARTS.items():
        chosen = owners(federation, modality)
        for part in parts:
            if not chosen:
                assert vector[part].tobytes() == origin[part].tobytes()
                continue
            expected = mean_of(federation, chosen, part, by_size=by_size)
            np.testing.assert_allclose(vector[part], expected, rtol=0, atol=ROUNDING)


@settings(max_examples=10, deadline=None)
@given(federation=federations())
def test_an_optimiser_steps_from_the_owners_mean_and_leaves_unowned_blocks_alone(
    federation: Any,
) -> None:
    vector = aggregated(federation, "flower-fedadam", eta=0.1, tau=0.01)
    _, _, _, contributed, origin = federation
    groups = [(contributed, [OTHER])]
    groups += [(owners(federation, modality), parts) for modality, parts in PARTS.items()]
    for names, parts in groups:
        for part in parts:
            if not names:
                assert vector[part].tobytes() == origin[part].tobytes()
                continue
            # Reddi et al. 2021, algorithm 2, first step, as Flower 1.41 has it with its bias correction.
            delta = mean_of(federation, names, part, by_size=True) - origin[part]
            first, second = 0.1 * delta, 0.01 * delta**2
            rate = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
            expected = origin[part] + rate * first / (np.sqrt(second) + 0.01)
            np.testing.assert_allclose(vector[part], expected, rtol=0, atol=ROUNDING)


@settings(max_examples=25, deadline=None)
@given(federation=federations())
def test_what_a_site_says_about_a_block_that_it_did_not_declare_changes_nothing(
    federation: Any,
) -> None:
    present, sizes, updates, contributed, origin = federation
    poisoned = [update.copy() for update in updates]
    for i, own in enumerate(present):
        for modality, parts in PARTS.items():
            for part in parts if modality not in own else []:
                poisoned[i][part] = 1e30
    again = present, sizes, poisoned, contributed, origin
    assert aggregated(again, "fedavg").tobytes() == aggregated(federation, "fedavg").tobytes()
