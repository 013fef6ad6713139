"""How many sites it takes to remove masks, and the fewest that a sum may be about. Called by both sides.

Two lists of survivors can both be unmasked only if each finds `threshold` sites that give shares for it. Sites that
keep the protocol give shares for one list only, so with `colluding` sites that do not keep it the lists need
2 (t - c) <= n - c of the others. With t > (n + c) / 2 there are not enough (Bonawitz et al. 2017, section 6.2).
"""

from collections.abc import Sequence

from fedhealth.contracts.codes import DropCode
from fedhealth.secagg.refusals import MaskingRefusedError


def least_threshold(num_sites: int, colluding: int) -> int:
    """The smallest t with t > (n + c) / 2."""
    return (num_sites + colluding) // 2 + 1


def check_threshold(threshold: int, *, num_sites: int, colluding: int) -> None:
    """Refuse a threshold with which two lists could be unmasked, or that nobody can meet.

    Raises:
        MaskingRefusedError: secagg_threshold.
    """
    if not least_threshold(num_sites, colluding) <= threshold <= num_sites:
        raise MaskingRefusedError(
            DropCode.SECAGG_THRESHOLD,
            f"a threshold of {threshold} of {num_sites} sites does not hold against {colluding} that collude",
        )


def check_floor(num: int, *, floor: int, what: str) -> None:
    """Refuse a sum of too few sites.

    Raises:
        MaskingRefusedError: secagg_floor.
    """
    if num < floor:
        raise MaskingRefusedError(
            DropCode.SECAGG_FLOOR, f"{what} has {num} sites, this site's floor is {floor}"
        )


def check_lists(
    cohort: Sequence[str], survivors: Sequence[str], dropped: Sequence[str], own: str
) -> None:
    """Survivors and dropped sites are the cohort, each site in one of them, once, in the cohort's order.

    Raises:
        MaskingRefusedError: secagg_unknown_site, secagg_overlap, secagg_order, secagg_lists.
    """
    if not {*survivors, *dropped} <= set(cohort):
        raise MaskingRefusedError(
            DropCode.SECAGG_UNKNOWN_SITE, "a list names a site outside of the cohort"
        )
    if set(survivors) & set(dropped):
        raise MaskingRefusedError(
            DropCode.SECAGG_OVERLAP, "a site is on both lists: both of its masks would be removed"
        )
    if list(survivors) != [s for s in cohort if s in set(survivors)] or list(dropped) != [
        s for s in cohort if s in set(dropped)
    ]:
        raise MaskingRefusedError(DropCode.SECAGG_ORDER, "the lists are not in the cohort's order")
    if len(survivors) + len(dropped) != len(cohort) or own not in survivors:
        raise MaskingRefusedError(
            DropCode.SECAGG_LISTS, "the lists leave out a site, or this site is not a survivor"
        )
