import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor, nn

from fedhealth.config.base import OptionValue
from fedhealth.contracts.data import Column, DataContract, SplitPlan, TableModality, VolumeModality
from fedhealth.data.batch import Batch
from fedhealth.errors import ConfigError
from fedhealth.models import pretrained
from fedhealth.models.build import check_model
from fedhealth.models.classification import BinaryClassification
from fedhealth.models.image_encoder import ImageEncoder
from fedhealth.models.multimodal import build_multimodal
from fedhealth.models.phantoms import draw_phantoms, read_anatomy
from fedhealth.models.pretraining import PretrainingPlan, load_correlation, pretrain
from fedhealth.models.seeds import derive_seed


def _contract(label_codes: tuple[int, ...] = (0, 1)) -> DataContract:
    column = Column(name="age", dtype="float", minimum=0.0, maximum=120.0)
    return DataContract(
        patient_id_column="patient_id",
        label_column="label",
        label_codes=label_codes,
        modalities=(
            TableModality(name="ehr", columns=(column,)),
            VolumeModality(name="mri", shape=(16, 16, 16), spacing_mm=(2.0, 2.0, 2.0)),
        ),
        split=SplitPlan(train=0.7, validation=0.1, test=0.2, seed=0),
    )


def _batch(count: int, *, with_image: bool) -> Batch:
    return Batch(
        tables={"ehr": torch.linspace(-1, 1, count)[:, None]},
        missing={"ehr": torch.zeros(count, 1)},
        volumes={"mri": torch.zeros(count, 1, 16, 16, 16)},
        present={
            "ehr": torch.ones(count, dtype=torch.bool),
            "mri": torch.full((count,), with_image),
        },
        labels=torch.zeros(count, dtype=torch.int64),
    )


@pytest.mark.parametrize("size", [8, 16, 33, 64])
def test_one_encoder_fits_every_grid(size: int) -> None:
    encoder = ImageEncoder((4, 8, 8), 5)
    assert encoder(torch.zeros(2, 1, size, size, size + 1)).shape == (2, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"image_widths": [6]},
        {"image_widths": []},
        {"embedding": 3},
        {"image_weights": "imagenet"},
        {"image_weights": "phantom", "embedding_size": 8},
        {"image_weights": "phantom", "image_widths": [8, 16]},
    ],
)
def test_wrong_model_options_are_refused_with_what_is_known(
    options: dict[str, OptionValue],
) -> None:
    with pytest.raises(ConfigError, match=r"FH-MODEL-001.*image_weights"):
        build_multimodal(_contract(), 1, options)


def test_an_encoder_without_patients_has_no_gradient_at_all() -> None:
    model = build_multimodal(_contract(), 1, {})
    model(_batch(3, with_image=False)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is None for name, grad in grads.items() if "encoders.volume_mri" in name)
    assert grads["absent.volume_mri"] is not None


def test_a_frozen_image_encoder_does_not_train() -> None:
    model = build_multimodal(_contract(), 1, {"freeze_image_encoder": True})
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert not any(name.startswith("encoders.volume_mri") for name in trainable)


class _Sequential(nn.Module):
    head_prefixes: tuple[str, ...] = ("layers.0",)

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: _Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), r"FH-MODEL-003 layer 'layers.1'"),
        (lambda: _Sequential(nn.Linear(2, 2).double()), "FH-MODEL-004"),
        (lambda: _Sequential(nn.Linear(2, 2)).requires_grad_(requires_grad=False), "FH-MODEL-005"),
        (lambda: _Sequential(nn.ReLU(), nn.Linear(2, 2)), "FH-MODEL-006"),
        (lambda: nn.Linear(2, 2), "FH-MODEL-006"),
    ],
)
def test_a_model_that_cannot_travel_is_refused(make: Callable[[], nn.Module], code: str) -> None:
    with pytest.raises(ConfigError, match=code):
        check_model(make())


class TestBinaryClassification:
    def test_needs_two_label_codes(self) -> None:
        with pytest.raises(ConfigError, match="FH-MODEL-007"):
            BinaryClassification(_contract((0, 1, 2)), {})

    def test_refuses_unknown_options(self) -> None:
        with pytest.raises(ConfigError, match="FH-MODEL-001"):
            BinaryClassification(_contract(), {"weight": 2.0})

    @pytest.mark.parametrize("weight", [1.0, 3.0])
    def test_loss_is_the_weighted_cross_entropy(self, weight: float) -> None:
        task = BinaryClassification(_contract(), {"positive_weight": weight})
        logits, labels = torch.tensor([[0.3], [-1.2]]), torch.tensor([1, 0])
        p = torch.sigmoid(logits.squeeze(1))
        expected = (-weight * p[0].log() - (1 - p[1]).log()) / 2
        torch.testing.assert_close(task.loss(logits, labels), expected)

    def test_probabilities_are_float64_of_one_column(self) -> None:
        task = BinaryClassification(_contract(), {})
        found = task.probabilities(torch.tensor([[0.0], [100.0]]))
        assert found.tolist() == [0.5, 1.0]

    def test_no_patient_has_no_metric(self) -> None:
        task = BinaryClassification(_contract(), {})
        nothing = task.probabilities(torch.empty(0, 1))
        assert task.metrics(nothing, torch.empty(0, dtype=torch.int64).numpy()) == {}


class TestPhantomEncoder:
    def test_shipped_weights_have_their_digest_and_label(self) -> None:
        payload = pretrained.WEIGHTS_FILE.read_bytes()
        assert hashlib.sha256(payload).hexdigest() == pretrained.WEIGHTS_SHA256
        assert len(payload) < 120_000
        with safetensors.safe_open(pretrained.WEIGHTS_FILE, framework="pt") as stored:
            assert stored.metadata()["label"] == "pretrained on synthetic phantoms, not clinical"

    def test_damaged_weights_are_refused(self, tmp_path: Path) -> None:
        damaged = tmp_path / "weights.safetensors"
        payload = bytearray(pretrained.WEIGHTS_FILE.read_bytes())
        payload[-1] ^= 1
        damaged.write_bytes(payload)
        encoder = ImageEncoder(pretrained.ENCODER_WIDTHS, pretrained.ENCODER_EMBEDDING_SIZE)
        with pytest.raises(ConfigError, match="FH-MODEL-010"):
            pretrained.load_phantom_encoder(encoder, path=damaged)
        with pytest.raises(ConfigError, match="FH-MODEL-010"):
            pretrained.load_phantom_encoder(encoder, path=tmp_path / "none")

    @pytest.mark.parametrize("size", [16, 32])
    def test_it_tells_the_lesion_load_of_new_phantoms(self, size: int) -> None:
        encoder = ImageEncoder(pretrained.ENCODER_WIDTHS, pretrained.ENCODER_EMBEDDING_SIZE)
        pretrained.load_phantom_encoder(encoder)
        found = load_correlation(encoder, read_anatomy(), size=size, count=128, seed=5)
        assert found > 0.6


class TestPhantoms:
    def test_phantoms_are_a_pure_function_of_the_generator(self) -> None:
        anatomy = read_anatomy()
        first, again = (
            draw_phantoms(anatomy, 4, 16, torch.Generator().manual_seed(3)) for _ in range(2)
        )
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])

    def test_phantoms_are_z_scored_at_every_size(self) -> None:
        for size in (16, 32):
            volumes, log_load = draw_phantoms(read_anatomy(), 3, size, torch.Generator())
            assert volumes.shape == (3, 1, size, size, size)
            assert log_load.shape == (3,)
            flat = volumes.flatten(1)
            torch.testing.assert_close(flat.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
            torch.testing.assert_close(flat.std(1), torch.ones(3), atol=1e-4, rtol=0)

    def test_pretraining_is_a_pure_function_of_its_seed(self) -> None:
        anatomy = read_anatomy()
        losses: list[float] = []

        def weights(seed: int) -> dict[str, Tensor]:
            plan = PretrainingPlan(seed=seed, num_steps=2, batch_size=4, sizes=(16,))
            encoder = pretrain(anatomy, plan, on_step=lambda _, loss: losses.append(loss))
            return dict(encoder.state_dict())

        first, again, other = weights(1), weights(1), weights(2)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)
        assert len(losses) == 6


def test_seeds_differ_when_any_part_differs() -> None:
    seeds = [
        derive_seed(1, "a", 1),
        derive_seed(1, "a", 2),
        derive_seed(1, "a1"),
        derive_seed("1", "a", 1),
        derive_seed(2, "a", 1),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
