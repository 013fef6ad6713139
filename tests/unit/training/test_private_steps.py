"""DP-SGD steps: sampling, noise, what they must not depend on, what they must refuse."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import Batch, PatientDataset
from fedhealth.errors import CancelledTrainingError, PrivacyError, TrainingError
from fedhealth.models.row_independence import check_rows_are_independent
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients
from fedhealth.privacy.randomness import Randomness
from fedhealth.testing.model_contract import example_contract
from fedhealth.training.learner import Learner, dump
from fedhealth.training.local_steps import StepPlan
from fedhealth.training.private_steps import clipped_gradients, run_private_steps
from fedhealth.training.supervised import SupervisedSession, SupervisedTraining

SEED = bytes(range(32))
PRIVACY = {"noise_multiplier": 1.0}
RATE = 0.01


def _mechanism(**changes: Any) -> PatientMechanism:
    plain = PatientMechanism(
        sampling_rate=0.3,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        expected_batch_size=8.0,
        num_steps=4,
    )
    return replace(plain, **changes)


def _study(tiny: Any, **training: Any) -> Any:
    sgd = {"name": "sgd", "learning_rate": RATE}
    plan = {"local_epochs": 1, "batch_size": 8, "optimizer": sgd, "modality_dropout": 0.0}
    return tiny.study(privacy=PRIVACY, training={**plan, **training})


def _learner(study: Any, run: str = "plain") -> Learner:
    return Learner(study, study.run(run))


def _dataset(study: Any, patients: tuple[Patient, ...]) -> PatientDataset:
    return PatientDataset(patients, study.data.to_contract(seed=study.seed))


def _plan(
    study: Any, *, mu: float = 0.0, is_cancelled: Callable[[], bool] = lambda: False
) -> StepPlan:
    return StepPlan(config=study.training, seed=0, proximal_mu=mu, is_cancelled=is_cancelled)


class _Everybody(Randomness):
    """The real noise; at rate 1 nothing is drawn for sampling, so that neighbouring cohorts get the same noise."""

    __slots__ = ()

    def bernoulli(self, count: int, rate: float) -> NDArray[np.bool_]:
        return np.ones(count, dtype=np.bool_) if rate == 1.0 else super().bernoulli(count, rate)


def _moved(
    study: Any,
    patients: tuple[Patient, ...],
    mechanism: PatientMechanism,
    *,
    run: str = "plain",
    seed: bytes = SEED,
    mu: float = 0.0,
) -> NDArray[np.float64]:
    """How far all weights moved, over the learning rate: with SGD, minus the sum of the steps' gradients."""
    learner = _learner(study, run)
    everything = {**learner.shared, **learner.private}
    before = dump(everything)
    run_private_steps(
        learner,
        _dataset(study, patients),
        _plan(study, mu=mu),
        mechanism,
        _Everybody.seeded_for_tests(seed),
    )
    after = dump(everything)
    parts = [(before[name] - after[name]).astype(np.float64).ravel() for name in before]
    return np.concatenate(parts) / RATE


def _copy(patient: Patient, patient_id: str) -> Patient:
    return replace(patient, patient_id=patient_id)


@pytest.mark.parametrize("patients", [0, 1], ids=["nobody", "nobody drawn"])
def test_an_empty_draw_takes_a_step_of_noise_alone_with_the_planned_deviation(
    tiny: Any, patients: int
) -> None:
    study = _study(tiny)
    mechanism = _mechanism(
        sampling_rate=1e-15, noise_multiplier=2.0, clipping_norm=0.5, num_steps=3
    )
    moved = _moved(study, tiny.patients(patients), mechanism)
    scale = 2.0 * 0.5 / 8.0 * math.sqrt(3)
    assert stats.kstest(moved / scale, "norm").pvalue > 1e-4
    assert moved.std() == pytest.approx(scale, rel=4 / math.sqrt(2 * moved.size))


def test_noise_falls_on_every_tensor_private_head_included(tiny: Any) -> None:
    study = _study(tiny)
    learner = _learner(study, "heads")
    everything = {**learner.shared, **learner.private}
    assert learner.private
    before = dump(everything)
    run_private_steps(
        learner, _dataset(study, ()), _plan(study), _mechanism(), Randomness.from_os()
    )
    after = dump(everything)
    assert all(np.all(before[name] != after[name]) for name in before)


def test_the_sum_of_a_steps_clipped_gradients_is_divided_by_the_expected_size(tiny: Any) -> None:
    """With everybody drawn and hardly any noise: the oracle is autograd, patient by patient."""
    study, patients = _study(tiny), tiny.patients(12)
    mechanism = _mechanism(
        sampling_rate=1.0, noise_multiplier=1e-7, clipping_norm=0.05, num_steps=1
    )
    learner, dataset = _learner(study), _dataset(study, patients)
    total = torch.zeros(sum(p.numel() for p in learner.shared.values()), dtype=torch.float64)
    learner.model.train()
    for row in range(12):
        batch = dataset.batch([row])
        learner.model.zero_grad()
        learner.task.loss(learner.model(batch), batch.labels).backward()  # type: ignore[no-untyped-call]
        grads = [
            (torch.zeros_like(p) if p.grad is None else p.grad).double().flatten()
            for p in learner.shared.values()
        ]
        flat = torch.cat(grads)
        total += flat * min(1.0, 0.05 / float(flat.norm()))
    moved = _moved(study, patients, mechanism)
    # float32 weights of order one are moved by 1e-5: their rounding is what remains.
    np.testing.assert_allclose(moved, total.numpy() / 8.0, atol=2e-5)


def _huge(tiny: Any, patient: Patient) -> Patient:
    image = np.full((8, 8, 8), 1e6, dtype=np.float32)
    image[::2] = -3e7

    class Volume:
        def load(self) -> NDArray[np.float32]:
            return image

    return replace(patient, label=1 - patient.label, volumes={"mri": Volume()})


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("run", ["plain", "heads"])
@pytest.mark.parametrize("change", ["removed", "huge", "not a number"])
def test_one_patient_moves_a_step_by_the_sensitivity_at_most_head_included(
    tiny: Any, run: str, change: str
) -> None:
    """Same noise, same draw (rate 1): adding the patient moves the released mean by C / expected size at most."""
    study, patients = _study(tiny), tiny.patients(10)
    mechanism = _mechanism(sampling_rate=1.0, clipping_norm=0.5, num_steps=1)
    without_it = _moved(study, patients[:-1], mechanism, run=run)
    last = patients[-1]
    if change == "huge":
        last = _huge(tiny, last)
    elif change == "not a number":
        last = replace(last, tables={"ehr": np.array([np.inf, 0.0, 0.0])})
    with_it = _moved(study, (*patients[:-1], last), mechanism, run=run)
    distance = float(np.linalg.norm(with_it - without_it))
    assert distance <= 0.5 / 8.0 * (1 + 1e-3) + 1e-4  # float32 weights at the learning rate's scale
    if change == "removed":
        assert distance > 0.01


def test_replacing_one_patient_by_a_huge_one_moves_a_step_by_twice_the_sensitivity_at_most(
    tiny: Any,
) -> None:
    study, patients = _study(tiny), tiny.patients(10)
    mechanism = _mechanism(sampling_rate=1.0, clipping_norm=0.5, num_steps=1)
    one = _moved(study, patients, mechanism)
    other = _moved(study, (*patients[:-1], _huge(tiny, patients[-1])), mechanism)
    assert float(np.linalg.norm(one - other)) <= 2 * 0.5 / 8.0 * (1 + 1e-3) + 1e-4


def test_a_gradient_that_is_not_finite_adds_nothing_and_is_counted_without_a_name(
    tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study, patients = _study(tiny), tiny.patients(6)
    broken = replace(patients[-1], tables={"ehr": np.array([np.inf, 0.0, 0.0])})
    mechanism = _mechanism(sampling_rate=1.0, num_steps=2)
    with caplog.at_level(logging.WARNING):
        with_it = _moved(study, (*patients[:-1], broken), mechanism)
    without_it = _moved(study, patients[:-1], mechanism)
    np.testing.assert_allclose(with_it, without_it, atol=1e-4)
    assert ["left out 2 times" in record.getMessage() for record in caplog.records] == [True]
    assert broken.patient_id not in caplog.text


class _Counting(Randomness):
    """The real stream; remembers what was asked of it."""

    __slots__ = ("asked", "draws")

    def __init__(self, key: bytes) -> None:
        super().__init__(key, generator="seeded_for_tests")
        self.asked: list[int] = []
        self.draws: list[tuple[int, float, int]] = []

    def uniform_bits(self, count: int) -> NDArray[np.uint64]:
        self.asked.append(count)
        return super().uniform_bits(count)

    def bernoulli(self, count: int, rate: float) -> NDArray[np.bool_]:
        drawn = super().bernoulli(count, rate)
        self.draws.append((count, rate, int(drawn.sum())))
        return drawn


def _asked(study: Any, patients: tuple[Patient, ...], mechanism: PatientMechanism) -> _Counting:
    stream = _Counting(SEED)
    learner = _learner(study)
    run_private_steps(learner, _dataset(study, patients), _plan(study), mechanism, stream)
    return stream


def test_a_logical_step_draws_noise_once_however_many_micro_batches(tiny: Any) -> None:
    study = _study(tiny, batch_size=2)  # 24 patients in 6 micro-batches
    size = sum(p.numel() for p in _learner(study).shared.values())
    stream = _asked(study, tiny.patients(24), _mechanism(sampling_rate=1.0, num_steps=3))
    noise = [count for count in stream.asked if count >= size]
    assert noise == [size + size % 2] * 3


def test_micro_batches_do_not_change_the_step(tiny: Any) -> None:
    patients = tiny.patients(24)
    mechanism = _mechanism(sampling_rate=0.6, num_steps=2)
    whole = _moved(_study(tiny, batch_size=64), patients, mechanism)
    parts = _moved(_study(tiny, batch_size=2), patients, mechanism)
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_neighbouring_cohorts_get_the_same_rate_denominator_steps_and_amount_of_noise(
    tiny: Any,
) -> None:
    study, patients = _study(tiny), tiny.patients(21)
    more = _asked(study, patients, _mechanism())
    less = _asked(study, patients[:-1], _mechanism())
    none = _asked(study, (), _mechanism())
    assert [rate for _, rate, _ in more.draws] == [0.3] * 4
    assert [rate for _, rate, _ in less.draws] == [rate for _, rate, _ in none.draws] == [0.3] * 4
    assert [n for n, _, _ in more.draws] == [21] * 4
    assert [n for n, _, _ in less.draws] == [20] * 4
    large = [[count for count in stream.asked if count > 100] for stream in (more, less, none)]
    assert large[0] == large[1] == large[2]
    assert len(large[0]) == 4


def test_batch_sizes_vary_as_poisson_sampling_says(tiny: Any) -> None:
    """Each patient by itself: variance N q (1 - q), which a shuffled loader's fixed size does not have."""
    study = _study(tiny, batch_size=64)
    num, rate, steps = 30, 0.2, 300
    patients = tuple(replace(patient, volumes={}) for patient in tiny.patients(num))
    stream = _asked(study, patients, _mechanism(sampling_rate=rate, num_steps=steps))
    sizes = np.array([drawn for _, _, drawn in stream.draws])
    assert len(sizes) == steps
    assert sizes.mean() == pytest.approx(num * rate, abs=4 * math.sqrt(num * rate / steps))
    ratio = sizes.var(ddof=1) / (num * rate * (1 - rate)) * (steps - 1)
    assert stats.chi2.cdf(ratio, steps - 1) == pytest.approx(0.5, abs=0.499)


def test_a_patient_with_several_records_is_drawn_and_clipped_as_one(tiny: Any) -> None:
    """Ten copies of one patient's record under one id count exactly as the record once."""
    study = _study(tiny)
    several = study.model_copy(
        update={"data": study.data.model_copy(update={"records_per_patient": 10})}
    )
    patients = tiny.patients(4)
    repeated = (*patients[:3], *[patients[3]] * 10)
    mechanism = _mechanism(sampling_rate=0.7, num_steps=3)
    np.testing.assert_allclose(
        _moved(several, repeated, mechanism), _moved(study, patients, mechanism), atol=1e-4
    )
    as_others = (*patients[:3], *[_copy(patients[3], f"q{i}") for i in range(10)])
    assert _asked(several, repeated, mechanism).draws[0][0] == 4
    assert _asked(study, as_others, mechanism).draws[0][0] == 13


def test_the_proximal_pull_is_added_after_the_noise_and_is_not_clipped(tiny: Any) -> None:
    """Nobody drawn: two steps; the second is pulled back by mu times what the first did."""
    study = _study(tiny)
    mechanism = _mechanism(sampling_rate=1e-15, num_steps=2)
    plain = _moved(study, (), mechanism)
    pulled = _moved(study, (), mechanism, mu=10.0)
    first = _moved(study, (), replace(mechanism, num_steps=1))
    np.testing.assert_allclose(pulled - plain, -10.0 * RATE * first, atol=1e-3)


def test_dropout_and_modality_dropout_do_not_follow_the_studys_seed(tiny: Any) -> None:
    """With the same secret the same masks, whatever the public seed; with another secret others."""
    patients = tiny.patients(20)
    mechanism = _mechanism(sampling_rate=1.0, noise_multiplier=1e-9, num_steps=1)
    study = _study(tiny, modality_dropout=0.5)

    def moved(seed: int, secret: bytes) -> NDArray[np.float64]:
        learner = _learner(study)
        before = dump(learner.shared)
        plan = replace(_plan(study), seed=seed)
        stream = Randomness.seeded_for_tests(secret)
        run_private_steps(learner, _dataset(study, patients), plan, mechanism, stream)
        after = dump(learner.shared)
        return np.concatenate([(before[n] - after[n]).ravel() for n in before]) / RATE

    np.testing.assert_array_equal(moved(0, SEED), moved(1, SEED))
    assert np.abs(moved(0, SEED) - moved(0, bytes(32))).max() > 1e-3


def test_global_generators_are_left_alone(tiny: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    _moved(_study(tiny, modality_dropout=0.3), tiny.patients(6), _mechanism())
    assert torch.equal(torch.rand(1), expected)


def test_cancelling_is_looked_at_before_every_step(tiny: Any) -> None:
    study = _study(tiny)
    answers = iter([False, False, True])
    stream = _Counting(SEED)
    with pytest.raises(CancelledTrainingError, match="FH-TRAIN-001"):
        run_private_steps(
            _learner(study),
            _dataset(study, tiny.patients(5)),
            _plan(study, is_cancelled=lambda: next(answers)),
            _mechanism(),
            stream,
        )
    assert len(stream.draws) == 2


class _Unfreezing(nn.Module):
    """Makes something trainable once training runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.late = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, batch: Batch) -> Tensor:
        self.late.requires_grad_(self.training and len(batch) > 0)
        return self.model(batch) + self.late  # type: ignore[no-any-return]


def test_a_step_with_a_trainable_tensor_that_gets_no_noise_is_refused(tiny: Any) -> None:
    study = _study(tiny)
    learner = _learner(study)
    learner.model = _Unfreezing(learner.model)
    with pytest.raises(PrivacyError, match=r"FH-PRIVACY-054.*'late'"):
        run_private_steps(
            learner,
            _dataset(study, tiny.patients(5)),
            _plan(study),
            _mechanism(sampling_rate=1.0),
            Randomness.from_os(),
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.5),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", math.inf),
        ("clipping_norm", 0.0),
        ("clipping_norm", -1.0),
        ("clipping_norm", math.inf),
        ("expected_batch_size", 0.0),
        ("num_steps", 0),
    ],
)
def test_a_mechanism_out_of_range_is_refused(tiny: Any, name: str, value: float) -> None:
    with pytest.raises(PrivacyError, match=rf"FH-PRIVACY-053.*{name}"):
        _moved(_study(tiny), tiny.patients(3), _mechanism(**{name: value}))


class _Mixing(nn.Module):
    """A model of the example contract with one layer that is tried."""

    head_prefixes = ("head.",)

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.layer = layer
        self.head = nn.Linear(4, 1)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.layer(self.enter(batch.tables["ehr"])))  # type: ignore[no-any-return]


class _Centred(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - inputs.mean(dim=0)


class _CentredInTraining(_Centred):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) if self.training else inputs


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm1d(4, track_running_stats=False),
        _Centred(),
        _CentredInTraining(),
        nn.Sequential(nn.Dropout(0.5), _CentredInTraining()),
    ],
    ids=["BatchNorm", "BatchNorm without statistics", "mean", "mean in training", "nested"],
)
def test_a_layer_that_mixes_patients_is_refused_by_its_name(layer: nn.Module) -> None:
    with pytest.raises(PrivacyError, match=r"FH-PRIVACY-056 layer 'layer(\.1)?'"):
        check_rows_are_independent(_Mixing(layer), example_contract())


def test_a_model_that_mixes_patients_outside_of_its_layers_is_refused() -> None:
    class Model(_Mixing):
        def forward(self, batch: Batch) -> Tensor:
            logits = super().forward(batch)
            return logits - logits.mean()

    with pytest.raises(PrivacyError, match="FH-PRIVACY-056 the model itself"):
        check_rows_are_independent(Model(nn.GroupNorm(2, 4)), example_contract())


@pytest.mark.parametrize(
    "layer",
    [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Dropout(0.5), nn.Sequential(nn.ReLU(inplace=True))],
    ids=["GroupNorm", "LayerNorm", "Dropout", "in-place"],
)
def test_a_layer_that_mixes_nobody_is_accepted(layer: nn.Module) -> None:
    check_rows_are_independent(_Mixing(layer), example_contract())


def test_an_embedding_that_changes_its_weights_in_the_forward_pass_is_refused() -> None:
    layer = nn.Sequential(nn.Embedding(3, 4, max_norm=1.0))
    with pytest.raises(PrivacyError, match=r"FH-PRIVACY-056 layer 'layer\.0'"):
        check_rows_are_independent(_Mixing(layer), example_contract())


def test_the_default_model_uses_book_keeping_with_and_without_images(tiny: Any) -> None:
    for frozen in (False, True):
        study = _study(tiny)
        study.model.options["freeze_image_encoder"] = frozen
        for patients in (tiny.patients(6), tuple(replace(p, volumes={}) for p in tiny.patients(6))):
            learner = _learner(study)
            gradients = clipped_gradients(learner, _dataset(study, patients))
            assert gradients.uses_book_keeping
            assert isinstance(gradients, ClippedGradients)


# The session.


def _open(
    study: Any, run_name: str, site: Any
) -> tuple[SupervisedSession, NDArray[np.float32], TensorSpec]:
    method, run = SupervisedTraining(), study.run(run_name)
    tensors = method.initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    return method.open_session(study, run, spec, site), spec.flatten(tensors), spec


def _private_task(tiny: Any, run: str = "plain", **changes: Any) -> Any:
    return replace(tiny.task(run_name=run), mechanism=_mechanism(**changes))


def test_an_update_says_which_mechanism_was_carried_out_and_tells_no_metric(
    tmp_path: Path, tiny: Any
) -> None:
    study = _study(tiny)
    site = tiny.site(tmp_path, study, tiny.patients(30))
    session, vector, _ = _open(study, "plain", site)
    update = session.train(vector, _private_task(tiny))
    assert update.mechanism == _mechanism()
    assert update.generator == "chacha20"
    assert update.metrics == {}
    assert SupervisedTraining.supports_patient_privacy
    plain = session.train(vector, tiny.task())
    assert (plain.mechanism, plain.generator) == (None, None)
    assert set(plain.metrics) == {"train_loss"}


def test_two_sessions_and_two_attempts_differ_and_a_test_seed_says_so(
    tmp_path: Path, tiny: Any
) -> None:
    study = _study(tiny)
    site = tiny.site(tmp_path, study, tiny.patients(30))

    def train(site: Any, attempts: int = 1) -> tuple[NDArray[np.float32], str | None]:
        session, vector, spec = _open(study, "plain", site)
        for _ in range(attempts):
            update = session.train(vector, _private_task(tiny))
        return spec.flatten(update.tensors), update.generator

    first, second = train(site), train(site)
    assert first[1] == "chacha20"
    assert not np.array_equal(first[0], second[0])
    seeded = replace(site, noise_seed=SEED)
    assert train(seeded)[1] == "seeded_for_tests"
    np.testing.assert_array_equal(train(seeded)[0], train(seeded)[0])
    assert not np.array_equal(train(seeded)[0], train(seeded, attempts=2)[0])


def test_a_private_head_is_trained_with_noise_kept_and_not_sent(tmp_path: Path, tiny: Any) -> None:
    study = _study(tiny)
    site = tiny.site(tmp_path, study, tiny.patients(30))
    session, vector, _ = _open(study, "heads", site)
    update = session.train(vector, _private_task(tiny, "heads", sampling_rate=1e-15))
    assert not any(name.startswith("head.") for name in update.tensors)
    before = {name: value.copy() for name, value in session._first_private.items()}
    session.commit(1)
    assert before
    assert all(np.all(before[name] != session._state.own[name]) for name in before)


def test_a_site_without_training_patients_sends_noise(tmp_path: Path, tiny: Any) -> None:
    """Its neighbour with one patient would send something: an error would tell the two apart."""
    study, patients = _study(tiny), tiny.patients(5)
    sides = {patient.patient_id: SplitName.VALIDATION for patient in patients}
    site = tiny.site(tmp_path, study, patients, fixed_split=sides)
    session, vector, spec = _open(study, "plain", site)
    update = session.train(vector, _private_task(tiny))
    assert np.all(spec.flatten(update.tensors) != vector)


def test_a_study_without_privacy_takes_no_private_steps(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study()
    session, vector, _ = _open(study, "plain", tiny.site(tmp_path, study, tiny.patients(10)))
    with pytest.raises(PrivacyError, match="FH-PRIVACY-057"):
        session.train(vector, _private_task(tiny))


def test_weights_that_overflow_are_an_error_as_without_privacy(tmp_path: Path, tiny: Any) -> None:
    study = _study(tiny)
    session, vector, _ = _open(study, "plain", tiny.site(tmp_path, study, tiny.patients(10)))
    with pytest.raises(TrainingError, match="FH-TRAIN-004"):
        session.train(np.full_like(vector, np.nan), _private_task(tiny))


def test_patient_metrics_are_the_parts_of_the_metrics(tmp_path: Path, tiny: Any) -> None:
    study = _study(tiny)
    site = tiny.site(tmp_path, study, tiny.patients(80))
    session, vector, _ = _open(study, "plain", site)
    values, whole = session.patient_metrics(vector), session.evaluate(vector)
    assert set(values) == {"accuracy", "brier", "log_loss"}
    for name, parts in values.items():
        assert parts.dtype == np.float64
        assert parts.shape == (len(session._validation),)
        assert parts.mean() == pytest.approx(whole[name], rel=1e-12)


def test_patient_metrics_mean_over_a_patients_records_and_are_finite(
    tmp_path: Path, tiny: Any
) -> None:
    study = _study(tiny)
    study = study.model_copy(
        update={"data": study.data.model_copy(update={"records_per_patient": 3})}
    )
    patients = tiny.patients(4)
    broken = replace(patients[3], tables={"ehr": np.array([np.inf, 0.0, 0.0])})
    records = (patients[0], patients[1], patients[2], _copy(patients[1], "p0000"), broken)
    sides = {patient.patient_id: SplitName.VALIDATION for patient in patients}
    site = tiny.site(tmp_path, study, records, fixed_split=sides)
    session, vector, _ = _open(study, "plain", site)
    values = session.patient_metrics(vector)
    alone = [
        _open(study, "plain", tiny.site(tmp_path, study, (record,), fixed_split=sides))[
            0
        ].patient_metrics(vector)
        for record in records[:4]
    ]
    for name, found in values.items():
        single = [float(value[name][0]) for value in alone]
        expected = [(single[0] + single[3]) / 2, single[1], single[2]]
        np.testing.assert_allclose(found[:3], expected, rtol=1e-5)
    assert (values["accuracy"][3], values["brier"][3]) == (0.0, 1.0)
    assert values["log_loss"][3] == pytest.approx(36.04, abs=0.01)
