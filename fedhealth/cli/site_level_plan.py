"""What a study's site-level runs are worth, for `fedhealth study privacy`. Imports Flower when there is such a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.aggregation import SiteLevelRelease
from fedhealth.privacy.accounting.site_level import (
    SiteLevelStatement,
    site_level_events,
    statement_of_site_level,
)

SITE_LEVEL_STRATEGIES: Final = ("dp-fedavg", "dp-ftrl")


class SiteLevelStrategy(Protocol):
    """A strategy that plans its releases."""

    num_sites: int

    def planned_releases(self, num_rounds: int) -> Sequence[SiteLevelRelease]:
        """The releases of a run of so many rounds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLevelRun:
    """One run whose strategy protects whole sites."""

    name: str
    strategy: str
    statement: SiteLevelStatement

    def payload(self) -> dict[str, object]:
        """For `--json`."""
        said = self.statement
        return {
            "run": self.name,
            "strategy": self.strategy,
            "unit": said.unit,
            "adjacency": said.spend.adjacency,
            "epsilon": said.epsilon,
            "epsilon_rdp": said.spend.epsilon_rdp,
            "delta": said.delta,
            "accountant": said.spend.accountant,
            "accountant_version": said.spend.accountant_version,
            "composition_scope": "this_run_at_the_server",
            "num_sites": said.num_sites,
            "noise_over_clipping_norm": said.noise_over_clip,
            "shows_badge": said.is_meaningful,
            "what_it_is_worth": said.sentence,
        }


def site_level_runs(study: Study) -> tuple[SiteLevelRun, ...]:
    """The plan of each site-level run, all rounds of it.

    Raises:
        ConfigError: a strategy's options are wrong.
    """
    runs = [run for run in study.runs if run.strategy.name in SITE_LEVEL_STRATEGIES]
    return tuple(_planned(run, study.federation.min_cohort) for run in runs)


def _planned(run: RunPlan, min_cohort: int) -> SiteLevelRun:
    from fedhealth.flower.strategy_options import make_strategy

    strategy = cast("SiteLevelStrategy", make_strategy(run, min_cohort=min_cohort))
    events = site_level_events(strategy.planned_releases(run.num_rounds))
    return SiteLevelRun(
        name=run.name,
        strategy=run.strategy.name,
        statement=statement_of_site_level(events, strategy.num_sites),
    )
