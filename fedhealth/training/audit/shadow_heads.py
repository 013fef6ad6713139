"""Membership inference with shadow heads, trained by the product's own steps. Called by the site's audit.

Each shadow model is a head on embeddings that are worked out once, trained on a random half of the site's training
patients. See `fedhealth.privacy.audit.membership` for the attack itself. Shape legend: K models, N patients, R records,
F features.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhealth.config.study import OptimizerConfig
from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.data.batch import Batch, PatientDataset
from fedhealth.models.build import trainable_parameters
from fedhealth.models.seeds import derive_seed
from fedhealth.privacy.audit.membership import (
    MembershipResult,
    confidences,
    judge_attack,
    likelihood_ratios,
    paired_memberships,
)
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.audit.patient_canaries import patient_losses
from fedhealth.training.learner import Learner
from fedhealth.training.local_steps import StepPlan, run_steps
from fedhealth.training.private_steps import run_private_steps

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

_EMBEDDING: Final = "~embedding"
_BATCH: Final = 64
_WIDE_UNITS: Final = 256
_HEART_EPOCHS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowPlan:
    """What the shadow models are trained with.

    Attributes:
        study: model, loss and training section, as the study has them.
        run: any run; nothing is private here.
        patients: the site's training patients, all records.
        rounds: one entry a round; None for a round without privacy.
        num_models: K.
        make_head: from the model's own head, as it starts, and the number of features to a shadow model's.
        device: as in site.yaml.
        rng: who is in which model. Not secret: nothing of the audit is released.
    """

    study: "Study"
    run: "RunPlan"
    patients: tuple[Patient, ...] = field(repr=False)
    rounds: Sequence[PatientMechanism | None]
    num_models: int
    device: str
    rng: np.random.Generator = field(repr=False)
    make_head: Callable[[nn.Module, int], nn.Module] = lambda head, _: head


def learning_by_heart(plan: ShadowPlan) -> ShadowPlan:
    """The attack's positive control: a wide head, trained without privacy until it knows its patients by heart."""
    optimizer = OptimizerConfig(name="adam", learning_rate=0.01)
    training = plan.study.training.model_copy(
        update={"optimizer": optimizer, "local_epochs": _HEART_EPOCHS, "local_steps": None}
    )
    study = plan.study.model_copy(update={"training": training})
    return replace(plan, study=study, rounds=[None], make_head=_wide_head)


class HeadOnly(nn.Module):
    """A head on embeddings (B, F) that the batch brings along."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, num_outputs)."""
        logits: Tensor = self.head(batch.tables[_EMBEDDING])
        return logits


class EmbeddedPatients(PatientDataset):
    """Patients as embeddings (R, F): what a shadow head sees of them."""

    def __init__(
        self,
        patients: Sequence[Patient],
        learner: Learner,
        embeddings_RF: Tensor,  # noqa: N803
    ) -> None:
        super().__init__(patients, learner.contract, memory_limit_bytes=0)
        self._embeddings = embeddings_RF

    def batch(self, indices: Sequence[int] | NDArray[np.integer] | Tensor) -> Batch:
        """A batch with embeddings and labels only; no volume is read."""
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return Batch(
            tables={_EMBEDDING: self._embeddings[rows]},
            missing={},
            volumes={},
            present={},
            labels=self.labels[rows],
        )


def attack_members(plan: ShadowPlan) -> MembershipResult:
    """Train the shadow heads and judge how well they tell members from others.

    Raises:
        UsageError: FH-AUDIT-003 too few models or patients.
        PrivacyError, SiteDataError, TrainingError: as the steps.
    """
    run = plan.run.alone()
    learner = Learner(plan.study, run, device=plan.device)
    first_head, embeddings = embed(learner, plan.patients)
    ids = [patient.patient_id for patient in plan.patients]
    place = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    owner_R = np.array([place[name] for name in ids])  # noqa: N806
    is_member = paired_memberships(plan.num_models, len(place), plan.rng)
    everybody = EmbeddedPatients(plan.patients, learner, embeddings)
    confidence = np.empty(is_member.shape)
    for number, members in enumerate(is_member):
        rows = np.flatnonzero(members[owner_R])
        chosen = EmbeddedPatients(
            [plan.patients[row] for row in rows], learner, embeddings[torch.from_numpy(rows)]
        )
        head = plan.make_head(copy.deepcopy(first_head), embeddings.shape[1])
        learner.model = HeadOnly(head).to(learner.device)
        learner.shared, learner.private = dict(trainable_parameters(learner.model)), {}
        _train(plan, learner, chosen, number)
        of_records = confidences(np.exp(-patient_losses(learner, everybody)))
        confidence[number] = np.bincount(owner_R, weights=of_records) / np.bincount(owner_R)
    return judge_attack(likelihood_ratios(confidence, is_member), is_member, plan.rng)


def embed(learner: Learner, patients: Sequence[Patient]) -> tuple[nn.Module, Tensor]:
    """The model's head as it starts, and what goes into it: (R, F) float32 of each record.

    A model that names no single head, or one that sees no features (an intercept), gives its encoded tables instead,
    with a linear layer as the head.
    """
    dataset = PatientDataset(patients, learner.contract)
    head = _head_on_features(learner, dataset.batch([0]))
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0])) if head else None
    learner.model.eval()
    with torch.inference_mode():
        for rows in torch.split(torch.arange(len(dataset)), _BATCH):
            batch = dataset.batch(rows)
            if head is None:
                seen.append(torch.cat([*batch.tables.values(), *batch.missing.values()], dim=1))
            else:
                learner.model(batch.to(learner.device))
    if hook is not None:
        hook.remove()
    embeddings = torch.cat([part.cpu() for part in seen]).clone()
    if head is None:
        head = nn.Linear(embeddings.shape[1], learner.task.num_outputs)
    return head, embeddings


def _head_on_features(learner: Learner, one_record: Batch) -> nn.Module | None:
    """The module of the model's one head prefix, if what goes into it is (B, F) features."""
    prefixes: tuple[str, ...] = getattr(learner.model, "head_prefixes", ())
    modules: dict[str, nn.Module] = dict(learner.model.named_modules())
    head = modules.get(prefixes[0].rstrip(".")) if prefixes else None
    if head is None or len(prefixes) > 1:
        return None
    given: list[object] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    with torch.inference_mode():
        learner.model.eval()
        learner.model(one_record.to(learner.device))
    hook.remove()
    match given:
        case [Tensor() as features] if features.dim() == 2 and features.shape[0] == len(one_record):  # noqa: PLR2004
            return head
    return None


def _wide_head(head: nn.Module, num_features: int) -> nn.Module:
    num_outputs = [p.shape[0] for p in head.parameters()][-1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed("wide head"))
        return nn.Sequential(
            nn.LayerNorm(num_features),
            nn.Linear(num_features, _WIDE_UNITS),
            nn.ReLU(),
            nn.Linear(_WIDE_UNITS, num_outputs),
        )


def _train(plan: ShadowPlan, learner: Learner, chosen: PatientDataset, model_number: int) -> None:
    config = plan.study.training.model_copy(update={"modality_dropout": 0.0})
    randomness = Randomness.from_os()
    for number, mechanism in enumerate(plan.rounds):
        steps = StepPlan(
            config=config,
            seed=derive_seed(plan.study.seed, "shadow head", model_number, number),
            proximal_mu=0.0,
            is_cancelled=lambda: False,
        )
        if mechanism is None:
            run_steps(learner, chosen, steps)
        else:
            run_private_steps(learner, chosen, steps, mechanism, randomness)
