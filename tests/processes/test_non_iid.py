"""SCAFFOLD, FedNova, FedAdam and shared records in real federations of supervised training, masked and noised."""

from typing import Any

import numpy as np
import pytest

from fedhealth.durable import read_json
from fedhealth.server.checkpoint import read_last_checkpoint

from .conftest import DATA, Federation, MakeFederation

ROUNDS = 2
FEDERATION = {"min_cohort": 3, "gather_s": 60, "cohort_wait_s": 90, "round_deadline_s": 90}


def content(**more: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "id": "scripted",
        "title": "Hospitals that differ",
        "seed": 7,
        "data": DATA,
        "model": {"name": "multimodal", "options": {"embedding_size": 4}},
        "training": {
            "local_epochs": 1,
            "batch_size": 8,
            "modality_dropout": 0.0,
            "optimizer": {"name": "sgd", "learning_rate": 0.05},
            "shared_data": {
                "package": "test-made-up",
                "options": {"num_patients": 40, "seed": 99},
                "fraction": 0.2,
            },
        },
        "federation": FEDERATION,
        "release": {"metrics": []},
        "runs": [
            {
                "name": "scaffold",
                "num_rounds": ROUNDS,
                "control_variates": True,
                "strategy": {"name": "scaffold", "options": {"num_sites": 3}},
            },
            {
                "name": "fednova",
                "num_rounds": ROUNDS,
                "strategy": {"name": "fednova", "options": {"effective_steps": 4.0}},
            },
            {"name": "fedadam", "num_rounds": ROUNDS, "strategy": {"name": "fedadam"}},
        ],
    } | more


def run(make_federation: MakeFederation, study: dict[str, Any]) -> Federation:
    federation = make_federation(
        study,
        package="test-made-up",
        package_options=lambda index: {"num_patients": 20 * (index + 1), "seed": index},
        sizes=(12, 24, 36),
    )
    assert federation.run_to_the_end(280) == 0, federation.output("server")
    for name in ("scaffold", "fednova", "fedadam"):
        assert read_json(federation.server.run(name).outcome)["state"] == "completed"
        vectors = read_last_checkpoint(federation.server.run(name)).vector
        assert np.isfinite(vectors).all()
    return federation


def federation_of(more: dict[str, Any]) -> dict[str, Any]:
    return dict(more.get("federation", {}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "privacy": {"noise_multiplier": 1.0, "clipping_norm": 1.0},
            "secure_aggregation": {"value_range": 100.0},
            # Under masks control variates need equal numbers of steps.
            "training": content()["training"] | {"local_epochs": None, "local_steps": 3},
        },
        {"federation": FEDERATION | {"update_bits": 8}},
    ],
    ids=["open", "masked and noised", "in 8 bits"],
)
def test_they_run_to_the_end_and_keep_what_they_should_where_it_belongs(
    make_federation: MakeFederation, more: dict[str, Any]
) -> None:
    federation = run(make_federation, content(**more))
    last = read_last_checkpoint(federation.server.run("scaffold"))
    tensors = last.spec.unflatten(last.vector)
    controls = [name for name in tensors if name.startswith("control.")]
    assert 2 * len(controls) == len(tensors)
    assert any(tensors[name].any() for name in controls)  # some layers never see a gradient here
    folders = [path for home in federation.sites.values() for path in home.root.rglob("head_0000*")]
    assert len([p for p in folders if "control_variates" in p.parts]) == 3 * ROUNDS
    assert federation.records("fednova")[0].strategy_config == {"effective_steps": 4.0}
    forms = {record.update_encoding for record in federation.records("scaffold")}
    assert ("int8" in forms) == ("update_bits" in federation_of(more))
    moments = read_last_checkpoint(federation.server.run("fedadam")).strategy_state
    assert any("first_moment" in name for name in moments)
