"""Rebuilding and shadow heads: what they reach without privacy, and that noise stops them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhealth.contracts.data import SplitName
from fedhealth.data.batch import PatientDataset
from fedhealth.data.split import split_patients
from fedhealth.training.audit.inversion import (
    _structural_similarity,
    attack_dense_model,
    attack_study_model,
    inversion_study,
)
from fedhealth.training.audit.made_up_patients import made_up_patients
from fedhealth.training.audit.patient_canaries import _with_canaries, attack_losses
from fedhealth.training.audit.shadow_heads import (
    ShadowPlan,
    attack_members,
    embed,
    learning_by_heart,
)
from fedhealth.training.learner import Learner


@pytest.mark.parametrize("attack", [attack_dense_model, attack_study_model])
def test_a_table_is_rebuilt_from_a_plain_step_and_not_from_a_private_one(
    small: Any, attack: Any
) -> None:
    study = inversion_study(small.study(num_columns=40))
    (plain,), (private,) = (
        attack(study, study.runs[0], mechanism, num_patients=1, rng=np.random.default_rng(1))
        for mechanism in (None, small.mechanism())
    )
    assert plain.correlation > 0.99
    assert private.correlation < 0.8
    assert abs(plain.by_chance) < 0.5


def test_an_image_is_rebuilt_from_a_plain_step_and_not_from_a_private_one(small: Any) -> None:
    study = inversion_study(small.study(with_volume=True))
    for mechanism, low, high in ((None, 0.99, 1.0), (small.mechanism(), -0.2, 0.2)):
        found = attack_dense_model(
            study, study.runs[0], mechanism, num_patients=1, rng=np.random.default_rng(2)
        )
        image = next(result for result in found if result.modality == "mri")
        assert low <= image.correlation <= high + 1e-9
        assert image.similarity is not None
        assert abs(image.similarity - image.correlation) < 0.1


def test_structural_similarity_is_one_for_the_same_image_only() -> None:
    image = np.random.default_rng(0).normal(size=500)
    assert _structural_similarity(image, 3 * image) == pytest.approx(1.0)
    assert abs(_structural_similarity(image, np.roll(image, 7))) < 0.2


def plan(small: Any, rounds: list[Any]) -> ShadowPlan:
    study = small.study()
    return ShadowPlan(
        study=study,
        run=study.runs[0],
        patients=small.patients(),
        rounds=rounds,
        num_models=8,
        device="cpu",
        rng=np.random.default_rng(3),
    )


def test_patients_learnt_by_heart_are_told_from_others_and_with_noise_not(small: Any) -> None:
    by_heart = learning_by_heart(plan(small, [None]))
    assert attack_members(by_heart).auc.value > 0.6
    noisy = replace(by_heart, rounds=[small.mechanism(noise_multiplier=8.0)] * 2)
    assert attack_members(noisy).auc.low < 0.55


def test_embeddings_are_what_goes_into_the_head(small: Any) -> None:
    study = small.study()
    learner = Learner(study, study.runs[0])
    head, embeddings = embed(learner, small.patients())
    batch = PatientDataset(small.patients(), learner.contract).batch(range(40))
    with torch.inference_mode():
        assert torch.allclose(head(embeddings), learner.model(batch))


def test_a_model_without_a_head_is_attacked_on_its_tables(small: Any) -> None:
    study = small.study()
    learner = Learner(study, study.runs[0])
    learner.model.head_prefixes = ()  # type: ignore[assignment]  # an attribute of the model's class
    head, embeddings = embed(learner, small.patients())
    assert embeddings.shape == (40, 6)  # three values and three missing-value indicators
    assert head(embeddings).shape == (40, 1)


def test_canaries_join_the_training_side_and_move_nobody(small: Any, tmp_path: Path) -> None:
    study = small.study()
    cohort = small.site(study, tmp_path).load_cohort()
    free = replace(cohort, fixed_split=None)
    canaries = made_up_patients(cohort.contract, 7, np.random.default_rng(0))
    before, after = split_patients(free), split_patients(_with_canaries(free, canaries))
    assert after[SplitName.TRAIN] == (*before[SplitName.TRAIN], *canaries)
    for side in (SplitName.VALIDATION, SplitName.TEST):
        assert after[side] == before[side]


def test_attack_from_outside_leaves_nothing_behind(small: Any, tmp_path: Path) -> None:
    study = small.study()
    guesses = attack_losses(
        study,
        study.runs[0],
        small.site(study, tmp_path),
        [small.mechanism()] * 2,
        num_canaries=30,
        rng=np.random.default_rng(0),
    )
    assert (guesses.num_canaries, guesses.num_guesses) == (30, 10)
    assert not list(tmp_path.iterdir())
