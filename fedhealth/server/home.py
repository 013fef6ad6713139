"""Where things lie in a server's home."""

from dataclasses import dataclass
from pathlib import Path

from fedhealth.config.load import load_server, load_study
from fedhealth.config.server import ServerConfig
from fedhealth.config.study import Study
from fedhealth.errors import UsageError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run of the study."""

    root: Path

    @property
    def initial_model(self) -> Path:
        """The model of round 1, made at `server init`."""
        return self.root / "initial.safetensors"

    @property
    def checkpoints(self) -> Path:
        """One folder per completed round: model and strategy state."""
        return self.root / "checkpoints"

    @property
    def reports(self) -> Path:
        """Round records, round pages and the run page."""
        return self.root / "reports"

    @property
    def contributions(self) -> Path:
        """Every signed answer of a site, one line each: what each site said, in its own words."""
        return self.root / "contributions"

    @property
    def mask_keys(self) -> Path:
        """Each site's signed public key of secure aggregation for this run."""
        return self.root / "mask_keys.json"

    @property
    def opened_sums(self) -> Path:
        """For which sites sums of the study's runs were to be opened: no other list of such a round will be."""
        return self.root.parent / "opened_sums.json"

    @property
    def spool(self) -> Path:
        """Updates of the round at work; empty between rounds."""
        return self.root / "spool"

    @property
    def status(self) -> Path:
        """Where the run stands."""
        return self.root / "status.json"

    @property
    def outcome(self) -> Path:
        """How the last attempt at this run ended."""
        return self.root / "outcome.json"


@dataclass(frozen=True, slots=True)
class ServerHome:
    """A server's home folder: one study."""

    root: Path

    @property
    def config(self) -> Path:
        """server.yaml."""
        return self.root / "server.yaml"

    @property
    def study(self) -> Path:
        """The study file, as invited."""
        return self.root / "study.yaml"

    @property
    def keys(self) -> Path:
        """CA, TLS and signing keys."""
        return self.root / "keys"

    @property
    def signing_key(self) -> Path:
        """The Ed25519 key that signs invitations, admissions and manifests."""
        return self.keys / "signing_key.pem"

    @property
    def invitation(self) -> Path:
        """What the coordinator sends to every hospital."""
        return self.root / "invitation.json"

    @property
    def roster(self) -> Path:
        """Who is admitted, and who was revoked."""
        return self.root / "roster.json"

    @property
    def issued_roster(self) -> Path:
        """The roster that was last issued for all sites to pin."""
        return self.root / "issued_roster.json"

    @property
    def ledger_places(self) -> Path:
        """The last place of each site's privacy ledger that was seen."""
        return self.root / "ledger_places.json"

    @property
    def admissions(self) -> Path:
        """What the coordinator sends back to each hospital."""
        return self.root / "admissions"

    @property
    def flower(self) -> Path:
        """Flower's own files: database, home, the thin app."""
        return self.root / "flower"

    @property
    def live(self) -> Path:
        """Sockets and secrets of the running server."""
        return self.root / "run"

    @property
    def gateway_events(self) -> Path:
        """What the gateway refused, one JSON line each."""
        return self.live / "gateway-events.jsonl"

    @property
    def wire_counters(self) -> Path:
        """Unix socket on which the gateway tells bytes per node key."""
        return self.live / "wire.sock"

    @property
    def logs(self) -> Path:
        """Rotating logs."""
        return self.root / "logs"

    @property
    def simulation(self) -> Path:
        """What is simulated here; absent from the home of a real study."""
        return self.root / "simulation.json"

    @property
    def is_simulation(self) -> bool:
        """Whether the hospitals of this home are made up on this machine: every record says so."""
        return self.simulation.exists()

    def run(self, name: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.root / "runs" / name)

    def require(self) -> tuple[Study, ServerConfig]:
        """Study and configuration of an initialised home.

        Raises:
            UsageError: FH-USAGE-020 not a server's home.
            ConfigError: a file is wrong.
        """
        if not self.invitation.exists():
            raise UsageError(
                "FH-USAGE-020",
                f"{self.root} is not a server's home.",
                fix="Run `fedhealth server init STUDY.yaml --home DIR` first.",
            )
        return load_study(self.study), load_server(self.config)
