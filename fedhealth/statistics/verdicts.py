"""What an interval allows to say about one site, and what all sites together allow. Words are in `report`.

A gain is a difference turned so that above zero is better. The rules are fixed before any result is looked at:
superior after Holm over the sites, non-inferior within a margin, worse as soon as one site's own interval says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Final

from fedhealth.statistics.bootstrap import Comparison
from fedhealth.statistics.holm import holm

ALPHA: Final = 0.05
MARGIN: Final = 0.02
"""Two points of AUC: a loss below it is taken as no loss."""
POWER: Final = 0.8
FEWEST_PER_CLASS: Final = 5
"""With fewer patients of a class, an interval that resamples them knows nothing of the ones that were not seen."""


class Verdict(StrEnum):
    """About one model against another at one site."""

    WORTH_IT = "worth_it"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    NO_LOSS = "no_loss"
    UNDECIDED = "undecided"
    TOO_FEW = "too_few"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A difference at one site, above zero where the first model is better.

    Attributes:
        value: in the metric's unit.
        low: of its 95 % interval.
        high: likewise.
        p_value: two-sided, this site alone.
        standard_error: of the difference.
    """

    value: float
    low: float
    high: float
    p_value: float
    standard_error: float

    @property
    def detectable(self) -> float:
        """The least difference that would have been shown with chance `POWER` at level `ALPHA`, with such patients."""
        normal = NormalDist()
        return (normal.inv_cdf(1 - ALPHA / 2) + normal.inv_cdf(POWER)) * self.standard_error


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteVerdict:
    """The verdict of a site, and the p-value adjusted for all sites; None where there is no comparison."""

    verdict: Verdict
    adjusted_p: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall:
    """What all sites allow to say.

    Attributes:
        num_sites: sites with a comparison.
        superior: sites that gain, after Holm.
        worse: sites that lose, by their own interval.
        is_non_inferior_everywhere: no site's lower limit is below minus the margin.
        is_better_everywhere: every site's lower limit is above zero, and no site was left out.
        worst_site: least gain; None without a comparison.
        left_out: sites with too few patients.
    """

    num_sites: int
    superior: tuple[str, ...]
    worse: tuple[str, ...]
    is_non_inferior_everywhere: bool
    is_better_everywhere: bool
    worst_site: str | None
    left_out: tuple[str, ...]


def gain_of(comparison: Comparison, *, larger_is_better: bool) -> Gain:
    """The comparison turned so that above zero is better."""
    if larger_is_better:
        low, value, high = comparison.low, comparison.value, comparison.high
    else:
        # 0.0 - x, not -x: minus zero is nobody's number.
        low, value, high = 0.0 - comparison.high, 0.0 - comparison.value, 0.0 - comparison.low
    return Gain(
        value=value,
        low=low,
        high=high,
        p_value=comparison.p_value,
        standard_error=comparison.standard_error,
    )


def judge_sites(gains: Mapping[str, Gain | None], *, margin: float) -> dict[str, SiteVerdict]:
    """The verdict of each site; Holm runs over the sites that have a gain.

    Args:
        gains: by site; None where too few patients are there to compare.
        margin: a loss below it is taken as no loss, in the metric's unit.
    """
    there = {site: gain for site, gain in gains.items() if gain is not None}
    adjusted = dict(zip(there, holm([gain.p_value for gain in there.values()]), strict=True))
    return {
        site: SiteVerdict(verdict=Verdict.TOO_FEW, adjusted_p=None)
        if gain is None
        else SiteVerdict(verdict=_verdict(gain, adjusted[site], margin), adjusted_p=adjusted[site])
        for site, gain in gains.items()
    }


def judge_all(
    gains: Mapping[str, Gain | None], verdicts: Mapping[str, SiteVerdict], *, margin: float
) -> Overall:
    """All sites together, from their gains and `judge_sites` of them."""
    there = {site: gain for site, gain in gains.items() if gain is not None}
    return Overall(
        num_sites=len(there),
        superior=tuple(s for s, v in verdicts.items() if v.verdict is Verdict.WORTH_IT),
        worse=tuple(s for s, v in verdicts.items() if v.verdict is Verdict.WORSE),
        is_non_inferior_everywhere=bool(there) and all(g.low > -margin for g in there.values()),
        is_better_everywhere=bool(gains)
        and all(g is not None and g.low > 0 for g in gains.values()),
        worst_site=min(there, key=lambda site: there[site].value) if there else None,
        left_out=tuple(site for site, gain in gains.items() if gain is None),
    )


def _verdict(gain: Gain, adjusted_p: float, margin: float) -> Verdict:
    if gain.high < 0:
        return Verdict.WORSE
    if gain.low > 0 and adjusted_p <= ALPHA:
        return Verdict.WORTH_IT
    if gain.low <= -margin:
        return Verdict.UNDECIDED
    return Verdict.EQUIVALENT if gain.high < margin else Verdict.NO_LOSS
