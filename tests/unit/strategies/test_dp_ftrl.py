"""DP-FTRL: its noise has the covariance of the matrix mechanism, and its account is the mechanism's."""

from math import comb

import numpy as np
import pytest
from fedhealth_strategies.dp_ftrl import DpFtrl

from fedhealth.errors import AggregationError, ConfigError

from .dp_rounds import aggregator, noise_of_rounds, one_round, spec_of

SPEC = spec_of(40_000, 60_000)
SMALL = spec_of(7, 5)
ROUNDS = 6


def dense(bands: int, num_rounds: int) -> np.ndarray:
    """C, written down entry by entry."""
    matrix = np.zeros((num_rounds, num_rounds))
    for row in range(num_rounds):
        for column in range(max(0, row - bands + 1), row + 1):
            k = row - column
            matrix[row, column] = comb(2 * k, k) / 4**k
    return matrix


@pytest.mark.parametrize("bands", [1, 2, 3, 6])
def test_noise_over_rounds_has_the_covariance_of_the_dense_matrix(bands: int) -> None:
    one = aggregator(
        SPEC, "dp-ftrl", bands=bands, noise_multiplier=2.0, clipping_norm=0.3, rounds=ROUNDS
    )
    noise, _ = noise_of_rounds(one, SPEC, ROUNDS)
    inverse = np.linalg.inv(dense(bands, ROUNDS))
    wanted = (2.0 * 0.3 / 4) ** 2 * inverse @ inverse.T
    measured = noise @ noise.T / noise.shape[1]
    # An entry of a sample covariance of 100 000 values errs by at most sqrt(2) * var / sqrt(n): 5 of that.
    tolerance = 5 * np.sqrt(2) * wanted.max() / np.sqrt(noise.shape[1])
    np.testing.assert_allclose(measured, wanted, atol=tolerance)


def test_part_of_the_noise_cancels_in_the_model() -> None:
    sums = {}
    for bands in (1, ROUNDS):
        one = aggregator(
            SPEC, "dp-ftrl", bands=bands, noise_multiplier=1.0, clipping_norm=1.0, rounds=ROUNDS
        )
        noise, _ = noise_of_rounds(one, SPEC, ROUNDS)
        sums[bands] = noise.sum(axis=0).std()
    assert sums[ROUNDS] < 0.7 * sums[1]


def test_one_band_is_dp_fedavg_bit_by_bit() -> None:
    options = {"noise_multiplier": 1.5, "clipping_norm": 0.3}
    ftrl, _ = noise_of_rounds(aggregator(SPEC, "dp-ftrl", bands=1, **options), SPEC, 3)
    plain, _ = noise_of_rounds(aggregator(SPEC, "dp-fedavg", **options), SPEC, 3)
    assert ftrl.tobytes() == plain.tobytes()


@pytest.mark.parametrize("num_replies", [4, 2])
@pytest.mark.parametrize("bands", [1, 3])
def test_the_rounds_account_composes_to_the_whole_mechanism(bands: int, num_replies: int) -> None:
    one = aggregator(SMALL, "dp-ftrl", bands=bands, noise_multiplier=2.5, rounds=ROUNDS)
    _, results = noise_of_rounds(one, SMALL, ROUNDS, num_replies=num_replies)
    releases = results[-1].site_level_so_far
    inverse = sum(release.noise_multiplier**-2 for release in releases)
    sensitivity = np.linalg.norm(dense(bands, ROUNDS) @ np.ones(ROUNDS))
    assert inverse**-0.5 == pytest.approx(2.5 / sensitivity, rel=1e-12)
    assert one.strategy.planned_releases(ROUNDS)[-1].noise_multiplier == pytest.approx(  # type: ignore[attr-defined]
        releases[-1].noise_multiplier, rel=1e-15
    )


def test_a_site_in_every_round_changes_a_row_by_at_most_its_sensitivity() -> None:
    """What an observer can rebuild of row t, C times the released sums, moves by clip * (C 1)_t."""
    clip, bands = 0.8, 3
    options = {"bands": bands, "noise_multiplier": 1.0, "clipping_norm": clip, "rounds": ROUNDS}
    released = []
    for rogue in (False, True):
        one = aggregator(SMALL, "dp-ftrl", **options)
        vector, rows = np.zeros(12, np.float32), []
        for number in range(1, ROUNDS + 1):
            models = [vector, vector] + ([vector + np.float32(1e6)] if rogue else [])
            moved = one_round(one, number, vector, models).vector
            rows.append(4 * (moved.astype(np.float64) - vector))
            vector = moved
        released.append(np.array(rows))
    shift = np.linalg.norm(dense(bands, ROUNDS) @ (released[1] - released[0]), axis=1)
    sums = dense(bands, ROUNDS) @ np.ones(ROUNDS)
    np.testing.assert_allclose(shift, clip * sums, rtol=1e-4)


def test_noise_of_a_round_that_failed_is_kept_nowhere() -> None:
    one = aggregator(SMALL, "dp-ftrl", bands=3, noise_multiplier=1.0, seed=None)
    zero = np.zeros(12, np.float32)
    one_round(one, 1, zero, [zero, zero])
    before = {name: array.copy() for name, array in one.state_dict().items()}
    broken = zero.copy()
    broken[0] = np.nan
    with pytest.raises(AggregationError):
        one_round(one, 2, zero, [zero, broken])
    after = one.state_dict()
    assert set(after) == set(before)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    one_round(one, 2, zero, [zero, zero])


def test_a_restart_after_a_round_that_never_left_draws_its_row_anew() -> None:
    zero = np.zeros(12, np.float32)
    one = aggregator(SMALL, "dp-ftrl", bands=3, noise_multiplier=1.0, seed=None)
    start = one_round(one, 1, zero, [zero, zero]).vector
    state = {name: array.copy() for name, array in one.state_dict().items()}
    lost = one_round(one, 2, start, [start, start])
    resumed = aggregator(SMALL, "dp-ftrl", bands=3, noise_multiplier=1.0, seed=None)
    resumed.load_state_dict(state)
    again = one_round(resumed, 2, start, [start, start])
    assert not np.array_equal(again.vector, lost.vector)
    assert again.site_level_so_far == lost.site_level_so_far


def test_rows_of_noise_in_the_state_are_as_many_as_later_rounds_need() -> None:
    one = aggregator(SMALL, "dp-ftrl", bands=3)
    _, _ = noise_of_rounds(one, SMALL, 4)
    assert sorted(one.state_dict()) == ["noise_row:0", "noise_row:1", "releases"]
    assert one.state_dict()["noise_row:0"].dtype == np.float64


@pytest.mark.parametrize(
    "change",
    [{"clipping_norm": 0.5}, {"noise_multiplier": 2.0}, {"bands": 2}, {"num_sites": 5}],
)
def test_a_run_goes_on_with_the_mechanism_that_it_began_with(change: dict[str, float]) -> None:
    options: dict[str, object] = {"bands": 3, "noise_multiplier": 1.0, "clipping_norm": 1.0}
    one = aggregator(SMALL, "dp-ftrl", **options)
    noise_of_rounds(one, SMALL, 3)
    with pytest.raises(AggregationError) as caught:
        aggregator(SMALL, "dp-ftrl", **(options | change)).load_state_dict(one.state_dict())
    assert caught.value.code == "FH-STRATEGY-045"


def test_state_without_a_row_of_noise_is_refused() -> None:
    one = aggregator(SMALL, "dp-ftrl", bands=3)
    noise_of_rounds(one, SMALL, 3)
    state = one.state_dict()
    del state["noise_row:1"]
    with pytest.raises(AggregationError) as caught:
        aggregator(SMALL, "dp-ftrl", bands=3).load_state_dict(state)
    assert caught.value.code == "FH-STRATEGY-045"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"bands": 0}, "FH-STRATEGY-042"),
        ({"bands": 65}, "FH-STRATEGY-042"),
        ({"bands": 9, "rounds": 8}, "FH-STRATEGY-057"),
        ({"adaptive_clipping": True}, "FH-STRATEGY-013"),
    ],
)
def test_what_the_mechanism_cannot_do_is_refused(options: dict[str, int], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        aggregator(SMALL, "dp-ftrl", **options)
    assert caught.value.code == code


def test_a_long_run_has_as_many_different_multipliers_as_bands() -> None:
    strategy = DpFtrl(num_sites=4, noise_multiplier=1.0, clipping_norm=1.0, bands=8)
    assert len({release.noise_multiplier for release in strategy.planned_releases(500)}) == 8
