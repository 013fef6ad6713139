"""Freeze policies and pretrained weights in a site's session: what changes, what travels, with and without privacy."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import PatientDataset
from fedhealth.models.build import build_model
from fedhealth.models.exported import ModelDescription, open_model, weights_bytes
from fedhealth.models.weight_files import weights_in
from fedhealth.training.frozen_encoders import apply_frozen_encoders
from fedhealth.training.learner import Learner, dump, load
from fedhealth.training.private_steps import clipped_gradients
from fedhealth.training.supervised import SupervisedTraining

SMALL = {"image_widths": [4, 8], "embedding_size": 4}
MECHANISM = PatientMechanism(
    sampling_rate=0.5,
    noise_multiplier=0.5,
    clipping_norm=1.0,
    expected_batch_size=8.0,
    num_steps=2,
)


def _study(tiny: Any, *, is_private: bool = False, **options: Any) -> Any:
    privacy = {"privacy": {"noise_multiplier": 0.5}} if is_private else {}
    model = {"name": "multimodal", "options": {**SMALL, **options}}
    return tiny.study(model=model, **privacy)


@pytest.fixture
def pinned(tiny: Any, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options that pin the backbone of an encoder of another seed, without its projection."""
    study = tiny.study(seed=99, model={"name": "multimodal", "options": SMALL})
    model = build_model(study, study.data.to_contract(seed=99), num_outputs=1)
    state = model.get_submodule("encoders.volume_mri.blocks").state_dict()
    payload = safetensors.torch.save({f"blocks.{name}": t for name, t in state.items()})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "cnn.safetensors").write_bytes(payload)
    with weights_in(tmp_path):
        yield {
            "image_weights": "file",
            "image_weights_file": "cnn.safetensors",
            "image_weights_sha256": hashlib.sha256(payload).hexdigest(),
        }


@pytest.mark.parametrize("is_private", [False, True], ids=["open", "private"])
@pytest.mark.parametrize("trainable", ["head_only", "head_and_fusion", "image_frozen", "lora"])
def test_a_round_changes_what_the_policy_trains_and_sends_nothing_else(
    tiny: Any, tmp_path: Path, pinned: dict[str, Any], trainable: str, *, is_private: bool
) -> None:
    study = _study(tiny, is_private=is_private, trainable=trainable, **pinned)
    run, method = study.run("plain"), SupervisedTraining()
    tensors = method.initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    site = tiny.site(tmp_path, study, tiny.patients(30))
    session = method.open_session(study, run, spec, site)
    task = tiny.task()
    if is_private:
        task = replace(task, mechanism=MECHANISM)
    update = session.train(spec.flatten(tensors), task)
    assert set(update.tensors) == set(tensors)
    changed = {n for n, t in tensors.items() if not np.array_equal(t, update.tensors[n])}
    assert changed == set(tensors)
    has_projection = {n for n in tensors if n.startswith("encoders.volume_mri.projection.")}
    assert len(has_projection) == (0 if trainable == "head_only" else 2)
    in_backbone = {n for n in tensors if n.startswith("encoders.volume_mri.blocks.")}
    assert len(in_backbone) == (2 if trainable == "lora" else 0)
    assert all(name.endswith("lora_b.weight") for name in in_backbone)


def test_features_and_a_projection_that_is_trained_give_the_same_predictions_and_gradients(
    tiny: Any, pinned: dict[str, Any]
) -> None:
    study = _study(tiny, trainable="image_frozen", **pinned)
    learner, patients = Learner(study, study.run("plain")), tiny.patients(20)
    dataset = PatientDataset(patients, learner.contract)
    names, before = list(learner.shared), learner.predict(dataset, batch_size=8)
    apply_frozen_encoders(learner, [dataset], batch_size=5)
    assert dataset.batch([0]).volumes["mri"].shape == (1, 8)  # features, not embeddings
    # float32 sums in another order.
    np.testing.assert_allclose(learner.predict(dataset, batch_size=8), before, atol=1e-6)
    assert list(learner.shared) == names
    gradients = clipped_gradients(learner, dataset)
    assert gradients.uses_book_keeping
    gradients.close()


def test_averaged_low_rank_updates_are_the_average_of_the_models(
    tiny: Any, pinned: dict[str, Any]
) -> None:
    study = _study(tiny, trainable="lora", **pinned)
    learner = Learner(study, study.run("plain"))
    first = dump(learner.shared)
    rng = np.random.default_rng(0)
    updates = [
        {
            name: values + rng.normal(size=values.shape).astype(np.float32)
            if "lora_b" in name
            else values
            for name, values in first.items()
        }
        for _ in range(3)
    ]
    layer = learner.model.get_submodule("encoders.volume_mri.blocks.0.conv")

    def change(tensors: Any) -> torch.Tensor:
        load(learner.shared, tensors)
        weight: torch.Tensor = layer.weight_change()  # type: ignore[operator]  # LowRankLayer
        return weight

    mean = {name: np.mean([u[name] for u in updates], axis=0) for name in first}
    expected = torch.stack([change(update) for update in updates]).mean(0)
    torch.testing.assert_close(change(mean), expected, atol=1e-5, rtol=1e-4)
    assert float(expected.norm()) > 0


@pytest.mark.parametrize("trainable", ["lora", "image_frozen"])
def test_an_exported_model_needs_no_weights_file(
    tiny: Any, tmp_path: Path, pinned: dict[str, Any], trainable: str
) -> None:
    study = _study(tiny, trainable=trainable, **pinned)
    learner = Learner(study, study.run("plain"))
    rng = np.random.default_rng(0)
    first = dump(learner.shared)
    load(
        learner.shared,
        {n: v + rng.normal(size=v.shape).astype(np.float32) / 10 for n, v in first.items()},
    )
    weights = weights_bytes(dict(learner.model.named_parameters()))
    (tmp_path / "weights" / "cnn.safetensors").unlink()
    opened = open_model(ModelDescription.of(study, weights).to_bytes(), weights)
    dataset = PatientDataset(tiny.patients(12), learner.contract)
    np.testing.assert_array_equal(opened.predict(dataset), learner.predict(dataset, batch_size=64))
