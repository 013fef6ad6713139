"""Losses and metrics of every task, against other libraries, formulas and brute force."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses.dice import DiceCELoss
from monai.metrics.meandice import DiceMetric
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from fedhealth.config.base import OptionValue
from fedhealth.contracts.data import (
    DataContract,
    MaskLabel,
    MultiLabel,
    SplitPlan,
    SurvivalLabel,
    TableModality,
    VolumeModality,
)
from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.errors import ConfigError, PrivacyError
from fedhealth.models.classification import BinaryClassification
from fedhealth.models.judgement import predictions_of, primary_metric, record_values
from fedhealth.models.multiclass import MulticlassClassification
from fedhealth.models.multilabel import MultilabelClassification
from fedhealth.models.protocol import ShapedTask, TaskWithRowLosses
from fedhealth.models.row_independence import check_loss_is_a_mean
from fedhealth.models.segmentation import Segmentation
from fedhealth.models.survival_cox import SurvivalCox
from fedhealth.models.survival_discrete_time import SurvivalDiscreteTime
from fedhealth.models.survival_metrics import concordance, integrated_brier

RNG = np.random.default_rng(3)
GRID = VolumeModality(name="t1", shape=(6, 5, 4), spacing_mm=(1.0, 1.0, 1.0))
SURVIVAL = SurvivalLabel(time_column="time", event_column="event", unit="days", maximum=10)
LABELS = MultiLabel(columns=("a", "b", "c"))
MASK = MaskLabel(name="lesion", codes=(0, 1, 4), grid=GRID)


def contract_of(target: Any, codes: tuple[int, ...] = ()) -> DataContract:
    return DataContract(
        patient_id_column="patient_id",
        label_column="label" if codes else "",
        label_codes=codes,
        modalities=(GRID,),
        split=SplitPlan(train=0.6, validation=0.2, test=0.2, seed=0),
        target=target,
    )


def multiclass(**options: OptionValue) -> MulticlassClassification:
    return MulticlassClassification(contract_of(None, (3, 5, 9, 11)), options)


def multilabel() -> MultilabelClassification:
    return MultilabelClassification(contract_of(LABELS), {})


def cox() -> SurvivalCox:
    return SurvivalCox(contract_of(SURVIVAL), {})


def discrete(**options: OptionValue) -> SurvivalDiscreteTime:
    return SurvivalDiscreteTime(contract_of(SURVIVAL), options)


def segmentation(**options: OptionValue) -> Segmentation:
    return Segmentation(contract_of(MASK), options)


def lifetimes(count: int, *, ties: bool = True) -> torch.Tensor:
    times = RNG.uniform(0.1, 9.9, size=count)
    times = np.ceil(2 * times) / 2 if ties else times
    return torch.tensor(np.stack([times, RNG.random(count) < 0.6], axis=1), dtype=torch.float32)


TASKS: Mapping[str, tuple[ShapedTask, torch.Tensor, tuple[int, ...]]] = {
    "multiclass": (multiclass(), torch.arange(30) % 4, (30, 4)),
    "multilabel": (multilabel(), torch.tensor(RNG.integers(0, 2, (30, 3))), (30, 3)),
    "cox": (cox(), lifetimes(30), (30, 1)),
    "discrete": (discrete(num_intervals=5), lifetimes(30), (30, 5)),
    "segmentation": (
        segmentation(),
        torch.tensor(RNG.integers(0, 3, (30, *GRID.shape)), dtype=torch.uint8),
        (30, 3, *GRID.shape),
    ),
}
MEANS = [name for name in TASKS if name != "cox"]


def logits_of(name: str, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(TASKS[name][2], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_is_a_shaped_one_whose_metrics_are_in_the_closed_list(name: str) -> None:
    task, labels, _ = TASKS[name]
    assert isinstance(task, ShapedTask)
    predictions = predictions_of(task, logits_of(name))
    found = task.metrics(predictions, labels.numpy())
    assert next(iter(found)) == primary_metric(task) == task.primary_metric
    for metric, value in found.items():
        low, high = METRIC_RANGES[metric]
        assert low <= value <= high
    for metric, values in record_values(task, predictions, labels.numpy()).items():
        assert values.shape == (30,)
        assert found[metric] == pytest.approx(values.mean())


@pytest.mark.parametrize("name", list(TASKS))
def test_a_weight_counts_a_record_that_often(name: str) -> None:
    task, labels, _ = TASKS[name]
    predictions = predictions_of(task, logits_of(name))
    weights = RNG.integers(0, 3, size=(4, 30))
    found = task.resampled_metric(predictions, labels.numpy(), weights.astype(np.float64))
    for row, value in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(30), row)
        drawn = task.metrics(predictions[rows], labels.numpy()[rows])
        assert value == pytest.approx(drawn[task.primary_metric])


@pytest.mark.parametrize("name", list(TASKS))
def test_nobody_and_the_not_finite_are_judged_without_an_error(name: str) -> None:
    task, labels, _ = TASKS[name]
    nobody = predictions_of(task, torch.zeros(0, task.num_outputs))
    assert task.metrics(nobody, labels[:0].numpy()) == {}
    broken = logits_of(name)
    broken[0] = torch.nan
    predictions = predictions_of(task, broken)
    assert not np.isfinite(predictions).all()
    values = record_values(task, predictions, labels.numpy())
    empty = record_values(task, nobody, labels[:0].numpy())
    assert set(values) == set(empty)
    assert all(v.shape == (0,) for v in empty.values())
    for metric, told in values.items():
        assert np.isfinite(told).all()
        is_loss = metric in {"log_loss", "brier"}
        assert told[0] == (told.max() if is_loss else 0)


@pytest.mark.parametrize("name", MEANS)
def test_the_loss_is_the_mean_of_the_rows_and_a_row_is_a_patients_own(name: str) -> None:
    task, labels, _ = TASKS[name]
    assert isinstance(task, TaskWithRowLosses)
    check_loss_is_a_mean(task)
    logits = logits_of(name)
    rows = task.row_losses(logits, labels)
    assert rows.shape == (30,)
    torch.testing.assert_close(task.loss(logits, labels), rows.mean())
    for row in (0, 7):
        alone = task.loss(logits[row : row + 1], labels[row : row + 1])
        torch.testing.assert_close(alone, rows[row])


@pytest.mark.parametrize("name", list(TASKS))
def test_the_gradient_is_the_finite_difference(name: str) -> None:
    task, labels, _ = TASKS[name]
    logits = logits_of(name).double()[:6].requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(logits, labels[:6]), logits)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        step = 1e-5 * direction
        change = task.loss(logits + step, labels[:6]) - task.loss(logits - step, labels[:6])
    assert float(change) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_multiclass_metrics_are_scikit_learns() -> None:
    task, labels, _ = TASKS["multiclass"]
    truth, p = labels.numpy(), np.asarray(predictions_of(task, logits_of("multiclass")))
    found = task.metrics(p, truth)
    assert found["macro_auc"] == pytest.approx(roc_auc_score(truth, p, multi_class="ovr"))
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(truth, p.argmax(axis=1))
    )
    assert found["log_loss"] == pytest.approx(log_loss(truth, p, labels=range(4)))
    assert found["accuracy"] == (p.argmax(axis=1) == truth).mean()
    one_hot = np.eye(4)[truth]
    assert found["brier"] == pytest.approx(((p - one_hot) ** 2).sum(axis=1).mean() / 2)


def test_two_classes_by_softmax_are_the_binary_task() -> None:
    contract = contract_of(None, (0, 1))
    two, binary = MulticlassClassification(contract, {}), BinaryClassification(contract, {})
    labels, logits = torch.arange(40) % 2, torch.randn(40, 1)
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(two.loss(both, labels), binary.loss(logits, labels))
    ours = two.metrics(two.predictions(both), labels.numpy())
    theirs = binary.metrics(binary.probabilities(logits), labels.numpy())
    assert ours["macro_auc"] == pytest.approx(theirs["auc"])
    for name in ("accuracy", "brier", "log_loss"):
        assert ours[name] == pytest.approx(theirs[name])


def test_classes_that_nobody_has_are_left_out_of_macro_means() -> None:
    task = multiclass()
    truth = np.array([0, 1, 1, 0, 1, 0])
    p = np.asarray(predictions_of(task, torch.randn(6, 4)))
    found = task.metrics(p, truth)
    expected = np.mean([roc_auc_score(truth == k, p[:, k]) for k in (0, 1)])
    assert found["macro_auc"] == pytest.approx(expected)
    assert "macro_auc" not in task.metrics(p, np.zeros(6, dtype=np.int64))


def test_multilabel_metrics_are_scikit_learns() -> None:
    task, labels, _ = TASKS["multilabel"]
    truth, p = labels.numpy(), np.asarray(predictions_of(task, logits_of("multilabel")))
    found = task.metrics(p, truth)
    assert found["macro_auc"] == pytest.approx(roc_auc_score(truth, p, average="macro"))
    each = [log_loss(truth[:, k], p[:, k]) for k in range(3)]
    assert found["log_loss"] == pytest.approx(np.mean(each))
    assert found["brier"] == pytest.approx(((p - truth) ** 2).mean())
    right = (p >= 0.5) == (truth == 1)
    assert (found["accuracy"], found["subset_accuracy"]) == (
        pytest.approx(right.mean()),
        right.all(axis=1).mean(),
    )
    one_sided = truth.copy()
    one_sided[:, 0] = 1
    expected = np.mean([roc_auc_score(truth[:, k], p[:, k]) for k in (1, 2)])
    assert task.metrics(p, one_sided)["macro_auc"] == pytest.approx(expected)


def test_the_partial_likelihood_is_the_product_over_events() -> None:
    """Breslow 1974: every event of a tie has the same risk set, that of all who were there."""
    labels = lifetimes(25)
    assert len(labels[:, 0].unique()) < 25
    x = torch.randn(25, 1)
    product, num_events = 0.0, 0
    for i in range(25):
        if labels[i, 1] == 1:
            at_risk = [float(x[j, 0].exp()) for j in range(25) if labels[j, 0] >= labels[i, 0]]
            product += np.log(float(x[i, 0].exp()) / sum(at_risk))
            num_events += 1
    assert float(cox().loss(x, labels)) == pytest.approx(-product / num_events, rel=1e-5)


def test_a_batch_without_an_event_teaches_cox_nothing() -> None:
    labels = lifetimes(5)
    labels[:, 1] = 0
    x = torch.randn(5, 1, requires_grad=True)
    loss = cox().loss(x, labels)
    (gradient,) = torch.autograd.grad(loss, x)
    assert (float(loss.detach()), float(gradient.abs().max())) == (0, 0)


def test_cox_is_refused_where_patients_are_protected() -> None:
    with pytest.raises(PrivacyError, match="survival_discrete_time") as caught:
        check_loss_is_a_mean(cox())
    assert caught.value.code == "FH-PRIVACY-058"


def brute_force_concordance(risks: Any, times: Any, events: Any) -> float:
    won, num_pairs = 0.0, 0
    for i in range(len(risks)):
        for j in range(len(risks)):
            before = times[i] < times[j] or (times[i] == times[j] and events[j] == 0 and i != j)
            if events[i] == 1 and before:
                num_pairs += 1
                won += 1.0 if risks[i] > risks[j] else 0.5 if risks[i] == risks[j] else 0.0
    return won / num_pairs


def test_concordance_is_the_share_of_pairs() -> None:
    times, events = lifetimes(40).numpy().T
    risks = np.round(RNG.normal(size=40), 1)
    once = np.ones((1, 40))
    found = float(concordance(risks, times, events, once)[0])
    assert found == pytest.approx(brute_force_concordance(risks, times, events))
    distinct, seen = lifetimes(40, ties=False).numpy().T
    assert concordance(-distinct.astype(float), distinct, seen, once)[0] == pytest.approx(1)
    assert np.isnan(concordance(risks, times, np.zeros(40), once)[0])
    assert cox().metrics(risks, np.stack([times, np.zeros(40)], axis=1)) == {}


def test_the_discrete_likelihood_is_that_of_the_hazards() -> None:
    edges = [1.0, 2.5, 4.0, 8.0]
    task = discrete(edges=edges)
    labels = torch.tensor(
        [[0.0, 1], [1.0, 1], [3.9, 1], [8.0, 1], [9.0, 0], [0.4, 0], [0.5, 0], [3.0, 0], [3.3, 0]]
    )
    logits = torch.randn(len(labels), 4)
    h = torch.sigmoid(logits.double()).numpy()
    bounds = list(pairwise([0.0, *edges]))
    expected = []
    for row, (time, event) in enumerate(labels.tolist()):
        likelihood = 1.0
        for k, (start, end) in enumerate(bounds):
            if event == 1 and start <= time < end:
                likelihood *= h[row, k]
            elif time >= (end if event == 1 else (start + end) / 2):
                likelihood *= 1 - h[row, k]
        expected.append(-np.log(likelihood))
    found = task.row_losses(logits, labels).numpy()
    assert found == pytest.approx(np.array(expected), rel=1e-5)
    curves = task.predictions(logits)
    assert curves == pytest.approx(np.cumprod(1 - h, axis=1))
    told = task.record_values(curves, labels.numpy())["log_loss"]
    assert told == pytest.approx(np.array(expected), rel=1e-5)


def test_edges_are_public_ascending_and_within_the_follow_up() -> None:
    assert discrete(num_intervals=4).num_outputs == 4
    assert discrete(edges=[1.0, 10.0]).num_outputs == 2
    for edges in ([0.0, 5.0], [5.0, 2.0], [5.0, 11.0]):
        with pytest.raises(ConfigError) as caught:
            discrete(edges=edges)
        assert caught.value.code == "FH-MODEL-023"


def test_without_censoring_the_integrated_brier_score_is_the_plain_one() -> None:
    times, events = lifetimes(30)[:, 0].numpy(), np.ones(30)
    edges = np.array([2.0, 5.0, 9.0])
    edges = edges[edges <= times.max()]
    survival = np.sort(RNG.random((30, len(edges))), axis=1)[:, ::-1]
    errors = [0.0, *((((times > e) - survival[:, k]) ** 2).mean() for k, e in enumerate(edges))]
    expected = np.trapezoid(errors, [0.0, *edges]) / edges[-1]
    assert integrated_brier(survival, edges, times, events) == pytest.approx(expected)


def test_censoring_weights_add_up_to_the_patients_and_undo_the_censoring() -> None:
    times, events = lifetimes(60).numpy().T
    edges = np.array([3.0, 6.0])
    # With S = 0 the score is the weighted share still there, with S = 1 of those gone: together one, as Kaplan-Meier.
    here, gone = (integrated_brier(np.full((60, 2), s), edges, times, events) for s in (0.0, 1.0))
    assert here is not None
    assert gone is not None
    assert here + gone == pytest.approx(np.trapezoid([0, 1, 1], [0, 3, 6]) / 6)
    rng = np.random.default_rng(0)
    true_times, censored = rng.exponential(4, 40000), rng.exponential(8, 40000)
    seen = np.minimum(true_times, censored)
    flat = np.full((40000, 1), np.exp(-3.0 / 4))
    value = integrated_brier(flat, np.array([3.0]), np.round(seen, 2), true_times <= censored)
    # Of an exact model at one time: p (1 - p), half of it as the trapezoid from 0.
    p = np.exp(-3.0 / 4)
    assert value == pytest.approx(p * (1 - p) / 2, rel=0.03)


def test_no_edge_within_the_observed_times_leaves_the_brier_score_open() -> None:
    labels = np.array([[0.1, 1.0], [0.2, 0.0]])
    task = discrete(edges=[5.0, 9.0])
    assert "integrated_brier" not in task.metrics(task.predictions(torch.zeros(2, 2)), labels)


def test_dice_is_monais() -> None:
    task, labels, _ = TASKS["segmentation"]
    masks = labels.clone()
    masks[0], masks[1] = 0, 2
    logits = logits_of("segmentation")
    logits[2, 0] = 9.0
    predictions = task.predictions(logits)
    one_hot = [
        torch.nn.functional.one_hot(torch.as_tensor(v).long(), 3).movedim(-1, 1)
        for v in (predictions, masks)
    ]
    metric = DiceMetric(include_background=False, ignore_empty=False)
    expected = metric(one_hot[0], one_hot[1]).mean(dim=1).numpy()
    found = task.record_values(predictions, masks.numpy())["dice"]
    assert found == pytest.approx(expected, rel=1e-6)


def test_an_empty_mask_that_is_predicted_empty_counts_as_right() -> None:
    empty = np.zeros((1, *GRID.shape), dtype=np.uint8)
    assert segmentation().metrics(empty.astype(np.float32), empty) == {"dice": 1.0}
    something = empty.astype(np.float32)
    something[0, 0, 0, 0] = 1
    assert segmentation().metrics(something, empty) == {"dice": 0.5}  # of two classes


def test_the_segmentation_loss_is_monais() -> None:
    _, labels, _ = TASKS["segmentation"]
    logits = logits_of("segmentation")
    theirs = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, lambda_ce=0.5)
    expected = theirs(logits, labels[:, None].long())
    torch.testing.assert_close(
        segmentation(cross_entropy_weight=0.5).loss(logits, labels), expected
    )


def test_a_label_of_another_kind_is_refused() -> None:
    for build, target in (
        (MulticlassClassification, LABELS),
        (BinaryClassification, SURVIVAL),
        (MultilabelClassification, SURVIVAL),
        (SurvivalCox, LABELS),
        (SurvivalDiscreteTime, MASK),
        (Segmentation, SURVIVAL),
    ):
        with pytest.raises(ConfigError, match="needs") as caught:
            build(contract_of(target), {})
        assert caught.value.code == "FH-MODEL-007"
    with pytest.raises(ConfigError, match="the study has 2 label codes"):
        Segmentation(contract_of(None, (0, 1)), {})


def test_a_table_is_not_the_only_thing_that_unet_refuses() -> None:
    from fedhealth.models.unet import build_unet

    with pytest.raises(ConfigError) as caught:
        build_unet(contract_of(MASK), 3, {})
    assert caught.value.code == "FH-MODEL-021"
    table = contract_of(MASK)
    empty = TableModality(name="ehr", columns=())
    with pytest.raises(ConfigError) as caught:
        build_unet(
            DataContract(
                patient_id_column="p",
                label_column="",
                label_codes=(),
                modalities=(*table.modalities, empty),
                split=table.split,
                target=MASK,
            ),
            3,
            {},
        )
    assert caught.value.code == "FH-MODEL-022"
