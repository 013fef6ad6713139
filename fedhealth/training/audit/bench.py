"""The product's private steps on a bench: a site's patients, a model with a weight for each canary. Called by attacks.

Shape legend: B records, M canaries.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhealth.config.study import OptimizerConfig
from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.data.batch import Batch, PatientDataset
from fedhealth.models.build import trainable_parameters
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.audit.made_up_patients import made_up_patients
from fedhealth.training.frozen_encoders import apply_frozen_encoders
from fedhealth.training.learner import Learner
from fedhealth.training.local_steps import StepPlan
from fedhealth.training.private_steps import clipped_gradients, run_private_steps

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study


class PrivateSteps(Protocol):
    """The shape of `run_private_steps`."""

    def __call__(  # noqa: D102 - see `run_private_steps`
        self,
        learner: Learner,
        dataset: PatientDataset,
        plan: StepPlan,
        mechanism: PatientMechanism,
        randomness: Randomness,
        *,
        gradients: ClippedGradients | None = None,
    ) -> None: ...


LEARNING_RATE: Final = 0.01
"""Of the audited steps: plain SGD, so that a weight's change is the sum of what was released. The optimiser comes
after the noise; privacy does not depend on it."""
_CANARY_TABLE: Final = "~canaries"
_CANARY_PULL: Final = 1e6
"""Gradient of a canary before clipping, over the loss's own: whatever else it has is a millionth of it."""
_ENCODING_BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every attack needs. `steps` is the product's own, except in tests of the audit itself.

    Attributes:
        study: with plain SGD and without modality dropout (see `bench_study`).
        run: decides nothing but which tensors are called private; all of them are noised.
        patients: the site's training patients, all records.
        device: as in site.yaml.
        rng: of coins and made-up patients. Not secret: nothing of the audit is released.
    """

    study: "Study"
    run: "RunPlan"
    patients: tuple[Patient, ...] = field(repr=False)
    device: str
    rng: np.random.Generator = field(repr=False)
    steps: PrivateSteps = run_private_steps


def bench_study(study: "Study", *, learning_rate: float = LEARNING_RATE) -> "Study":
    """The study with an optimiser that hides nothing and no modality dropout; data, model and loss stay."""
    sgd = OptimizerConfig(name="sgd").model_copy(update={"learning_rate": learning_rate})
    training = study.training.model_copy(update={"optimizer": sgd, "modality_dropout": 0.0})
    return study.model_copy(update={"training": training})


class CanaryModel(nn.Module):
    """A model and one weight a canary: gradient canaries that go through clipping like any patient.

    A canary's gradient is, but for a millionth, along its own weight and far above any clipping norm (the "Dirac
    canary" of Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning", arXiv 2302.07956).
    The weights never change a logit, so that a canary pulls as hard in the last step as in the first.
    """

    def __init__(self, model: nn.Module, num_canaries: int) -> None:
        super().__init__()
        self.model = model
        self.canaries = nn.Linear(num_canaries, 1, bias=False)
        nn.init.zeros_(self.canaries.weight)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, num_outputs): the model's own."""
        logits: Tensor = self.model(batch)
        pulls_B1 = self.canaries(batch.tables[_CANARY_TABLE])  # noqa: N806 - shape suffix
        # The difference is exactly zero: subtracting first keeps the logits' last bits.
        pulled = logits[:, :1] + (pulls_B1 - pulls_B1.detach())
        return torch.cat([pulled, logits[:, 1:]], dim=1)


class CanaryDataset(PatientDataset):
    """Patients, and made-up patients each of whom carries one canary.

    Args:
        learner: whose contract and device count; frozen encoders are taken out of its model.
        patients: records of the site's patients.
        carriers: made-up patients.
        canaries: (K,) number of each carrier's canary, 0..num_canaries-1.
        num_canaries: M.
    """

    def __init__(
        self,
        learner: Learner,
        patients: Sequence[Patient],
        carriers: Sequence[Patient],
        canaries: NDArray[np.intp],
        num_canaries: int,
    ) -> None:
        super().__init__([*patients, *carriers], learner.contract)
        apply_frozen_encoders(learner, [self], batch_size=_ENCODING_BATCH)
        self._pulls = torch.zeros((len(self), num_canaries), dtype=torch.float32)
        rows = torch.arange(len(patients), len(self))
        self._pulls[rows, torch.from_numpy(canaries.astype(np.int64))] = _CANARY_PULL

    def batch(self, indices: Sequence[int] | NDArray[np.integer] | Tensor) -> Batch:
        """As `PatientDataset.batch`, with a (B, M) table of who carries which canary."""
        batch = super().batch(indices)
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return replace(batch, tables={**batch.tables, _CANARY_TABLE: self._pulls[rows]})


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRun:
    """A learner with canary weights and its data; `released` reads what the steps have let out."""

    learner: Learner
    dataset: CanaryDataset
    signs: NDArray[np.float64] = field(repr=False)

    def released(self, mechanism: PatientMechanism) -> NDArray[np.float64]:
        """(M,) sum over steps of <canary's clipped gradient, released gradient>, in units of C^2 / expected batch.

        A canary that was in k noiseless steps scores k.
        """
        weight = self.learner.shared["canaries.weight"].detach().cpu().numpy()[0]
        scale = mechanism.expected_batch_size / (LEARNING_RATE * mechanism.clipping_norm)
        scores: NDArray[np.float64] = -self.signs * weight.astype(np.float64) * scale
        return scores


def canary_run(
    bench: Bench, is_included: NDArray[np.bool_], patients: Sequence[Patient]
) -> CanaryRun:
    """A fresh model with a weight for each canary, and the data: these patients and the included canaries."""
    learner = Learner(bench.study, bench.run, device=bench.device)
    made_up = made_up_patients(learner.contract, len(is_included), bench.rng)
    included = np.flatnonzero(is_included)
    carriers = [made_up[number] for number in included]
    dataset = CanaryDataset(learner, patients, carriers, included, len(is_included))
    learner.model = CanaryModel(learner.model, len(is_included)).to(learner.device)
    learner.shared, learner.private = dict(trainable_parameters(learner.model)), {}
    return CanaryRun(learner=learner, dataset=dataset, signs=_gradient_signs(learner, made_up))


def take_steps(
    bench: Bench,
    learner: Learner,
    dataset: PatientDataset,
    mechanisms: Iterable[PatientMechanism],
    randomness: Randomness,
    *,
    like: PatientDataset | None = None,
) -> None:
    """The product's private steps, one call a mechanism, as a session takes them round by round.

    `like` shows what patients look like where `dataset` holds none.
    """
    plan = StepPlan(
        config=bench.study.training, seed=0, proximal_mu=0.0, is_cancelled=lambda: False
    )
    gradients = clipped_gradients(learner, dataset if like is None else like)
    try:
        for mechanism in mechanisms:
            bench.steps(learner, dataset, plan, mechanism, randomness, gradients=gradients)
    finally:
        gradients.close()


def _gradient_signs(learner: Learner, patients: Sequence[Patient]) -> NDArray[np.float64]:
    """(M,) +1 or -1: the sign of the loss's gradient by the first logit, which depends on the label only."""
    codes = learner.contract.label_codes
    labels = torch.arange(len(codes))
    logits = torch.zeros((len(codes), learner.task.num_outputs), requires_grad=True)
    (gradient,) = torch.autograd.grad(learner.task.loss(logits, labels), logits)
    by_code = {code: float(torch.sign(gradient[row, 0])) for row, code in enumerate(codes)}
    return np.array([by_code[patient.label] for patient in patients])
