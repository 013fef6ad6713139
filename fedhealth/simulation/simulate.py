"""`simulate`: a whole study by one party, and what others build on: final models, records, every hospital's context.

Called by `fedhealth simulate` and by research code.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhealth.config.site import SiteConfig
from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.local_training import SiteContext
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.durable import exclusive, read_json, without_sync
from fedhealth.errors import FedHealthError, QuorumError
from fedhealth.report.record import RoundRecord
from fedhealth.report.write import read_rounds, write_pages
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.server.home import ServerHome
from fedhealth.simulation.backends import Backend, InProcess
from fedhealth.simulation.hospitals import DATA_FOLDER, require_distinct
from fedhealth.simulation.in_process import InProcessSite
from fedhealth.simulation.provision import provision, site_home


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What happened just now: a round closed, or (`record` None) a text for people."""

    run: RunPlan | None
    record: RoundRecord | None
    seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """One finished run: `vector` is the final model, flat on `spec`; records as they were written, in order."""

    name: str
    spec: TensorSpec
    vector: NDArray[np.float32] = field(repr=False)
    records: tuple[RoundRecord, ...] = field(repr=False)
    reports: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A finished simulation. `absent` names hospitals that would not start, with the code of the reason."""

    study: Study
    folder: Path
    runs: Mapping[str, SimulatedRun]
    absent: Mapping[str, str]
    seconds: float
    _sites: Mapping[str, InProcessSite] = field(repr=False)

    @property
    def site_ids(self) -> tuple[str, ...]:
        """Hospitals that took part, in roster order."""
        return tuple(self._sites)

    def context(self, site_id: str, run_name: str) -> SiteContext:
        """A hospital's context for a run: its cohort, and the private state that the run left there.

        What `TrainingMethod.open_session` takes, so that personal models can be judged on its patients.
        """
        return self._sites[site_id].context(run_name)

    def remove_sites(self) -> None:
        """Remove the hospitals' homes and generated data; models, records and reports stay."""
        for name in ("sites", DATA_FOLDER):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def simulate(
    study: Study,
    sites: Sequence[SiteConfig],
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
    *,
    backend: Backend | None = None,
) -> Simulation:
    """Run every run of a study with all hospitals on this machine, or on a cluster of Ray.

    The rounds, the strategies, local training, privacy, masks, gate, ledger and records are those of a real
    federation; left out are its processes and the network. A folder of an interrupted simulation is gone on with,
    by whatever backend.

    Args:
        study: what is simulated.
        sites: the hospitals, each with its package, size and policy.
        folder: new, or that of the same simulation.
        on_progress: told after every round, and of hospitals that do not start.
        backend: where hospitals compute; None: in this process, one after the other.

    Raises:
        UsageError: FH-USAGE-050 the folder holds something else, FH-USAGE-052 two hospitals have one id.
        QuorumError: too few hospitals started, or too many rounds were void.
        ConfigError, AggregationError: the study or its strategy cannot run.
        FedHealthError: as the backend's `open`.
    """
    require_distinct(sites)
    begin = time.monotonic()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / "lock", what="a simulation"), without_sync():
        server = provision(study, sites, folder)
        tell = _Tell(on_progress, begin)
        open_runs = [run for run in study.runs if not _is_complete(server, run)]
        started, absent = _start(
            study, sites if open_runs or _has_sites(folder) else (), folder, tell
        )
        if open_runs:
            _require_cohort(study, started, absent)
            chosen = InProcess() if backend is None else backend
            with chosen.open(server, study, started) as run_one:
                for run in open_runs:
                    try:
                        run_one(run, tell.of_run(run))
                    finally:
                        write_pages(server.run(run.name).reports, study.title)
        return Simulation(
            study=study,
            folder=folder,
            runs={run.name: _finished(server, run) for run in study.runs},
            absent=absent,
            seconds=time.monotonic() - begin,
            _sites=started,
        )


@dataclass(frozen=True, slots=True)
class _Tell:
    on_progress: Callable[[Progress], None]
    begin: float

    def note(self, text: str) -> None:
        self._tell(None, None, text)

    def of_run(self, run: RunPlan) -> Callable[[RoundRecord], None]:
        return lambda record: self._tell(run, record, "")

    def _tell(self, run: RunPlan | None, record: RoundRecord | None, text: str) -> None:
        seconds = time.monotonic() - self.begin
        self.on_progress(Progress(run=run, record=record, seconds=seconds, text=text))


def _is_complete(server: ServerHome, run: RunPlan) -> bool:
    return read_json(server.run(run.name).outcome).get("state") == "completed"


def _has_sites(folder: Path) -> bool:
    """False after `Simulation.remove_sites`."""
    return (folder / "sites").is_dir()


def _start(
    study: Study, sites: Sequence[SiteConfig], folder: Path, tell: _Tell
) -> tuple[dict[str, InProcessSite], dict[str, str]]:
    started, absent = {}, {}
    for config in sorted(sites, key=lambda config: config.site_id):
        site = InProcessSite(site_home(folder, config.site_id), study.id)
        try:
            site.start()
        except FedHealthError as error:
            absent[site.site_id] = error.code
            tell.note(f"{site.site_id} does not take part: {error}")
        else:
            started[site.site_id] = site
    return started, absent


def _require_cohort(
    study: Study, started: Mapping[str, InProcessSite], absent: Mapping[str, str]
) -> None:
    if len(started) < study.federation.min_cohort:
        reasons = ", ".join(f"{site_id} {code}" for site_id, code in sorted(absent.items()))
        raise QuorumError(
            "FH-QUORUM-006",
            f"{len(started)} hospitals take part, the study needs {study.federation.min_cohort}.",
            why=f"The others: {reasons}." if reasons else "The simulation has too few hospitals.",
            fix="Simulate more hospitals, or change their policies or the study.",
        )


def _finished(server: ServerHome, run: RunPlan) -> SimulatedRun:
    folder = server.run(run.name)
    last = read_last_checkpoint(folder)
    return SimulatedRun(
        name=run.name,
        spec=last.spec,
        vector=last.vector,
        records=tuple(read_rounds(folder.reports)),
        reports=folder.reports,
    )
