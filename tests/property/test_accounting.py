"""Rules of composition for arbitrary events."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.privacy.accounting.accountants import compose, rdp_bound
from fedhealth.privacy.accounting.events import (
    Event,
    GaussianRelease,
    PoissonSubsampledGaussian,
    merge_events,
)

FEW = settings(max_examples=5, deadline=None)
rates = st.floats(0.005, 1.0)
noises = st.floats(0.4, 60.0)


def sampled(rate: float, noise: float, steps: int) -> PoissonSubsampledGaussian:
    return PoissonSubsampledGaussian(
        sampling_rate=rate, noise_multiplier=noise, steps=steps, split_id="s"
    )


@st.composite
def events(draw: st.DrawFn) -> Event:
    steps = draw(st.integers(1, 200))
    if draw(st.booleans()):
        return sampled(draw(rates), draw(noises), steps)
    return GaussianRelease(
        unit="patient",
        noise_multiplier=draw(noises),
        steps=steps,
        population=draw(st.sampled_from(["train", "validation", "all"])),
        split_id=draw(st.sampled_from(["s", "t"])),
    )


@FEW
@given(rate=rates, noise=noises, parts=st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_splitting_steps_changes_nothing(rate: float, noise: float, parts: list[int]) -> None:
    split = compose([sampled(rate, noise, steps) for steps in parts], delta=1e-4)
    assert split == compose([sampled(rate, noise, sum(parts))], delta=1e-4)


@FEW
@given(listed=st.lists(events(), min_size=1, max_size=4), order=st.randoms())
def test_order_and_merging_change_nothing(listed: list[Event], order: object) -> None:
    shuffled = list(listed)
    order.shuffle(shuffled)  # type: ignore[attr-defined] - a random.Random, which hypothesis types loosely
    assert compose(shuffled, delta=1e-4) == compose(merge_events(listed), delta=1e-4)


@FEW
@given(listed=st.lists(events(), min_size=1, max_size=3), extra=events())
def test_another_event_never_costs_less_and_rdp_is_never_below(
    listed: list[Event], extra: Event
) -> None:
    before = compose(listed, delta=1e-4)
    after = compose([*listed, extra], delta=1e-4)
    # 1 %: the loss grid of the two may differ (GRID_PER_STD).
    assert after.epsilon >= before.epsilon * 0.99 - 1e-4
    assert after.epsilon_rdp >= after.epsilon
    assert rdp_bound([*listed, extra], delta=1e-4) <= after.epsilon_rdp


@FEW
@given(rate=rates, noise=noises, steps=st.integers(1, 300))
def test_more_noise_never_costs_more(rate: float, noise: float, steps: int) -> None:
    less, more = (
        compose([sampled(rate, sigma, steps)], delta=1e-4).epsilon for sigma in (noise, 1.1 * noise)
    )
    assert more <= less * (1 + 1e-3) + 1e-6
