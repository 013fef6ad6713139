"""How many sites it takes: no two lists can both find a threshold, and every threshold can be met."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhealth.secagg.quorum import check_threshold, least_threshold
from fedhealth.secagg.refusals import MaskingRefusedError


@given(st.integers(1, 1000), st.integers(0, 998))
def test_the_least_threshold_is_the_first_above_half_of_sites_and_colluding_ones(
    num: int, colluding: int
) -> None:
    least = least_threshold(num, colluding)
    assert 2 * least > num + colluding >= 2 * (least - 1)


def two_lists_work(num: int, colluding: int, threshold: int) -> bool:
    """Whether some assignment of honest sites to two lists gives both a threshold; who colludes answers both."""
    honest = num - colluding
    return any(min(first, honest - first) + colluding >= threshold for first in range(honest + 1))


@pytest.mark.parametrize(
    ("num", "colluding"), [(n, c) for n, c in itertools.product(range(3, 12), range(9)) if c < n]
)
def test_two_lists_work_below_the_least_threshold_and_never_from_it_on(
    num: int, colluding: int
) -> None:
    least = least_threshold(num, colluding)
    for threshold in range(1, num + 1):
        if threshold >= least:
            assert not two_lists_work(num, colluding, threshold)
            check_threshold(threshold, num_sites=num, colluding=colluding)
        else:
            with pytest.raises(MaskingRefusedError, match="threshold"):
                check_threshold(threshold, num_sites=num, colluding=colluding)
    assert two_lists_work(num, colluding, least - 1)


@pytest.mark.parametrize(("num", "colluding"), [(3, 3), (3, 5), (4, 4), (1, 1)])
def test_no_threshold_is_accepted_when_all_sites_may_collude(num: int, colluding: int) -> None:
    for threshold in range(num + 3):
        with pytest.raises(MaskingRefusedError):
            check_threshold(threshold, num_sites=num, colluding=colluding)


def test_a_threshold_that_nobody_can_meet_is_refused() -> None:
    with pytest.raises(MaskingRefusedError):
        check_threshold(5, num_sites=4, colluding=0)
