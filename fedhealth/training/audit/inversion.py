"""A made-up patient, rebuilt from the gradient of one step. Called by the site's audit.

Zhu et al. 2019, "Deep Leakage from Gradients", arXiv 1906.08935, algorithm 1 (match the gradient of a dummy patient to
the one that was released), with the distance of Geiping et al. 2020, "Inverting Gradients", arXiv 2003.14053, equation
4 (one minus the cosine, plus total variation of images). The attacker knows the weights and the label, the batch is
this one patient: nobody in a study is in a worse place.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhealth.config.data import VolumeConfig
from fedhealth.config.study import OptimizerConfig
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.data.batch import Batch, PatientDataset
from fedhealth.models.build import trainable_parameters
from fedhealth.models.seeds import derive_seed
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.audit.made_up_patients import made_up_patients
from fedhealth.training.learner import Learner
from fedhealth.training.local_steps import StepPlan, run_steps
from fedhealth.training.private_steps import run_private_steps

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

GRID: Final = 8
"""Voxels a side of the attacked images, the least that the data contract takes: the attack is easier than on the
study's own grid, and takes seconds."""
_ITERATIONS: Final = 300
_STEP_SIZE: Final = 0.1
_TOTAL_VARIATION: Final = 1e-3
_TINY: Final = 1e-12
_HIDDEN_UNITS: Final = 16
_OTHERS: Final = 32


class DenseModel(nn.Module):
    """A small model that gives its inputs away: every voxel and column has a weight in the first layer.

    Where the study's own model keeps a modality from the attacker even without privacy (a frozen encoder, pooling),
    the attack on this one still shows what clipping and noise do.
    """

    def __init__(self, example: Batch, num_outputs: int) -> None:
        super().__init__()
        num_inputs = sum(values[0].numel() for values in _inputs(example).values())
        self.hidden = nn.Linear(num_inputs, _HIDDEN_UNITS)
        self.output = nn.Linear(_HIDDEN_UNITS, num_outputs)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, num_outputs)."""
        inputs = torch.cat([values.flatten(1) for values in _inputs(batch).values()], dim=1)
        logits: Tensor = self.output(torch.sigmoid(self.hidden(inputs)))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """How close the rebuilt patients are to the true ones: correlation over all values of all patients.

    `by_chance` is the correlation with other made-up patients: what somebody gets who has seen no gradient.
    `similarity` (images only) is the structural similarity, 1 for the same image.
    """

    model: str
    modality: str
    correlation: float
    similarity: float | None
    by_chance: float
    num_patients: int


def inversion_study(study: "Study") -> "Study":
    """The study on a small grid, with steps that can be read off the weights: SGD, one patient, no dropout."""
    modalities = tuple(
        modality.model_copy(update={"shape": (GRID,) * 3})
        if isinstance(modality, VolumeConfig)
        else modality
        for modality in study.data.modalities
    )
    training = study.training.model_copy(
        update={
            "optimizer": OptimizerConfig(name="sgd", learning_rate=1.0),
            "batch_size": 1,
            "local_steps": 1,
            "local_epochs": None,
            "modality_dropout": 0.0,
        }
    )
    data = study.data.model_copy(update={"modalities": modalities})
    return study.model_copy(update={"data": data, "training": training})


def attack_study_model(
    study: "Study",
    run: "RunPlan",
    mechanism: PatientMechanism | None,
    *,
    num_patients: int,
    rng: np.random.Generator,
) -> tuple[Recovered, ...]:
    """Rebuild each of some made-up patients from one step of the study's model on it alone, and compare.

    Args:
        study: as `inversion_study` makes it.
        run: any run.
        mechanism: the study's clipping and noise; None: a step without privacy. Sampling and the number of steps
            are set to one step on the patient.
        num_patients: how many, one after another.
        rng: of the patients and of where the attack starts. Not secret: nobody is real.
    """
    learner = Learner(study, run.alone())
    return _attack("study's model", learner, study, mechanism, num_patients, rng)


def attack_dense_model(
    study: "Study",
    run: "RunPlan",
    mechanism: PatientMechanism | None,
    *,
    num_patients: int,
    rng: np.random.Generator,
) -> tuple[Recovered, ...]:
    """`attack_study_model` on a `DenseModel` with fixed first weights."""
    learner = Learner(study, run.alone())
    example = PatientDataset(made_up_patients(learner.contract, 1, rng), learner.contract)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed("dense model"))
        learner.model = DenseModel(example.batch([0]), learner.task.num_outputs)
    learner.shared, learner.private = dict(trainable_parameters(learner.model)), {}
    return _attack("small dense model", learner, study, mechanism, num_patients, rng)


def _attack(  # noqa: PLR0917 - the facts of one attack
    model: str,
    learner: Learner,
    study: "Study",
    mechanism: PatientMechanism | None,
    num_patients: int,
    rng: np.random.Generator,
) -> tuple[Recovered, ...]:
    first = {name: p.detach().clone() for name, p in learner.shared.items()}
    others = PatientDataset(
        made_up_patients(learner.contract, _OTHERS, rng), learner.contract
    ).batch(range(_OTHERS))
    truths, guesses = [], []
    for patient in made_up_patients(learner.contract, num_patients, rng):
        dataset = PatientDataset([patient], learner.contract)
        released = _released_gradient(learner, dataset, study, mechanism)
        for name, parameter in learner.shared.items():
            parameter.data.copy_(first[name])
        truth = dataset.batch([0])
        truths.append(_inputs(truth))
        guesses.append(_rebuild(learner, truth, released, rng))
    return tuple(
        _compare(
            (model, title),
            truths=[_flat(truth, names) for truth in truths],
            guesses=[_flat(guess, names) for guess in guesses],
            others=[_flat(_inputs(others.take(torch.tensor([i]))), names) for i in range(_OTHERS)],
            is_image=is_image,
        )
        for title, names, is_image in _modalities(learner)
    )


def _released_gradient(
    learner: Learner, dataset: PatientDataset, study: "Study", mechanism: PatientMechanism | None
) -> list[Tensor]:
    """What one step lets out, read off the weights as a server would."""
    before = [p.detach().clone() for p in learner.shared.values()]
    plan = StepPlan(config=study.training, seed=0, proximal_mu=0.0, is_cancelled=lambda: False)
    if mechanism is None:
        run_steps(learner, dataset, plan)
    else:
        one = replace(mechanism, sampling_rate=1.0, num_steps=1, expected_batch_size=1.0)
        run_private_steps(learner, dataset, plan, one, Randomness.from_os())
    after = learner.shared.values()
    return [old - new.detach() for old, new in zip(before, after, strict=True)]


def _rebuild(
    learner: Learner, truth: Batch, released: list[Tensor], rng: np.random.Generator
) -> dict[str, Tensor]:
    """The inputs whose gradient points as the released one does; only shapes and the label come from `truth`."""
    dummies = {
        name: torch.tensor(
            rng.normal(scale=0.1, size=values.shape), dtype=torch.float32, requires_grad=True
        )
        for name, values in _inputs(truth).items()
    }
    parameters = [p for _, p in trainable_parameters(learner.model)]
    optimizer = torch.optim.Adam(list(dummies.values()), lr=_STEP_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _ITERATIONS)
    learner.model.train()
    for _ in range(_ITERATIONS):
        batch = replace(
            truth,
            tables={name: dummies[name] for name in truth.tables},
            volumes={name: dummies[name] for name in truth.volumes},
        )
        loss = learner.task.loss(learner.model(batch), batch.labels)
        found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        distance = _cosine_distance(found, released)
        for name in truth.volumes:
            distance = distance + _TOTAL_VARIATION * _variation(dummies[name])
        optimizer.zero_grad()
        distance.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        schedule.step()
    return {name: dummy.detach() for name, dummy in dummies.items()}


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {**batch.tables, **batch.volumes}


def _modalities(learner: Learner) -> list[tuple[str, list[str], bool]]:
    """All tables together (one alone may have three columns, too few for a correlation), and each image."""
    tables = [table.name for table in learner.contract.tables]
    images = [(volume.name, [volume.name], True) for volume in learner.contract.volumes]
    return ([("tables", tables, False)] if tables else []) + images


def _flat(inputs: dict[str, Tensor], names: list[str]) -> NDArray[np.float64]:
    return np.concatenate([inputs[name].numpy().reshape(-1) for name in names]).astype(np.float64)


def _cosine_distance(found: tuple[Tensor | None, ...], released: list[Tensor]) -> Tensor:
    product, norm, other = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for mine, theirs in zip(found, released, strict=True):
        if mine is not None:
            product = product + (mine * theirs).sum()
            norm = norm + mine.square().sum()
        other = other + theirs.square().sum()
    return 1 - product / (norm * other + _TINY).sqrt()


def _variation(image: Tensor) -> Tensor:
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in (2, 3, 4)]).sum()


def _compare(
    names: tuple[str, str],
    *,
    truths: list[NDArray[np.float64]],
    guesses: list[NDArray[np.float64]],
    others: list[NDArray[np.float64]],
    is_image: bool,
) -> Recovered:
    similar = [_structural_similarity(a, b) for a, b in zip(truths, guesses, strict=True)]
    pairs = [(truth, other) for truth in truths for other in others]
    return Recovered(
        model=names[0],
        modality=names[1],
        correlation=_correlation(np.concatenate(truths), np.concatenate(guesses)),
        similarity=float(np.mean(similar)) if is_image else None,
        by_chance=_correlation(
            np.concatenate([truth for truth, _ in pairs]),
            np.concatenate([other for _, other in pairs]),
        ),
        num_patients=len(truths),
    )


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's; 0 where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + _TINY))


def _structural_similarity(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """SSIM over the whole image at once (Wang et al. 2004, equation 13), after scaling both to variance 1."""
    a, b = (v / (v.std() + _TINY) for v in (a, b))
    span = float(a.max() - a.min())
    first, second = (0.01 * span) ** 2, (0.03 * span) ** 2
    luminance = (2 * a.mean() * b.mean() + first) / (a.mean() ** 2 + b.mean() ** 2 + first)
    covariance = float(np.mean((a - a.mean()) * (b - b.mean())))
    return float(luminance * (2 * covariance + second) / (a.var() + b.var() + second))
