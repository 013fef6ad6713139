"""The suite that a model package runs on its own model.

In the package's tests::

    from fedhealth.testing.model_contract import ModelContract

    class TestMyModel(ModelContract):
        build = staticmethod(build_my_model)
        options = {"embedding_size": 8}

Every test states a rule that federated training relies on. Override `contract` with your study's data contract.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from fedhealth.config.base import OptionValue
from fedhealth.contracts.blocks import blocks_of
from fedhealth.contracts.data import (
    Column,
    DataContract,
    SplitPlan,
    TableModality,
    VolumeModality,
)
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import Batch
from fedhealth.models.build import (
    check_model,
    is_private,
    modality_prefixes,
    seeded_model,
    trainable_parameters,
)
from fedhealth.models.example_batch import random_batch, without
from fedhealth.models.protocol import ModelBuilder
from fedhealth.models.row_independence import as_if_trained, check_rows_are_independent

NUM_PATIENTS = 6
TOLERANCE = 1e-5
"""Of float32 logits of order one, summed in another order when the batch has another size."""


def example_contract() -> DataContract:
    """One table (a number, a category) and one 16 x 16 x 16 volume."""
    columns = (
        Column(name="age", dtype="float", unit="years", minimum=0, maximum=120),
        Column(name="sex", dtype="category", codes=(0, 1)),
    )
    return DataContract(
        patient_id_column="patient_id",
        label_column="label",
        label_codes=(0, 1),
        modalities=(
            TableModality(name="ehr", columns=columns),
            VolumeModality(name="mri", shape=(16, 16, 16), spacing_mm=(2.0, 2.0, 2.0)),
        ),
        split=SplitPlan(train=0.7, validation=0.1, test=0.2, seed=0),
    )


def is_voxelwise(model: nn.Module) -> bool:
    """Whether the model gives logits for each voxel and not for each patient."""
    return bool(getattr(model, "gives_voxels", False))


class ModelContract:
    """Inherit, set `build`, and pytest collects the rules."""

    build: ClassVar[ModelBuilder]
    options: ClassVar[Mapping[str, OptionValue]] = {}
    num_outputs: ClassVar[int] = 1
    begins_at_zero: ClassVar[bool] = False
    """True for a convex model without random initial weights."""

    @pytest.fixture
    def contract(self) -> DataContract:
        """The data contract that the model is built for."""
        return example_contract()

    @pytest.fixture
    def make_model(self, contract: DataContract) -> Callable[[int], nn.Module]:
        """Builds the model from a seed, in evaluation mode."""

        def make(seed: int) -> nn.Module:
            build = type(self).build
            model = seeded_model(build, contract, self.num_outputs, self.options, seed=seed)
            return model.eval()

        return make

    @pytest.fixture
    def model(self, make_model: Callable[[int], nn.Module]) -> nn.Module:
        """One model."""
        return make_model(1)

    @pytest.fixture
    def batch(self, contract: DataContract) -> Batch:
        """Patients with every modality."""
        return random_batch(contract, NUM_PATIENTS)

    def test_logits_have_one_row_a_patient(self, model: nn.Module, batch: Batch) -> None:
        """(B, num_outputs) float32, finite; for each voxel if the model has `gives_voxels = True`."""
        logits = model(batch)
        grid = next(iter(batch.volumes.values())).shape[2:] if is_voxelwise(model) else ()
        assert logits.shape == (NUM_PATIENTS, self.num_outputs, *grid)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()

    def test_only_float32_parameters_and_no_buffers(self, model: nn.Module) -> None:
        """What travels is the trainable parameters; there is no other state."""
        check_model(model)

    def test_head_prefixes_divide_the_parameters(self, model: nn.Module) -> None:
        """Every prefix names a parameter, and something remains to be shared."""
        names = [name for name, _ in trainable_parameters(model)]
        prefixes = getattr(model, "head_prefixes", ())
        private = [name for name in names if is_private(name, prefixes)]
        assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
        assert len(private) < len(names)

    def test_initial_weights_depend_on_the_seed_only(
        self, make_model: Callable[[int], nn.Module]
    ) -> None:
        """The same seed gives the same bits, whatever was drawn from the global generator before."""
        first = make_model(1).state_dict()
        torch.rand(3)
        again, other = make_model(1).state_dict(), make_model(2).state_dict()
        assert list(first) == list(again)
        assert all(torch.equal(first[name], again[name]) for name in first)
        drawn = any(not torch.equal(first[name], other[name]) for name in first)
        assert drawn != self.begins_at_zero

    def test_a_patient_is_judged_alone(self, model: nn.Module, batch: Batch) -> None:
        """Row i does not depend on the other patients, or on how many there are."""
        with torch.no_grad():
            together = model(batch)
            for row in range(NUM_PATIENTS):
                alone = model(batch.take(torch.tensor([row])))
                torch.testing.assert_close(alone[0], together[row], atol=TOLERANCE, rtol=TOLERANCE)

    def test_private_training_accepts_the_model(
        self, model: nn.Module, contract: DataContract
    ) -> None:
        """In training mode, too, no layer mixes patients."""
        check_rows_are_independent(model, contract)

    def test_an_absent_modality_is_fine_and_its_values_are_not_read(
        self, model: nn.Module, batch: Batch, contract: DataContract
    ) -> None:
        """Finite without any one modality, and `present`, not the stored values, decides."""
        for modality in contract.modalities:
            gone = without(batch, modality.name)
            with torch.no_grad():
                logits = model(gone)
                unread = model(replace(batch, present=gone.present))
            assert torch.isfinite(logits).all()
            if modality.name in batch.volumes:
                torch.testing.assert_close(unread, logits, atol=TOLERANCE, rtol=TOLERANCE)

    def test_absence_of_one_patient_changes_that_patient_only(
        self, model: nn.Module, batch: Batch, contract: DataContract
    ) -> None:
        """Mixed batches work."""
        first = torch.arange(NUM_PATIENTS) == 0
        for modality in contract.modalities:
            with as_if_trained(model), torch.no_grad():
                whole = model(batch)
                mixed = model(without(batch, modality.name, first))
            torch.testing.assert_close(mixed[1:], whole[1:], atol=TOLERANCE, rtol=TOLERANCE)
            assert not torch.allclose(mixed[0], whole[0])

    def test_a_patient_with_nothing_at_all_gets_a_finite_logit(
        self, model: nn.Module, batch: Batch, contract: DataContract
    ) -> None:
        """Every modality absent is an answer too: what the model thinks of a patient it knows nothing of."""
        for modality in contract.modalities:
            batch = without(batch, modality.name)
        with torch.no_grad():
            assert torch.isfinite(model(batch)).all()

    def test_what_belongs_to_a_modality_is_trained_by_patients_with_it_only(
        self, model: nn.Module, batch: Batch, contract: DataContract
    ) -> None:
        """`modality_prefixes` divides tensors, and without the modality nothing reaches those that are its own.

        A model may leave it out; a study that averages encoders over the sites that have their modality needs it.
        """
        if not hasattr(model, "modality_prefixes"):
            return
        prefixes = modality_prefixes(model)
        assert set(prefixes) <= {modality.name for modality in contract.modalities}
        trainable = dict(trainable_parameters(model))
        spec = TensorSpec.of({name: p.detach().numpy() for name, p in trainable.items()})
        for block in blocks_of(spec, prefixes):
            model.zero_grad(set_to_none=True)
            with as_if_trained(model):
                ((model(without(batch, block.modality)) - 1) ** 2).sum().backward()
            gradients = [trainable[name].grad for name in block.tensors]
            assert all(g is None or not g.any() for g in gradients), block.modality

    def test_gradients_reach_every_trainable_parameter(
        self, model: nn.Module, batch: Batch, contract: DataContract
    ) -> None:
        """With patients that have and lack each modality, nothing is trainable in name only."""
        for row, modality in enumerate(contract.modalities):
            batch = without(batch, modality.name, torch.arange(NUM_PATIENTS) == row)
        model.train()
        # Squares, since a plain sum can leave a parameter with a zero gradient by symmetry.
        ((model(batch) - 1) ** 2).sum().backward()
        silent = [
            name
            for name, parameter in trainable_parameters(model)
            if parameter.grad is None or not parameter.grad.abs().sum() > 0
        ]
        assert not silent
