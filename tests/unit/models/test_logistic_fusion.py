import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from fedhealth.contracts.data import Column, DataContract, SplitPlan, TableModality, VolumeModality
from fedhealth.data.batch import Batch
from fedhealth.errors import ConfigError
from fedhealth.models import pretrained
from fedhealth.models.build import trainable_parameters
from fedhealth.models.example_batch import random_batch, without
from fedhealth.models.logistic_fusion import LogisticFusion, build_logistic_fusion
from fedhealth.models.phantoms import draw_phantoms, read_anatomy

SIZE = 16


def _contract(*, has_volume: bool = True) -> DataContract:
    columns = (
        Column(name="age", dtype="float", minimum=0.0, maximum=120.0, reference=(40.0, 70.0)),
        Column(name="sex", dtype="category", codes=(0, 1)),
    )
    volume = VolumeModality(name="t1", shape=(SIZE, SIZE, SIZE), spacing_mm=(2.0, 2.0, 2.0))
    return DataContract(
        patient_id_column="patient_id",
        label_column="label",
        label_codes=(0, 1),
        modalities=(
            TableModality(name="ehr", columns=columns),
            *((volume,) if has_volume else ()),
        ),
        split=SplitPlan(train=0.7, validation=0.1, test=0.2, seed=0),
    )


def _randomised(model: LogisticFusion) -> LogisticFusion:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, parameter in trainable_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def _by_hand(model: LogisticFusion, batch: Batch, load: Tensor) -> Tensor:
    """The formula of the class, patient by patient, with plain sums."""
    weights = {name: layer.weight[0] for name, layer in model.weights.items()}
    logits = []
    for row in range(len(batch)):
        has_table, has_volume = (bool(batch.present[name][row]) for name in ("ehr", "t1"))
        table, missing = batch.tables["ehr"][row], batch.missing["ehr"][row] * has_table
        score = float(load[row]) if has_volume else 0.0
        logit = float(model.head.bias[0])
        logit += float(weights["table_ehr"] @ torch.cat([table, missing]))
        logit += float(weights["volume_t1"][0]) * score
        logit += score * float(weights["volume_t1_x_table_ehr"] @ table)
        logit += float(weights["absent"] @ torch.tensor([1.0 - has_table, 1.0 - has_volume]))
        logits.append(logit)
    return torch.tensor(logits)


def test_logits_are_the_formula_with_and_without_modalities() -> None:
    model = _randomised(build_logistic_fusion(_contract(), 1, {}))
    batch = random_batch(_contract(), 6)
    batch = without(batch, "t1", torch.tensor([True, False, True, False, False, False]))
    batch = without(batch, "ehr", torch.tensor([True, True, False, False, False, False]))
    with torch.no_grad():
        load = pretrained.PhantomLoad()(batch.volumes["t1"])[:, 0]
        torch.testing.assert_close(model(batch)[:, 0], _by_hand(model, batch, load))


def test_outputs_stay_the_same_when_frozen_encoders_are_taken_out() -> None:
    model = _randomised(build_logistic_fusion(_contract(), 1, {}))
    batch = without(random_batch(_contract(), 3), "t1", torch.tensor([True, False, False]))
    with torch.no_grad():
        expected = model(batch)
        taken = model.take_out_frozen_encoders()
        batch.volumes["t1"] = taken["t1"](batch.volumes["t1"])
        torch.testing.assert_close(model(batch), expected)
    assert model.take_out_frozen_encoders() == {}


def test_it_learns_what_logistic_regression_learns() -> None:
    """Full-batch training to the optimum, with the penalty of scikit-learn as the oracle."""
    contract = _contract(has_volume=False)
    model = build_logistic_fusion(contract, 1, {})
    batch = random_batch(contract, 80)
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(80, generator=generator) < torch.sigmoid(batch.tables["ehr"][:, 0])).long()
    inputs = torch.cat([batch.tables["ehr"], batch.missing["ehr"]], dim=1)
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(inputs, labels)
    layer = model.weights["table_ehr"]
    assert isinstance(layer, nn.Linear)
    parameters = [layer.weight, model.head.bias]
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = nn.functional.binary_cross_entropy_with_logits(
            model(batch)[:, 0], labels.float(), reduction="sum"
        )
        loss = loss + 0.5 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(layer.weight.detach()[0], oracle.coef_[0], atol=1e-3)
    np.testing.assert_allclose(model.head.bias.detach(), oracle.intercept_, atol=1e-3)


def test_only_tens_of_values_travel_and_the_head_is_the_intercept() -> None:
    model = build_logistic_fusion(_contract(), 1, {})
    sizes = {name: p.numel() for name, p in trainable_parameters(model)}
    assert sizes == {
        "weights.table_ehr.weight": 5,
        "weights.volume_t1.weight": 1,
        "weights.volume_t1_x_table_ehr.weight": 3,
        "weights.absent.weight": 2,
        "head.bias": 1,
    }


def test_every_modality_owns_its_weights_and_a_volume_its_products() -> None:
    volumes = tuple(
        VolumeModality(name=name, shape=(SIZE, SIZE, SIZE), spacing_mm=(2.0, 2.0, 2.0))
        for name in ("t1", "t1_post")
    )
    contract = replace(_contract(), modalities=(*_contract().tables, *volumes))
    assert build_logistic_fusion(contract, 1, {}).modality_prefixes == {
        "ehr": ("weights.table_ehr.",),
        "t1": ("weights.volume_t1.", "weights.volume_t1_x_table_ehr."),
        "t1_post": ("weights.volume_t1_post.", "weights.volume_t1_post_x_table_ehr."),
    }


def test_without_products_the_model_is_additive() -> None:
    model = build_logistic_fusion(_contract(), 1, {"products": "none"})
    assert set(model.weights) == {"table_ehr", "volume_t1", "absent"}


def test_a_wrong_option_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"FH-MODEL-001.*products"):
        build_logistic_fusion(_contract(), 1, {"products": "all"})


class TestReadout:
    def test_it_has_its_digest(self) -> None:
        payload = pretrained.READOUT_FILE.read_bytes()
        assert hashlib.sha256(payload).hexdigest() == pretrained.READOUT_SHA256

    @pytest.mark.parametrize("size", [16, 32])
    def test_it_is_the_standardised_lesion_load_of_new_phantoms(self, size: int) -> None:
        generator = torch.Generator().manual_seed(77)
        volumes, log_load = draw_phantoms(read_anatomy(), 160, size, generator)
        with torch.no_grad():
            load = pretrained.PhantomLoad()(volumes)[:, 0]
        assert float(torch.corrcoef(torch.stack([load, log_load]))[0, 1]) > 0.75
        assert abs(float(load.mean())) < 0.3
        assert 0.7 < float(load.std()) < 1.3
