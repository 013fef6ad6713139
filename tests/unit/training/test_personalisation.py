"""Methods of personalisation: what leaves, what stays, and each rule against the paper's formula on a convex model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedhealth.cli.study_check import check_whole_study
from fedhealth.config.personalisation import OPTIONS
from fedhealth.config.study import Study
from fedhealth.contracts.local_training import PatientMechanism, RoundTask, SiteContext
from fedhealth.contracts.tensors import TensorSpec, vector_digest
from fedhealth.errors import ConfigError, TrainingError
from fedhealth.privacy.accounting.plan import plan_site
from fedhealth.training.evaluation import scores_on_test
from fedhealth.training.learner import Learner, spec_of
from fedhealth.training.personalisation.state import state_store
from fedhealth.training.supervised import SupervisedSession, SupervisedTraining

RATE, STRENGTH, STEPS = 0.1, 0.7, 3
SEED = bytes(range(32))
TABLE_ONLY = {
    "modalities": [
        {
            "kind": "table",
            "name": "ehr",
            "columns": [
                {"name": f"lab_{i}", "dtype": "float", "minimum": -4, "maximum": 4}
                for i in range(3)
            ],
        }
    ]
}


def make_study(
    tiny: Any, method: str, options: dict[str, float] | None = None, **changes: Any
) -> Study:
    """One full-batch plain step after another on a logistic regression: everything can be worked out by hand."""
    run = {
        "name": "main",
        "num_rounds": 3,
        "personalisation": method,
        "personalisation_options": options or {},
    }
    training = {
        "local_steps": STEPS,
        "batch_size": 64,
        "optimizer": {"name": "sgd", "learning_rate": RATE},
        "modality_dropout": 0.0,
    }
    made: Study = tiny.study(
        **{
            "data": TABLE_ONLY,
            "model": {"name": "logistic_fusion"},
            "training": training,
            "runs": [run],
            **changes,
        }
    )
    return made


def make_site(tiny: Any, tmp_path: Path, study: Study, **changes: Any) -> SiteContext:
    site: SiteContext = tiny.site(tmp_path, study, tiny.patients(40))
    return replace(site, noise_seed=SEED, **changes)


def open_session(study: Study, site: SiteContext) -> tuple[SupervisedSession, Any, TensorSpec]:
    run = study.run("main")
    tensors = SupervisedTraining().initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    session = SupervisedTraining().open_session(study, run, spec, site)
    return session, spec.flatten(tensors), spec


def task(number: int = 1, mechanism: PatientMechanism | None = None, **config: float) -> RoundTask:
    return RoundTask(
        run_name="main",
        round_number=number,
        attempt=1,
        strategy_config=config,
        is_cancelled=lambda: False,
        mechanism=mechanism,
    )


def mechanism_of(steps: int = STEPS, noise: float = 1.0) -> PatientMechanism:
    return PatientMechanism(
        sampling_rate=1.0,
        noise_multiplier=noise,
        clipping_norm=1.0,
        expected_batch_size=20.0,
        num_steps=steps,
    )


def gradient_at(session: SupervisedSession, spec: TensorSpec, vector: Any) -> Any:
    """The mean gradient of the log loss over all training patients, by numpy alone."""
    batch = session._train.batch(np.arange(len(session._train)))
    names = spec.unflatten(vector)
    present = batch.present["ehr"].numpy()[:, None]
    inputs = np.hstack([batch.tables["ehr"].numpy(), batch.missing["ehr"].numpy() * present])
    absent = (~present).astype(np.float64)
    logits = inputs @ names["weights.table_ehr.weight"][0]
    logits = logits + absent @ names["weights.absent.weight"][0]
    logits = logits + names["head.bias"][0]
    errors = (1 / (1 + np.exp(-logits)) - batch.labels.numpy())[:, None]
    return spec.flatten(
        {
            "weights.table_ehr.weight": (errors * inputs).mean(axis=0)[None],
            "weights.absent.weight": (errors * absent).mean(axis=0)[None],
            "head.bias": errors.mean(axis=0),
        }
    )


def descend(
    session: SupervisedSession, spec: TensorSpec, start: Any, pull_to: Any, strength: float
) -> Any:
    """The paper's inner loop: plain steps on F(w) + strength / 2 ||w - pull_to||^2."""
    w = start.astype(np.float64)
    for _ in range(STEPS):
        w = w - RATE * (gradient_at(session, spec, w.astype(np.float32)) + strength * (w - pull_to))
    return w


def go(session: SupervisedSession, spec: TensorSpec, vector: Any, number: int) -> Any:
    update = session.train(vector, task(number))
    session.commit(number)
    return spec.flatten(update.tensors)


OTHER_OPTIMIZERS: tuple[dict[str, Any], ...] = (
    {"name": "adam", "learning_rate": RATE},
    {"name": "adamw", "learning_rate": RATE, "weight_decay": 0.1},
    {"name": "sgd", "learning_rate": RATE, "momentum": 0.9, "weight_decay": 0.02},
)


def training_with(optimizer: dict[str, Any], num_steps: int = STEPS) -> dict[str, Any]:
    return {
        "local_steps": num_steps,
        "batch_size": 64,
        "optimizer": optimizer,
        "modality_dropout": 0.0,
    }


def stepped(w: Any, gradient: Any, memory: dict[str, Any], settings: dict[str, Any]) -> Any:
    """One step of the optimiser, from its paper: Polyak's momentum, Adam (Kingma and Ba 2015), AdamW."""
    decay = settings.get("weight_decay", 0.0)
    if settings["name"] == "adamw":
        w = w - RATE * decay * w
    else:
        gradient = gradient + decay * w
    if settings["name"] == "sgd":
        memory["v"] = settings["momentum"] * memory.get("v", 0.0) + gradient
        return w - RATE * memory["v"]
    memory["t"] = memory.get("t", 0) + 1
    memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * gradient
    memory["s"] = 0.999 * memory.get("s", 0.0) + 0.001 * gradient**2
    mean, square = memory["m"] / (1 - 0.9 ** memory["t"]), memory["s"] / (1 - 0.999 ** memory["t"])
    return w - RATE * mean / (np.sqrt(square) + 1e-8)


class TestPullsOfOtherOptimizers:
    """With a memory or normalised steps the pull follows the step: w <- (w + tau s a) / (1 + tau s)."""

    @pytest.mark.parametrize("method", ["mr_mtl", "ditto"])
    @pytest.mark.parametrize("optimizer", OTHER_OPTIMIZERS, ids=lambda o: o["name"])
    def test_a_round_is_the_optimisers_step_and_then_the_exact_proximal_step(
        self, tmp_path: Path, tiny: Any, method: str, optimizer: dict[str, Any]
    ) -> None:
        study = make_study(tiny, method, {"strength": STRENGTH}, training=training_with(optimizer))
        session, own, spec = open_session(study, make_site(tiny, tmp_path, study))
        anchor, tau = own, RATE / (1 - optimizer.get("momentum", 0.0))
        for number in (1, 2):
            anchor = anchor + np.float32(0.05) * (number - 1)
            w, memory = own.astype(np.float64), dict[str, Any]()
            for _ in range(STEPS):
                gradient = gradient_at(session, spec, w.astype(np.float32))
                w = stepped(w, gradient.astype(np.float64), memory, optimizer)
                w = (w + tau * STRENGTH * anchor) / (1 + tau * STRENGTH)
            go(session, spec, anchor, number)
            own = w.astype(np.float32)
            np.testing.assert_allclose(spec.flatten(session._state.own), own, atol=2e-5)

    @pytest.mark.parametrize("is_private", [False, True])
    @pytest.mark.parametrize("optimizer", OTHER_OPTIMIZERS, ids=lambda o: o["name"])
    def test_the_strongest_pull_ends_at_the_shared_model_and_not_beyond(
        self, tmp_path: Path, tiny: Any, optimizer: dict[str, Any], is_private: bool
    ) -> None:
        noise = {"privacy": {"noise_multiplier": 1.0, "clipping_norm": 1.0}} if is_private else {}
        study = make_study(
            tiny, "mr_mtl", {"strength": 1000.0}, training=training_with(optimizer), **noise
        )
        session, vector, spec = open_session(study, make_site(tiny, tmp_path, study))
        session.train(vector, task(1, mechanism_of() if is_private else None))
        session.commit(1)
        moved = vector + np.float32(2.0)
        session.train(moved, task(2, mechanism_of() if is_private else None))
        session.commit(2)
        distance = np.abs(spec.flatten(session._state.own) - moved).max()
        assert distance < 0.05, (
            "a pull inside the optimiser's step leaves about a step length, or 2"
        )

    def test_momentum_comes_to_rest_at_the_minimum_of_the_papers_objective(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        optimizer = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.9}
        training = training_with(optimizer, num_steps=600)
        study = make_study(tiny, "mr_mtl", {"strength": STRENGTH}, training=training)
        session, vector, spec = open_session(study, make_site(tiny, tmp_path, study))
        anchor = vector + np.float32(0.3)
        go(session, spec, anchor, 1)
        own = spec.flatten(session._state.own)
        slope = gradient_at(session, spec, own) + STRENGTH * (own - anchor)
        assert np.abs(slope).max() < 1e-4
        assert np.abs(own - anchor).max() > 1e-2, "the pull alone would prove nothing"


class TestMrMtl:
    def test_rounds_are_the_papers_and_what_leaves_is_the_mean_plus_the_change(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study = make_study(tiny, "mr_mtl", {"strength": STRENGTH})
        session, mean, spec = open_session(study, make_site(tiny, tmp_path, study))
        own = mean
        for number in (1, 2):
            mean = mean + np.float32(0.05) * number  # the others moved it
            if number == 1:
                own = mean  # a site without a model of its own begins at the mean
            expected = descend(session, spec, own, mean, STRENGTH)
            sent = go(session, spec, mean, number)
            np.testing.assert_allclose(sent, mean + (expected - own), atol=1e-5)
            own = expected.astype(np.float32)
        np.testing.assert_allclose(spec.flatten(session._state.own), own, atol=1e-5)

    def test_its_metrics_are_of_the_sites_own_model(self, tmp_path: Path, tiny: Any) -> None:
        study = make_study(tiny, "mr_mtl", {"strength": STRENGTH})
        session, mean, spec = open_session(study, make_site(tiny, tmp_path, study))
        before = session.evaluate(mean)
        go(session, spec, mean, 1)
        assert session.evaluate(mean) != before


class TestDitto:
    def test_the_shared_model_trains_as_ever_and_the_own_one_by_the_papers_rule(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study = make_study(tiny, "ditto", {"strength": STRENGTH})
        session, shared, spec = open_session(study, make_site(tiny, tmp_path, study))
        own = shared
        for number in (1, 2):
            expected_own = descend(session, spec, own, shared, STRENGTH)
            expected = descend(session, spec, shared, shared, 0.0)
            sent = go(session, spec, shared, number)
            np.testing.assert_allclose(sent, expected, atol=1e-5)
            np.testing.assert_allclose(spec.flatten(session._state.own), expected_own, atol=1e-5)
            own, shared = expected_own.astype(np.float32), sent

    def test_without_a_pull_the_own_model_is_training_alone(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study = make_study(tiny, "ditto", {"strength": 0.0})
        session, shared, spec = open_session(study, make_site(tiny, tmp_path, study))
        alone = shared
        for number in (1, 2):
            alone = descend(session, spec, alone, alone, 0.0)
            go(session, spec, shared + np.float32(number), number)
            if number == 1:
                alone = descend(session, spec, shared + np.float32(1), alone, 0.0)
        np.testing.assert_allclose(spec.flatten(session._state.own), alone, atol=1e-4)

    def test_under_privacy_a_round_costs_twice_the_steps_of_another_method(self, tiny: Any) -> None:
        privacy = {"noise_multiplier": 1.0, "clipping_norm": 1.0}
        plans = {
            method: plan_site(make_study(tiny, method, privacy=privacy), 30)
            for method in ("none", "ditto")
        }
        plain, double = plans["none"], plans["ditto"]
        assert plain is not None
        assert double is not None
        assert double.train_event("main").steps == 2 * plain.train_event("main").steps
        assert double.planned_steps == 2 * plain.planned_steps

    def test_reserved_steps_are_divided_between_the_two_models(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study = make_study(tiny, "ditto", privacy={"noise_multiplier": 1.0, "clipping_norm": 1.0})
        session, shared, spec = open_session(study, make_site(tiny, tmp_path, study))
        taken: list[int] = []
        take = session._steps.take

        def counted(phase: Any, *args: Any, **kwargs: Any) -> float | None:
            taken.append(phase.num_steps)
            return take(phase, *args, **kwargs)

        object.__setattr__(session, "_steps", _Counting(session._steps, counted))
        update = session.train(shared, task(1, mechanism_of(2 * STEPS)))
        assert taken == [STEPS, STEPS]
        assert update.mechanism == mechanism_of(2 * STEPS)
        assert update.metrics == {}
        session.commit(1)
        assert np.all(spec.flatten(session._state.own) != shared), "the own model is noised too"


class _Counting:
    """The session's steps, with their number written down."""

    def __init__(self, steps: Any, take: Any) -> None:
        self._steps, self.take = steps, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steps, name)


class TestFedRep:
    def test_the_head_trains_first_and_the_body_then(self, tmp_path: Path, tiny: Any) -> None:
        study = make_study(tiny, "fedrep", {"head_share": 0.34})
        session, vector, spec = open_session(study, make_site(tiny, tmp_path, study))
        full = spec_of({**session._learner.shared, **session._learner.private})
        w = full.flatten({**spec.unflatten(vector), "head.bias": np.zeros(1, dtype=np.float32)})
        in_head = full.flatten(
            {name: np.full(t.shape, name == "head.bias") for name, t in full.unflatten(w).items()}
        )
        w = w.astype(np.float64)
        for step in range(STEPS):
            gradient = gradient_at(session, full, w.astype(np.float32))
            w = w - RATE * gradient * (in_head if step < 1 else 1 - in_head)
        sent = go(session, spec, vector, 1)
        expected = full.unflatten(w.astype(np.float32))
        np.testing.assert_allclose(
            sent, spec.flatten({name: expected[name] for name in spec.names()}), atol=1e-5
        )
        assert session._state.own is not None
        np.testing.assert_allclose(
            session._state.own["head.bias"], expected["head.bias"], atol=1e-5
        )

    def test_under_privacy_both_phases_are_noised_and_are_the_reserved_steps(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study = make_study(tiny, "fedrep", privacy={"noise_multiplier": 1.0, "clipping_norm": 1.0})
        session, vector, spec = open_session(study, make_site(tiny, tmp_path, study))
        update = session.train(vector, task(1, replace(mechanism_of(), sampling_rate=1e-15)))
        session.commit(1)
        assert np.all(spec.flatten(update.tensors) != vector)
        assert session._state.own is not None
        assert np.all(session._state.own["head.bias"] != 0)
        assert update.mechanism is not None
        assert update.mechanism.num_steps == STEPS

    def test_one_step_cannot_be_two_phases(self, tmp_path: Path, tiny: Any) -> None:
        with pytest.raises(ValidationError, match="fedrep needs"):
            make_study(tiny, "fedrep", training={"local_steps": 1, "batch_size": 8})
        study = make_study(tiny, "fedrep", training={"local_epochs": 1, "batch_size": 64})
        session, vector, _ = open_session(study, make_site(tiny, tmp_path, study))
        with pytest.raises(TrainingError, match="FH-TRAIN-060"):
            session.train(vector, task())


class TestLocalNorm:
    def test_exactly_the_normalisation_layers_stay(self, tiny: Any) -> None:
        study = tiny.study(
            runs=[{"name": "main", "num_rounds": 1, "personalisation": "local_norm"}]
        )
        learner = Learner(study, study.run("main"))
        assert learner.private
        assert all(".norm" in name or "N." in name for name in learner.private), learner.private
        assert not any("norm" in name.lower() for name in learner.shared)

    def test_a_model_without_such_layers_is_refused(self, tiny: Any) -> None:
        study = make_study(tiny, "local_norm")
        with pytest.raises(ConfigError, match="FH-MODEL-008"):
            Learner(study, study.run("main"))


class TestFineTune:
    def test_rounds_are_those_of_no_personalisation(self, tmp_path: Path, tiny: Any) -> None:
        sent = []
        for method in ("none", "fine_tune"):
            study = make_study(tiny, method)
            session, vector, spec = open_session(study, make_site(tiny, tmp_path / method, study))
            sent.append(go(session, spec, vector, 1))
        assert np.array_equal(*sent)

    def test_the_own_model_is_made_once_from_the_final_one_and_made_anew_for_another(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study = make_study(tiny, "fine_tune", {"epochs": 2, "learning_rate": 0.5})
        site = make_site(tiny, tmp_path, study)
        _, vector, _ = open_session(study, site)
        run = study.run("main")
        first = scores_on_test(study, run, vector, site)
        store = state_store(site, run, Learner(study, run))
        assert store.trained_from(run.num_rounds) == vector_digest(vector)
        kept = store.newest()
        again = scores_on_test(study, run, vector, site)
        assert np.array_equal(first.probabilities, again.probabilities)
        scores_on_test(study, run, vector + np.float32(0.1), site)
        other = store.newest()
        assert kept is not None
        assert other is not None
        assert any(not np.array_equal(kept[1][name], other[1][name]) for name in kept[1])


STATEFUL = ("private_head", "fedrep", "mr_mtl", "ditto")


class TestState:
    @pytest.mark.parametrize("method", STATEFUL)
    def test_it_survives_a_restart_bit_for_bit(
        self, tmp_path: Path, tiny: Any, method: str
    ) -> None:
        study = make_study(tiny, method)
        one = make_site(tiny, tmp_path / "one", study)
        two = make_site(tiny, tmp_path / "two", study)
        session, vector, spec = open_session(study, one)
        restarted, _, _ = open_session(study, two)
        for number in (1, 2, 3):
            expected = go(session, spec, vector, number)
            assert np.array_equal(go(restarted, spec, vector, number), expected)
            restarted, _, _ = open_session(study, two)
            vector = expected

    @pytest.mark.parametrize("method", STATEFUL)
    def test_a_repeated_round_begins_where_it_did(
        self, tmp_path: Path, tiny: Any, method: str
    ) -> None:
        study = make_study(tiny, method)
        session, vector, spec = open_session(study, make_site(tiny, tmp_path, study))
        go(session, spec, vector, 1)
        expected = go(session, spec, vector, 2)
        go(session, spec, vector, 3)
        assert np.array_equal(go(session, spec, vector, 2), expected)

    def test_it_says_which_global_model_it_was_trained_with(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study = make_study(tiny, "mr_mtl")
        site = make_site(tiny, tmp_path, study)
        session, vector, spec = open_session(study, site)
        go(session, spec, vector, 1)
        run = study.run("main")
        store = state_store(site, run, Learner(study, run))
        assert store.trained_from(1) == vector_digest(vector)

    def test_a_damaged_file_is_an_error_and_not_a_fresh_start(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study = make_study(tiny, "ditto")
        site = make_site(tiny, tmp_path, study)
        session, vector, spec = open_session(study, site)
        go(session, spec, vector, 1)
        (path,) = (site.state_dir / "personal" / "main").glob("*.safetensors")
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(TrainingError, match="FH-TRAIN-006"):
            open_session(study, site)

    def test_a_site_that_never_took_part_has_no_model_of_its_own(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study = make_study(tiny, "mr_mtl")
        site = make_site(tiny, tmp_path, study)
        _, vector, _ = open_session(study, site)
        with pytest.raises(TrainingError, match="FH-TRAIN-009"):
            scores_on_test(study, study.run("main"), vector, site)


class TestCompositions:
    @pytest.mark.parametrize("method", ["fedrep", "mr_mtl", "ditto"])
    def test_what_a_strategy_asks_of_steps_is_refused_where_steps_are_the_methods_own(
        self, tmp_path: Path, tiny: Any, method: str
    ) -> None:
        study = make_study(tiny, method)
        session, vector, _ = open_session(study, make_site(tiny, tmp_path, study))
        with pytest.raises(TrainingError, match="FH-TRAIN-061"):
            session.train(vector, task(proximal_mu=0.1))

    @pytest.mark.parametrize("method", ["mr_mtl", "ditto"])
    def test_a_frozen_tensor_leaves_as_it_came_and_is_not_trained(
        self, tmp_path: Path, tiny: Any, method: str
    ) -> None:
        study = make_study(tiny, method)
        session, vector, spec = open_session(study, make_site(tiny, tmp_path, study))
        frozen = frozenset({"weights.table_ehr.weight"})
        vector = vector + np.float32(0.25)
        update = session.train(vector, replace(task(), frozen=frozen))
        for name in frozen:
            assert np.array_equal(update.tensors[name], spec.unflatten(vector)[name])

    @pytest.mark.parametrize("method", ["mr_mtl", "fedrep", "ditto", "fine_tune", "local_norm"])
    def test_one_global_step_protects_no_state_of_a_site(self, tiny: Any, method: str) -> None:
        noise = {"unit": "patient", "num_sites": 3, "num_patients": 50, "clipping_norm": 1.0}
        masks = {
            "min_survivors": 3,
            "distributed_privacy": noise | {"noise_multiplier": 1.0},
        }
        with pytest.raises(ValidationError, match="cannot protect what is a site's own"):
            make_study(
                tiny,
                method,
                training={
                    "local_steps": 1,
                    "batch_size": 64,
                    "optimizer": {"name": "sgd", "learning_rate": 0.1},
                },
                federation={"min_cohort": 3},
                secure_aggregation=masks,
            )


@pytest.mark.parametrize("method", list(OPTIONS))
def test_an_option_that_a_method_does_not_have_is_refused(tiny: Any, method: str) -> None:
    with pytest.raises(ValidationError, match=f"personalisation_options of {method}"):
        make_study(tiny, method, {"momentum": 0.5})


@pytest.mark.parametrize("method", ["mr_mtl", "ditto"])
def test_a_pull_that_would_overshoot_is_refused_before_the_study_starts(
    tiny: Any, method: str
) -> None:
    make_study(tiny, method, {"strength": 1.0 / RATE})
    with pytest.raises(ValidationError, match="must be at most 1"):
        make_study(tiny, method, {"strength": 1.01 / RATE})
    for optimizer in OTHER_OPTIMIZERS:  # the pull is a step of its own, which stops in time
        make_study(tiny, method, {"strength": 1000.0}, training=training_with(optimizer))


def test_a_training_method_that_does_not_know_personalisation_is_refused(tiny: Any) -> None:
    study = make_study(tiny, "ditto")
    codes = [finding.code for finding in check_whole_study(study, build=True)]
    assert "FH-TRAIN-062" not in codes
    training = study.training.model_copy(update={"name": "add_one"})
    other = study.model_copy(update={"training": training})
    codes = [finding.code for finding in check_whole_study(other, build=True)]
    assert "FH-TRAIN-062" in codes
