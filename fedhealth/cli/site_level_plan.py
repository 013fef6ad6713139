"""What a study's site-level runs are worth, for `fedhealth study privacy`. Imports Flower when there is such a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.aggregation import SiteLevelRelease
from fedhealth.privacy.accounting.events import Event, merge_events
from fedhealth.privacy.accounting.site_level import (
    SiteLevelStatement,
    default_delta,
    site_level_events,
    statement_of_site_level,
)

SITE_LEVEL_STRATEGIES: Final = ("dp-fedavg", "dp-ftrl")
MIN_RUNS: Final = 2
"""With one run the study's composition is the run's own."""


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
    events: tuple[Event, ...]
    statement: SiteLevelStatement

    def payload(self) -> dict[str, object]:
        """For `--json`."""
        names = {"run": self.name, "strategy": self.strategy}
        return names | _payload(self.statement, scope="this_run_at_the_server")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLevelStudy:
    """All site-level runs of a study together: a site that is in each of them pays for all."""

    runs: tuple[str, ...]
    other_runs: tuple[str, ...]
    """Runs without site-level privacy: nothing bounds what those tell about a site."""
    statement: SiteLevelStatement

    def payload(self) -> dict[str, object]:
        """For `--json`."""
        names = {"runs": list(self.runs), "runs_without_site_level_privacy": list(self.other_runs)}
        return names | _payload(self.statement, scope="these_runs_at_the_server")

    def line(self) -> str:
        """For people."""
        outside = (
            f" Outside of this number, without any bound for a site: {', '.join(self.other_runs)}."
            if self.other_runs
            else ""
        )
        return f"Runs {', '.join(self.runs)} together: {self.statement.sentence}{outside}"


def _payload(said: SiteLevelStatement, *, scope: str) -> dict[str, object]:
    return {
        "unit": said.unit,
        "adjacency": said.spend.adjacency,
        "epsilon": said.epsilon,
        "epsilon_rdp": said.spend.epsilon_rdp,
        "delta": said.delta,
        "accountant": said.spend.accountant,
        "accountant_version": said.spend.accountant_version,
        "composition_scope": scope,
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


def site_level_study(study: Study, planned: Sequence[SiteLevelRun]) -> SiteLevelStudy | None:
    """The composition of all these runs; None for fewer than two, where a run's own statement says it all.

    Whatever differs between runs is taken where it promises least: the smallest delta, the smallest number of
    sites, the least noise.
    """
    if len(planned) < MIN_RUNS:
        return None
    names = tuple(run.name for run in planned)
    sizes = [run.statement.num_sites for run in planned]
    return SiteLevelStudy(
        runs=names,
        other_runs=tuple(run.name for run in study.runs if run.name not in names),
        statement=statement_of_site_level(
            merge_events(event for run in planned for event in run.events),
            min(sizes),
            min(map(default_delta, sizes)),
            noise_over_clip=min(run.statement.noise_over_clip for run in planned),
        ),
    )


def _planned(run: RunPlan, min_cohort: int) -> SiteLevelRun:
    from fedhealth.flower.strategy_options import make_strategy

    strategy = cast("SiteLevelStrategy", make_strategy(run, min_cohort=min_cohort))
    events = site_level_events(strategy.planned_releases(run.num_rounds))
    return SiteLevelRun(
        name=run.name,
        strategy=run.strategy.name,
        events=events,
        statement=statement_of_site_level(events, strategy.num_sites),
    )
