"""Where things lie in a site's home, and what the site has pinned for a study."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedhealth.config.load import load_site, load_study, study_digest
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.config.variants import own_study
from fedhealth.errors import ConfigError, IdentityError, UsageError
from fedhealth.evidence.signing import Envelope, SigningKey, VerifyKey
from fedhealth.evidence.statements import (
    Admission,
    Invitation,
    StudyRoster,
    open_statement,
    parse_statement,
)


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """One study in a site's home."""

    root: Path

    @property
    def invitation(self) -> Path:
        """The server's signed invitation."""
        return self.root / "invitation.json"

    @property
    def request(self) -> Path:
        """This site's signed join request."""
        return self.root / "request.json"

    @property
    def admission(self) -> Path:
        """The server's signed admission."""
        return self.root / "admission.json"

    @property
    def roster(self) -> Path:
        """The signed roster that a person pinned here, for studies with secure aggregation."""
        return self.root / "roster.json"

    @property
    def study(self) -> Path:
        """The study file as invited, pinned by digest."""
        return self.root / "study.yaml"

    @property
    def ca_certificate(self) -> Path:
        """The study's certificate authority."""
        return self.root / "ca.crt"

    @property
    def state(self) -> Path:
        """Private state between rounds: heads."""
        return self.root / "state"

    @property
    def journal(self) -> Path:
        """One line for every message that left."""
        return self.root / "journal.jsonl"

    @property
    def status(self) -> Path:
        """What the worker is doing."""
        return self.root / "status.json"

    @property
    def witness(self) -> Path:
        """The last place of the privacy ledger that the server confirmed."""
        return self.root / "witness.json"

    @property
    def results(self) -> Path:
        """Global models received and tables computed here; they stay here."""
        return self.root / "results"

    @property
    def run(self) -> Path:
        """Sockets, secrets and process ids of the running site."""
        return self.root / "run"


@dataclass(frozen=True, slots=True)
class SiteHome:
    """A site's home folder."""

    root: Path

    @property
    def config_path(self) -> Path:
        """site.yaml."""
        return self.root / "site.yaml"

    @property
    def simulation(self) -> Path:
        """What is simulated here; absent from the home of a real hospital."""
        return self.root / "simulation.json"

    @property
    def is_simulation(self) -> bool:
        """Whether one party plays this hospital and all others."""
        return self.simulation.exists()

    @property
    def node_key(self) -> Path:
        """Flower's node key (EC P-384, OpenSSH), born here."""
        return self.root / "keys" / "node_key"

    @property
    def signing_key(self) -> Path:
        """The Ed25519 key that signs contributions, born here."""
        return self.root / "keys" / "signing_key.pem"

    @property
    def ledger_key(self) -> Path:
        """The key that sealed answers are encrypted with, born here."""
        return self.root / "keys" / "ledger_key"

    def ledger(self, config: SiteConfig) -> Path:
        """Folder of the privacy ledger of this site's data."""
        chosen = config.privacy.ledger_dir
        folder = self.root / "ledger" if chosen is None else self.root / chosen
        return folder / config.privacy.dataset

    @property
    def logs(self) -> Path:
        """Rotating logs."""
        return self.root / "logs"

    @property
    def cache(self) -> Path:
        """Volumes on the contract's grid, by content hash."""
        return self.root / "cache"

    def study(self, study_id: str) -> StudyFolder:
        """The folder of one study."""
        return StudyFolder(self.root / "studies" / study_id)

    def studies(self) -> list[str]:
        """Ids of the studies that this home knows."""
        folder = self.root / "studies"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def choose_study(self, study_id: str | None) -> str:
        """The named study, or the only one.

        Raises:
            UsageError: FH-USAGE-010 none, unknown, or more than one without a name.
        """
        known = self.studies()
        if study_id is None and len(known) == 1:
            return known[0]
        if study_id in known:
            return study_id
        raise UsageError(
            "FH-USAGE-010",
            f"this home holds {len(known)} studies: {', '.join(known) or 'none'}.",
            why="A site works on one study at a time per process.",
            fix="Give one with --study ID." if known else "Run `fedhealth site init` first.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What this site believes for one study: everything else is checked against it.

    `study` is the study as this site builds it, with the model of its variant (`config.variants.own_study`);
    `study_sha256` is the digest of the study that all sites share.
    """

    config: SiteConfig
    study: Study
    study_sha256: str
    address: str
    server_key: VerifyKey
    admission: Admission
    signing_key: SigningKey = field(repr=False)
    folder: StudyFolder
    roster: Mapping[str, VerifyKey] = field(default_factory=dict)
    """Signing keys of all sites of a study with secure aggregation, as a person pinned them here."""


def load_pinned(home: SiteHome, study_id: str) -> Pinned:
    """Read and verify what was pinned at `site init` and `site join`.

    Raises:
        IdentityError: FH-IDENTITY-010 not joined yet; or a signature or a key file is wrong.
        ConfigError: site.yaml or the pinned study is wrong; FH-CONFIG-046 site.yaml names another variant than this
            site was admitted with; FH-CONFIG-031 the study was edited after it was
            pinned; FH-CONFIG-034 site.yaml declares other modalities than the site was admitted with.
    """
    folder = home.study(study_id)
    config = load_site(home.config_path)
    invitation_envelope = Envelope.from_bytes(folder.invitation.read_bytes())
    invitation = parse_statement(Invitation, invitation_envelope.payload)
    server_key = VerifyKey.from_base64(invitation.server_key)
    open_statement(Invitation, invitation_envelope, server_key)
    if not folder.admission.exists():
        raise IdentityError(
            "FH-IDENTITY-010",
            f"this site has not joined study {study_id} yet.",
            why="The consortium must admit the request first.",
            fix=f"Send {folder.request} to the coordinator, then run `fedhealth site join` with the answer.",
        )
    admission = open_statement(
        Admission, Envelope.from_bytes(folder.admission.read_bytes()), server_key
    )
    study = load_study(folder.study)
    if study_digest(study) != invitation.study_sha256:
        raise ConfigError(
            "FH-CONFIG-031",
            f"the pinned study {study_id} is not the one that this site was invited to.",
            why="Its rules, such as the minimum cohort, are what this site holds the server to.",
            fix=f"Restore {folder.study} from the invitation, or enrol again.",
        )
    _check_declaration(config, study, admission)
    roster = (
        {} if study.secure_aggregation is None else read_pinned_roster(folder, study_id, server_key)
    )
    if admission.site.variant != config.variant:
        raise ConfigError(
            "FH-CONFIG-046",
            f"this site was admitted to study {study_id} with another variant than site.yaml names.",
            why="The consortium was told which model it trains.",
            fix="Put `variant` in site.yaml back, or enrol again.",
        )
    return Pinned(
        config=config,
        study=own_study(study, config.variant),
        study_sha256=invitation.study_sha256,
        address=invitation.address,
        server_key=server_key,
        admission=admission,
        signing_key=SigningKey.load(home.signing_key),
        folder=folder,
        roster=roster,
    )


def _check_declaration(config: SiteConfig, study: Study, admission: Admission) -> None:
    declared = config.declared_modalities(study)
    if declared != admission.site.modalities:
        raise ConfigError(
            "FH-CONFIG-034",
            f"site.yaml declares {', '.join(declared)}; this site was admitted to study {study.id} with "
            f"{', '.join(admission.site.modalities)}.",
            why="The other sites are told what this site has, by its admission.",
            fix="Write the admitted `modalities` into site.yaml again, or enrol anew with a new home and site id.",
        )


def joined_study(home: SiteHome, study_id: str) -> tuple[Study, VerifyKey]:
    """The study that this site joined and the server's key, before a roster is pinned.

    Raises:
        ConfigError, EvidenceError: a file is wrong.
    """
    folder = home.study(study_id)
    envelope = Envelope.from_bytes(folder.invitation.read_bytes())
    invitation = parse_statement(Invitation, envelope.payload)
    return load_study(folder.study), VerifyKey.from_base64(invitation.server_key)


def read_pinned_roster(
    folder: StudyFolder, study_id: str, server_key: VerifyKey
) -> dict[str, VerifyKey]:
    """Signing keys of the sites that were pinned here, by site id.

    Raises:
        IdentityError: FH-IDENTITY-013 none was pinned yet; or its signature is wrong.
    """
    if not folder.roster.exists():
        raise IdentityError(
            "FH-IDENTITY-013",
            f"this site has not pinned the roster of study {study_id} yet.",
            why="Its masks hide an update among the sites of the roster; without it the server could make them up.",
            fix="Ask the coordinator for the file of `fedhealth server roster`, then run `fedhealth site pin` with it.",
        )
    envelope = Envelope.from_bytes(folder.roster.read_bytes())
    roster = open_statement(StudyRoster, envelope, server_key)
    return {site.site_id: VerifyKey.from_base64(site.signing_key) for site in roster.sites}
