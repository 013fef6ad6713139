"""Where the hospitals of a simulation compute: one after the other in this process, or side by side on Ray."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from fedhealth.config.study import RunPlan, Study
from fedhealth.errors import UsageError
from fedhealth.flower.one_run import run_to_outcome
from fedhealth.flower.run_simulation import RayOptions, ray_simulation
from fedhealth.flower.task import flower_task
from fedhealth.report.record import RoundRecord, round_order
from fedhealth.report.write import read_round, write_record
from fedhealth.server.home import ServerHome
from fedhealth.server.recorder import Recorder
from fedhealth.server.roster import read_roster
from fedhealth.simulation.in_process import InProcessSite, InProcessTransport, resident_bytes
from fedhealth.simulation.threads import one_thread

MEMORY_SHARE: Final = 0.6
"""Of the memory that is free at the start, for hospitals that stay open between rounds."""
CLIENT_APP: Final = "fedhealth.simulation.ray_hospital:app"

Watch = Callable[[RoundRecord], None]
RunOne = Callable[[RunPlan, Watch], None]
"""Does one run of the study from its last checkpoint, and tells of every round that closed."""


class Backend(Protocol):
    """Where hospitals compute."""

    def open(
        self, server: ServerHome, study: Study, hospitals: Mapping[str, InProcessSite]
    ) -> AbstractContextManager[RunOne]:
        """What does the runs of this study with these hospitals, for as long as the block lasts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """All hospitals in this process.

    Args:
        memory_limit_bytes: resident memory up to which hospitals stay open between rounds; None: most of what is
            free.
    """

    memory_limit_bytes: int | None = None

    @contextmanager
    def open(
        self, server: ServerHome, study: Study, hospitals: Mapping[str, InProcessSite]
    ) -> Iterator[RunOne]:
        """Nothing is started."""
        limit = self.memory_limit_bytes or resident_bytes() + int(MEMORY_SHARE * _available_bytes())
        transport = InProcessTransport(
            hospitals, lambda: read_roster(server.roster), memory_limit_bytes=limit
        )

        def run_one(run: RunPlan, watch: Watch) -> None:
            number = 1 + study.runs.index(run)
            write = partial(write_record, server.run(run.name).reports)
            recorder = Recorder(server, study, run, write=write, watch=watch)
            with flower_task(run_id=number):
                run_to_outcome(
                    server, run.name, transport, flower_run_id=str(number), recorder=recorder
                )

        with one_thread():
            yield run_one


@dataclass(frozen=True, slots=True, kw_only=True)
class OnRay:
    """Hospitals in processes of Ray, through `flwr run` and Flower's own simulation."""

    options: RayOptions = field(default_factory=RayOptions)

    @contextmanager
    def open(
        self, server: ServerHome, study: Study, hospitals: Mapping[str, InProcessSite]
    ) -> Iterator[RunOne]:
        """Start Flower's processes, and end them with the block.

        Raises:
            UsageError: FH-RAY-001 Ray is not installed, FH-RAY-004 a hospital wants a GPU and is given none.
            TransportError: FH-SERVER-001 Flower did not start.
        """
        del study
        _require_gpus(hospitals, self.options)
        for site in hospitals.values():
            site.close()  # processes of Ray answer from now on: what is in memory here would be out of date
        homes = {site_id: site.home.root for site_id, site in hospitals.items()}
        with ray_simulation(server, homes, self.options, client_app=CLIENT_APP) as simulation:

            def run_one(run: RunPlan, watch: Watch) -> None:
                simulation.run(run, NewRecords(server.run(run.name).reports, watch).look)

            yield run_one


class NewRecords:
    """Tells of records that appear in a folder of reports, each once and in the order of the rounds."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self._folder = folder
        self._watch = watch
        self._seen = set(folder.glob("round-*.json"))

    def look(self) -> None:
        """Look once. Raises EvidenceError as `read_round`."""
        new = set(self._folder.glob("round-*.json")) - self._seen
        self._seen |= new
        for record in sorted((read_round(path) for path in new), key=round_order):
            self._watch(record)


def _require_gpus(hospitals: Mapping[str, InProcessSite], options: RayOptions) -> None:
    wanting = [name for name, site in hospitals.items() if site.pinned.config.device == "cuda"]
    if wanting and not options.gpus_per_hospital:
        raise UsageError(
            "FH-RAY-004",
            f"{', '.join(wanting)} wants a GPU (device: cuda), and Ray is asked for none.",
            why="Ray hides the GPUs from a process that was given no share of them.",
            fix="Say --gpus-per-hospital, for example 0.5 for two hospitals on one GPU, or change `device`.",
        )


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
