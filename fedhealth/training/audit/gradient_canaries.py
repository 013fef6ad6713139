"""The one-run audit on the product's own private steps, with gradient canaries. Called by the site's audit."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.privacy.audit.one_run import Guesses, guess_extremes
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.audit.bench import Bench, canary_run, take_steps
from fedhealth.training.audit.no_noise import NoNoise

GUESSED_SHARE = 1 / 3
"""Guesses a canary. Fixed beforehand; for canaries whose scores are Gaussian, a third gives within a tenth of the
best bound at every noise at which an audit of 100 to 1000 canaries sees anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """Guesses about the coins; `appearances` are sums that a canary left behind (see `CanaryRun.released`)."""

    guesses: Guesses
    is_included: NDArray[np.bool_] = field(repr=False)
    appearances: NDArray[np.float64] = field(repr=False)


def num_guesses(num_canaries: int) -> int:
    """How many coins the attacker guesses."""
    return max(1, round(num_canaries * GUESSED_SHARE))


def attack_gradients(
    bench: Bench, mechanisms: Sequence[PatientMechanism], num_canaries: int
) -> CanaryResult:
    """Train with half of the canaries, by the mechanisms one after another, and guess which half from the gradients.

    Args:
        bench: patients and steps.
        mechanisms: one for each round; all with the same clipping norm and expected batch size.
        num_canaries: M.

    Raises:
        UsageError: FH-AUDIT-002 the training diverged.
        PrivacyError, TrainingError: as `run_private_steps`.
    """
    return _attack(bench, mechanisms, num_canaries, Randomness.from_os())


def attack_without_noise(
    bench: Bench, mechanisms: Sequence[PatientMechanism], num_canaries: int
) -> CanaryResult:
    """The positive control: the same attack on the same steps, with no noise in them."""
    return _attack(bench, mechanisms, num_canaries, NoNoise(Randomness.from_os()))


def _attack(
    bench: Bench,
    mechanisms: Sequence[PatientMechanism],
    num_canaries: int,
    randomness: Randomness,
) -> CanaryResult:
    is_included = bench.rng.random(num_canaries) < 0.5  # noqa: PLR2004 - a fair coin
    run = canary_run(bench, is_included, bench.patients)
    take_steps(bench, run.learner, run.dataset, mechanisms, randomness)
    scores = run.released(mechanisms[0])
    return CanaryResult(
        guesses=guess_extremes(scores, is_included, num_guesses(num_canaries)),
        is_included=is_included,
        appearances=scores,
    )
