"""The least noise for a target epsilon, on a grid of four digits."""

import math

import pytest

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.calibration import least_noise
from fedhealth.privacy.accounting.events import GaussianRelease, PoissonSubsampledGaussian


def steps(noise: float) -> tuple[PoissonSubsampledGaussian, ...]:
    return (
        PoissonSubsampledGaussian(
            sampling_rate=0.16, noise_multiplier=noise, steps=100, split_id="s"
        ),
    )


def release(noise: float) -> tuple[GaussianRelease, ...]:
    return (
        GaussianRelease(
            unit="patient",
            noise_multiplier=noise,
            steps=1,
            population="validation",
            split_id="s",
        ),
    )


@pytest.mark.parametrize("target", [0.1, 1.0, 8.0, 100.0])
def test_the_noise_meets_the_target_and_the_next_smaller_one_does_not(target: float) -> None:
    noise = least_noise(steps, target_epsilon=target, delta=5e-4)
    below = float(f"{noise - 10 ** (math.floor(math.log10(noise)) - 3):.4g}")
    assert compose(steps(noise), delta=5e-4).epsilon <= target
    assert compose(steps(below), delta=5e-4).epsilon > target
    assert float(f"{noise:.4g}") == noise


def test_a_stricter_target_asks_for_more_noise() -> None:
    noises = [least_noise(release, target_epsilon=e, delta=1e-4) for e in (0.001, 0.5, 5.0)]
    assert noises == sorted(noises, reverse=True)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (0.0, "FH-PRIVACY-015"),
        (-1.0, "FH-PRIVACY-016"),
        (math.inf, "FH-PRIVACY-017"),
        (-math.inf, "FH-PRIVACY-016"),
        (math.nan, "FH-PRIVACY-018"),
        (1e-12, "FH-PRIVACY-019"),
    ],
)
def test_a_target_that_cannot_be_is_its_own_error(target: float, code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        least_noise(release, target_epsilon=target, delta=1e-7)
    assert caught.value.code == code
    assert caught.value.why
    assert caught.value.fix
