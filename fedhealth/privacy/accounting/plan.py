"""What a study's privacy settings mean for one site: rates, noise, steps, and the events that they make.

Everything follows from the study and the site's *declared* size, never from the number of patients that it has: two
data sets that differ in one patient give the same plan.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from fedhealth.config.privacy import PatientPrivacy
from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.calibration import least_noise
from fedhealth.privacy.accounting.events import Event, GaussianRelease, PoissonSubsampledGaussian
from fedhealth.privacy.accounting.split_id import split_id

LARGEST_DELTA: Final = 1e-3
DELTA_SHARE: Final = 0.1
"""Delta times the number of patients: publishing one patient in full with chance delta each must stay unlikely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """One site's part in a study with patient-level privacy.

    Attributes:
        sampling_rate: chance that a patient is in a step.
        noise_multiplier: of a training step, over the clipping norm.
        expected_batch_size: the constant that noised sums are divided by.
        delta: of every epsilon of this site in this study.
        target_epsilon: what the study promises its patients; None when it fixes the noise instead.
        steps_per_round: by run.
        num_rounds: by run.
        spare_rounds: rounds of the longest run that may be repeated inside the target.
        metrics_noise_multiplier: of one release of all metrics together; None when none leave.
        metrics_releases: planned ones, spare rounds included.
        split_id: names the split whose sides are disjoint.
        declared_validation_size: public; what sums of metrics are divided by.
    """

    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float
    expected_batch_size: float
    delta: float
    target_epsilon: float | None
    steps_per_round: Mapping[str, int]
    num_rounds: Mapping[str, int]
    spare_rounds: int
    metrics_noise_multiplier: float | None
    metrics_releases: int
    split_id: str
    declared_validation_size: int

    def mechanism(self, run_name: str) -> PatientMechanism:
        """DP-SGD of one round of that run. Raises KeyError for an unknown run."""
        return PatientMechanism(
            sampling_rate=self.sampling_rate,
            noise_multiplier=self.noise_multiplier,
            clipping_norm=self.clipping_norm,
            expected_batch_size=self.expected_batch_size,
            num_steps=self.steps_per_round[run_name],
        )

    def train_event(self, run_name: str) -> PoissonSubsampledGaussian:
        """What one round of that run costs. Raises KeyError for an unknown run."""
        return self._train(self.noise_multiplier, self.steps_per_round[run_name])

    def metrics_event(self) -> GaussianRelease:
        """What one release of metrics costs.

        Raises:
            PrivacyError: FH-PRIVACY-029 this study releases none.
        """
        if self.metrics_noise_multiplier is None:
            raise PrivacyError(
                "FH-PRIVACY-029",
                "this study releases no metrics.",
                why="Nothing is planned for them, so nothing may leave.",
                fix="Set privacy.release_metrics in the study, before it starts.",
            )
        return _metrics(self.metrics_noise_multiplier, 1, self.split_id)

    @property
    def planned_steps(self) -> int:
        """Training steps of the whole study, spare rounds included."""
        return planned_steps(self.steps_per_round, self.num_rounds, self.spare_rounds)

    def planned_events(self) -> tuple[Event, ...]:
        """The whole study, spare rounds included."""
        trained = self._train(self.noise_multiplier, self.planned_steps)
        if self.metrics_noise_multiplier is None:
            return (trained,)
        return (
            trained,
            _metrics(self.metrics_noise_multiplier, self.metrics_releases, self.split_id),
        )

    def _train(self, noise: float, steps: int) -> PoissonSubsampledGaussian:
        return _training(self.sampling_rate, noise, steps, self.split_id)


def plan_site(study: Study, declared_train_size: int) -> SitePlan | None:
    """The plan of a site of that declared size; None when the study has no patient-level privacy.

    Raises:
        PrivacyError: FH-PRIVACY-025 delta is above 0.1 / declared size, 026 it is 1 / declared size or more,
            015 to 019 the target epsilon cannot be met.
    """
    if study.privacy is None:
        return None
    privacy = study.privacy
    delta = privacy.delta if privacy.delta is not None else default_delta(declared_train_size)
    check_delta(delta, declared_train_size)
    per_round = steps_per_round(study, declared_train_size)
    steps = {run.name: per_round * trainings_per_round(run) for run in study.runs}
    rounds = {run.name: run.num_rounds for run in study.runs}
    rate = min(1.0, study.training.batch_size / declared_train_size)
    releases = planned_releases(study, privacy)
    noise, metrics_noise = _noises(
        privacy, rate, planned_steps(steps, rounds, privacy.spare_rounds), releases, delta
    )
    split = study.data.split
    return SitePlan(
        sampling_rate=rate,
        noise_multiplier=noise,
        clipping_norm=privacy.clipping_norm,
        expected_batch_size=float(min(study.training.batch_size, declared_train_size)),
        delta=delta,
        target_epsilon=privacy.target_epsilon,
        steps_per_round=MappingProxyType(steps),
        num_rounds=MappingProxyType(rounds),
        spare_rounds=privacy.spare_rounds,
        metrics_noise_multiplier=metrics_noise,
        metrics_releases=releases,
        split_id=split_id(study),
        declared_validation_size=max(
            1, round(declared_train_size * split.validation / split.train)
        ),
    )


def default_delta(declared_train_size: int) -> float:
    """The smaller of 0.001 and 0.1 / declared size."""
    return min(LARGEST_DELTA, DELTA_SHARE / declared_train_size)


def check_delta(delta: float, declared_train_size: int) -> None:
    """Refuse a delta that would allow to publish a patient.

    Raises:
        PrivacyError: FH-PRIVACY-026 delta is 1/n or more, 025 it is above 0.1/n.
    """
    if delta * declared_train_size >= 1:
        raise PrivacyError(
            "FH-PRIVACY-026",
            f"delta is {delta:g}, not below 1/{declared_train_size}.",
            why="A site that publishes one patient chosen by chance, in full, would keep such a promise.",
            fix=f"Give a delta of at most {DELTA_SHARE / declared_train_size:.3g}, or leave it out.",
        )
    if delta > DELTA_SHARE / declared_train_size:
        raise PrivacyError(
            "FH-PRIVACY-025",
            f"delta is {delta:g}, above 0.1/{declared_train_size}.",
            why="Over all patients of the site, the chance that the promise fails for somebody is too large.",
            fix=f"Give a delta of at most {DELTA_SHARE / declared_train_size:.3g}, or leave it out.",
        )


def trainings_per_round(run: RunPlan) -> int:
    """How often a round trains on the site's patients: Ditto trains the shared model, and then the site's own."""
    return 2 if run.personalisation == "ditto" else 1


def steps_per_round(study: Study, declared_train_size: int) -> int:
    """Optimiser steps of one local round: epochs are counted in the declared size."""
    training = study.training
    if training.local_steps is not None:
        return training.local_steps
    return (training.local_epochs or 1) * math.ceil(declared_train_size / training.batch_size)


def planned_steps(steps: Mapping[str, int], rounds: Mapping[str, int], spare_rounds: int) -> int:
    """Steps of the whole study: every round of every run, and the spare rounds of the longest run."""
    return sum(steps[run] * rounds[run] for run in steps) + spare_rounds * max(steps.values())


def planned_releases(study: Study, privacy: PatientPrivacy) -> int:
    """Releases of metrics: at every round and at the end of each run, or at the end of each run only."""
    if privacy.release_metrics == "never":
        return 0
    closings = len(study.runs)
    if privacy.release_metrics == "closing":
        return closings
    return closings + sum(run.num_rounds for run in study.runs) + privacy.spare_rounds


def _noises(
    privacy: PatientPrivacy, rate: float, steps: int, releases: int, delta: float
) -> tuple[float, float | None]:
    """Noise multipliers of training and of metrics."""
    if privacy.target_epsilon is None:
        return privacy.noise_multiplier or 0.0, privacy.metrics_noise_multiplier
    training = _training_noise(rate, steps, privacy.target_epsilon, delta)
    metrics = _metrics_noise(releases, privacy.target_epsilon, delta) if releases else None
    return training, metrics


@lru_cache(maxsize=1024)
def _training_noise(rate: float, steps: int, target: float, delta: float) -> float:
    return least_noise(
        lambda noise: (_training(rate, noise, steps, "plan"),), target_epsilon=target, delta=delta
    )


@lru_cache(maxsize=1024)
def _metrics_noise(releases: int, target: float, delta: float) -> float:
    return least_noise(
        lambda noise: (_metrics(noise, releases, "plan"),), target_epsilon=target, delta=delta
    )


def _training(rate: float, noise: float, steps: int, split: str) -> PoissonSubsampledGaussian:
    return PoissonSubsampledGaussian(
        sampling_rate=rate, noise_multiplier=noise, steps=steps, population="train", split_id=split
    )


def _metrics(noise: float, releases: int, split: str) -> GaussianRelease:
    return GaussianRelease(
        unit="patient",
        noise_multiplier=noise,
        steps=releases,
        population="validation",
        split_id=split,
    )
