"""Direct measurements on the private steps: noise, clipping, sampling. They see a bug long before an attacker would.

An attack's bound is statistical and needs many canaries; what a step promises can be measured on the spot: the noise
of each tensor on no patients at all, what one patient moves without noise, how often a canary is drawn. Called by the
site's audit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.data.batch import PatientDataset
from fedhealth.models.build import trainable_parameters
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.audit.bench import (
    LEARNING_RATE,
    Bench,
    CanaryRun,
    bench_study,
    canary_run,
    take_steps,
)
from fedhealth.training.audit.gradient_canaries import CanaryResult
from fedhealth.training.audit.made_up_patients import made_up_patients
from fedhealth.training.audit.no_noise import NoNoise
from fedhealth.training.learner import Learner

FALSE_ALARM: Final = 1e-6
"""Chance that a correct step is called wrong, for each statistical measurement."""
_NOISE_VALUES: Final = 4_000_000
_MIN_REPEATS, _MAX_REPEATS = 8, 64
"""Steps: 64 show half the noise on a single weight; a large model needs fewer, and each costs more."""
_LEAST_VARIANCE: Final = 3.0
"""Of how often a canary is drawn; below it a binomial count is too skewed for the chi-squared distribution."""
_MOVED_PATIENTS: Final = 8
_OTHER_PATIENTS: Final = 16
_CLIPPING_TOLERANCE: Final = 1e-3
"""Relative; a sum is read off float32 weights, which costs 4e-5 of the norm for 14 million of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement beside the promise. Its name, value and verdict hold nothing about a patient."""

    what: str
    value: float
    promised: float
    is_too_weak: bool


def measure_noise(bench: Bench, mechanism: PatientMechanism) -> tuple[Measured, ...]:
    """Noise multiplier of every trainable tensor, from steps on a cohort without patients.

    Too weak: less noise than chance explains (chi-squared, one side, `FALSE_ALARM` over all tensors together).
    """
    learner = Learner(bench.study, bench.run, device=bench.device)
    nobody = PatientDataset((), learner.contract)
    parameters = dict(trainable_parameters(learner.model))
    total = sum(parameter.numel() for parameter in parameters.values())
    repeats = min(_MAX_REPEATS, max(_MIN_REPEATS, _NOISE_VALUES // total))
    single = replace(mechanism, num_steps=1)
    squares = dict.fromkeys(parameters, 0.0)

    def steps_from_zero() -> Iterator[PatientMechanism]:
        """One step at a time; between two of them the weights are read and set back."""
        for _ in range(repeats):
            for parameter in parameters.values():
                parameter.data.zero_()
            yield single
            for name, parameter in parameters.items():
                squares[name] += float(parameter.detach().double().square().sum())

    somebody = PatientDataset(made_up_patients(learner.contract, 1, bench.rng), learner.contract)
    take_steps(bench, learner, nobody, steps_from_zero(), Randomness.from_os(), like=somebody)
    unit = LEARNING_RATE * mechanism.clipping_norm / mechanism.expected_batch_size
    found = []
    for name, parameter in parameters.items():
        num_values = repeats * parameter.numel()
        sum_of_squares = squares[name] / unit**2
        found.append(
            Measured(
                what=f"noise multiplier of {name}",
                value=math.sqrt(sum_of_squares / num_values),
                promised=mechanism.noise_multiplier,
                is_too_weak=_chance_of_less(
                    sum_of_squares / mechanism.noise_multiplier**2, num_values
                )
                < FALSE_ALARM / len(parameters),
            )
        )
    return tuple(found)


def measure_clipping(bench: Bench, mechanism: PatientMechanism) -> Measured:
    """The most that one patient moves the sum of a step without noise, over the clipping norm: at most 1.

    A step is taken with and without one patient, everybody drawn: once with a canary far above the norm, then with
    patients of the site.
    """
    everybody = replace(mechanism, sampling_rate=1.0, num_steps=1)
    by_id: dict[str, list[Patient]] = {}
    for record in bench.patients:
        by_id.setdefault(record.patient_id, []).append(record)
    groups = list(by_id.values())[: _OTHER_PATIENTS + _MOVED_PATIENTS]
    moved, others = groups[:_MOVED_PATIENTS], groups[_MOVED_PATIENTS:]
    base = [record for group in others for record in group]
    without = _one_step(bench, everybody, base, with_canary=False)
    largest = float((_one_step(bench, everybody, base, with_canary=True) - without).norm())
    for group in moved:
        shift = _one_step(bench, everybody, [*base, *group], with_canary=False) - without
        largest = max(largest, float(shift.norm()))
    return Measured(
        what="one patient's largest share of a step, over the clipping norm",
        value=largest / mechanism.clipping_norm,
        promised=1.0,
        is_too_weak=not largest <= mechanism.clipping_norm * (1 + _CLIPPING_TOLERANCE),
    )


def measure_sampling(
    control: CanaryResult, mechanisms: Sequence[PatientMechanism]
) -> tuple[Measured, ...]:
    """How often canaries were drawn in the noiseless control: the rate, and its spread from canary to canary.

    Too weak: drawn more often than a Poisson sampler of that rate would (normal tail, `FALSE_ALARM`); or, where a
    canary is drawn often enough to tell, counts that differ less or more than independent draws do (chi-squared,
    both sides): batches that are shuffled, or always the same, have no amplification by sampling.
    """
    num_steps = sum(mechanism.num_steps for mechanism in mechanisms)
    rate = mechanisms[0].sampling_rate
    drawn: NDArray[np.float64] = np.round(control.appearances[control.is_included])
    trials = max(1, drawn.size * num_steps)
    found = float(drawn.sum()) / trials
    measured = Measured(
        what="share of steps that a patient is in",
        value=found,
        promised=rate,
        is_too_weak=_tail(found - rate, math.sqrt(rate * (1 - rate) / trials)) < FALSE_ALARM,
    )
    variance = num_steps * rate * (1 - rate)
    if variance < _LEAST_VARIANCE or drawn.size < 2:  # noqa: PLR2004 - a spread needs two
        return (measured,)
    sum_of_squares = float(np.sum((drawn - drawn.mean()) ** 2)) / variance
    below = _chance_of_less(sum_of_squares, drawn.size - 1)
    spread = Measured(
        what="spread of that share over patients, over that of independent draws",
        value=math.sqrt(sum_of_squares / (drawn.size - 1)),
        promised=1.0,
        is_too_weak=min(below, 1 - below) < FALSE_ALARM / 2,
    )
    return (measured, spread)


def _one_step(
    bench: Bench, mechanism: PatientMechanism, records: list[Patient], *, with_canary: bool
) -> Tensor:
    """(P,) float64: the sum of clipped gradients over these records, and over one canary if asked.

    The learning rate makes the weights move by the sum in units of the clipping norm: far more than they round.
    """
    learning_rate = mechanism.expected_batch_size / mechanism.clipping_norm
    bench = replace(bench, study=bench_study(bench.study, learning_rate=learning_rate))
    run: CanaryRun = canary_run(bench, np.array([with_canary]), records)
    before = _flat(run.learner)
    take_steps(bench, run.learner, run.dataset, [mechanism], NoNoise(Randomness.from_os()))
    return (before - _flat(run.learner)) * mechanism.clipping_norm


def _flat(learner: Learner) -> Tensor:
    return torch.cat([p.detach().cpu().double().reshape(-1) for p in learner.shared.values()])


def _chance_of_less(chi_squared: float, num_values: int) -> float:
    """P[chi-squared with n degrees <= value], by Wilson and Hilferty's cube root (1931)."""
    spread = 2.0 / (9.0 * num_values)
    z = ((chi_squared / num_values) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _tail(excess: float, deviation: float) -> float:
    """P[normal > excess]; without deviation, any excess is impossible."""
    if deviation == 0.0:
        return 1.0 if excess <= 0.0 else 0.0
    return 0.5 * math.erfc(excess / deviation / math.sqrt(2.0))
