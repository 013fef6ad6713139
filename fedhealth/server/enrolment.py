"""How a consortium begins a study and admits hospitals. All of it works without a network."""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import yaml
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from fedhealth.config.blocks import modality_blocks, summed_modalities
from fedhealth.config.frozen import frozen_digest
from fedhealth.config.load import load_study, study_digest
from fedhealth.config.source import Dumper
from fedhealth.config.study import Study
from fedhealth.config.variants import check_variants, own_study
from fedhealth.contracts.local_training import TrainingMethod
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.durable import exclusive, write_atomically
from fedhealth.errors import IdentityError, UsageError
from fedhealth.evidence.signing import Envelope, SigningKey, VerifyKey
from fedhealth.evidence.statements import (
    Admission,
    Invitation,
    JoinRequest,
    RosterEntry,
    RosterSite,
    StudyRoster,
    open_statement,
    parse_statement,
)
from fedhealth.server.certificates import create_authority
from fedhealth.server.checkpoint import write_initial
from fedhealth.server.home import ServerHome
from fedhealth.server.roster import RosterLine, read_roster, write_roster
from fedhealth.supervision.ports import free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised:
    """What `server init` did."""

    study: Study
    study_sha256: str
    address: str
    invitation_path: Path
    server_key_id: str
    num_parameters: dict[str, int]


def init_server(
    home: ServerHome,
    study_path: Path,
    *,
    host: str,
    listen_host: str,
    port: int,
    method: TrainingMethod,
) -> Initialised:
    """Make CA, keys, initial models and the signed invitation.

    Args:
        home: a folder that is not a server's home yet.
        study_path: the study file.
        host: what sites dial; goes into the certificate.
        listen_host: where the gateway binds.
        port: 0 picks a free one now and writes it down.
        method: the study's training method, which knows the initial tensors.

    Raises:
        UsageError: FH-USAGE-023 the home is in use.
        ConfigError: the study is wrong.
    """
    if home.invitation.exists():
        raise UsageError(
            "FH-USAGE-023",
            f"{home.root} is a server's home already.",
            why="A second init would replace the keys that sites have pinned.",
            fix="Choose another --home for another study.",
        )
    study = load_study(study_path)
    sizes = {run.name: _write_initial_model(home, study, run.name, method) for run in study.runs}
    chosen_port = port or free_port(listen_host)
    address = f"[{host}]:{chosen_port}" if ":" in host else f"{host}:{chosen_port}"
    hosts = list(dict.fromkeys([host, "localhost", "127.0.0.1"]))
    create_authority(home.keys, study_id=study.id, hosts=hosts)
    key = SigningKey.generate()
    key.save(home.signing_key)
    study_text = study_path.read_bytes()
    write_atomically(home.study, study_text)
    settings = {
        "schema_version": 1,
        "public_host": host,
        "listen_host": listen_host,
        "port": chosen_port,
    }
    write_atomically(home.config, yaml.dump(settings, Dumper=Dumper, sort_keys=False).encode())
    digest = study_digest(study)
    invitation = Invitation(
        study_yaml=study_text.decode(),
        study_id=study.id,
        study_sha256=digest,
        address=address,
        ca_certificate=(home.keys / "ca.crt").read_text(),
        server_key=key.public.to_base64(),
        min_cohort=study.federation.min_cohort,
    )
    write_atomically(home.invitation, invitation.sign(key).to_bytes(), mode=0o644)
    return Initialised(
        study=study,
        study_sha256=digest,
        address=address,
        invitation_path=home.invitation,
        server_key_id=key.public.key_id,
        num_parameters=sizes,
    )


def _write_initial_model(home: ServerHome, study: Study, run: str, method: TrainingMethod) -> int:
    plan = study.run(run)
    tensors = method.initial_tensors(study, plan)
    spec = TensorSpec.of(tensors)
    check_variants(method, study, plan, spec)
    write_initial(
        home.run(run),
        tensors,
        modality_blocks(method, study, plan, spec),
        summed_modalities(method, study, plan, spec),
        frozen_digest(method, study, plan),
    )
    return sum(tensor.size for tensor in tensors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What `server admit` did: show both fingerprints to a person."""

    site_id: str
    site_key_id: str
    server_key_id: str
    train_size: int | None
    modalities: tuple[str, ...]
    admission_path: Path
    num_admitted: int


def admit(home: ServerHome, request_path: Path) -> Admitted:
    """Check a join request, put the site on the roster, sign its admission.

    Raises:
        IdentityError: the request is not signed by the keys in it; FH-IDENTITY-031 the node key is not
            proven; FH-IDENTITY-032 it is for another study.
        ConfigError: FH-CONFIG-045 the site asks for a variant that the study does not have.
        UsageError: the site or one of its keys is on the roster already; the file cannot be read.
    """
    study, _ = home.require()
    with exclusive(home.root / "roster.lock", what="another `server admit` or `revoke`"):
        return _admit(home, study, request_path)


def _admit(home: ServerHome, study: Study, request_path: Path) -> Admitted:
    key = SigningKey.load(home.signing_key)
    request, site_key = _open_request(request_path, study_digest(study))
    if not request.modalities or not set(request.modalities) <= set(study.modalities):
        raise IdentityError(
            "FH-IDENTITY-034",
            f"the request of site {request.site_id} declares no modality of the study, or one that it does not have.",
            why="Encoders may be averaged over the sites that declared their modality.",
            fix="Ask for a new request with `--modality` from the study, or without it.",
        )
    own_study(study, request.variant)
    if (request.train_size is None) != study.hides_sizes:
        raise IdentityError(
            "FH-IDENTITY-033",
            f"the request of site {request.site_id} tells a training size where the study hides it, or hides one.",
            why="The site runs another version of fedhealth, or another study.",
            fix="Compare `fedhealth --version` on both sides and ask for a new request.",
        )
    entry = RosterEntry(
        site_id=request.site_id,
        key_id=site_key.key_id,
        signing_key=request.signing_key,
        node_key_id=node_key_id(request.node_key),
        train_size=request.train_size,
        modalities=request.modalities,
        variant=request.variant,
    )
    roster = read_roster(home.roster).admit(
        RosterLine(entry=entry, node_key=request.node_key, state="admitted")
    )
    admission = Admission(
        study_id=study.id,
        study_sha256=request.study_sha256,
        site=entry,
        address=parse_statement(
            Invitation, Envelope.from_bytes(home.invitation.read_bytes()).payload
        ).address,
        admitted_at=utc_now(),
    )
    path = home.admissions / f"{entry.site_id}.json"
    write_atomically(path, admission.sign(key).to_bytes(), mode=0o644)
    write_roster(home.roster, roster)  # last: a site is admitted when it is on the roster
    return Admitted(
        site_id=entry.site_id,
        site_key_id=entry.key_id,
        server_key_id=key.public.key_id,
        train_size=entry.train_size,
        modalities=entry.modalities,
        admission_path=path,
        num_admitted=len(roster.admitted),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A roster for the sites of a study with secure aggregation: they compare fingerprints and pin it."""

    path: Path
    key_ids: dict[str, str]


def issue_roster(home: ServerHome, path: Path) -> Issued:
    """Sign who is in the study, for all sites to pin.

    Raises:
        UsageError: FH-USAGE-020 not a server's home; FH-USAGE-022 nobody is admitted yet.
    """
    study, _ = home.require()
    lines = read_roster(home.roster).admitted
    if not lines:
        raise UsageError(
            "FH-USAGE-022",
            "no site is admitted yet.",
            fix="Run `fedhealth server admit` for every hospital first.",
        )
    key = SigningKey.load(home.signing_key)
    roster = StudyRoster(
        study_id=study.id,
        study_sha256=study_digest(study),
        sites=tuple(
            RosterSite(site_id=line.entry.site_id, signing_key=line.entry.signing_key)
            for line in lines
        ),
        issued_at=utc_now(),
    )
    signed = roster.sign(key).to_bytes()
    write_atomically(path, signed, mode=0o644)
    write_atomically(home.issued_roster, signed)
    return Issued(path=path, key_ids={line.entry.site_id: line.entry.key_id for line in lines})


def issued_sites(home: ServerHome) -> frozenset[str]:
    """Sites of the roster that was last issued; none before one was."""
    if not home.issued_roster.exists():
        return frozenset()
    envelope = Envelope.from_bytes(home.issued_roster.read_bytes())
    roster = open_statement(StudyRoster, envelope, SigningKey.load(home.signing_key).public)
    return frozenset(site.site_id for site in roster.sites)


def revoke(home: ServerHome, site_id: str) -> None:
    """Take a site off the roster; a running server cuts it off within seconds. Raises UsageError."""
    home.require()
    with exclusive(home.root / "roster.lock", what="another `server admit` or `revoke`"):
        write_roster(home.roster, read_roster(home.roster).revoke(site_id))


def _open_request(path: Path, study_sha256: str) -> tuple[JoinRequest, VerifyKey]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            "FH-USAGE-014",
            f"the request {path} cannot be read ({error.strerror}).",
            fix="Check the path.",
        ) from None
    envelope = Envelope.from_bytes(data)
    claimed = parse_statement(JoinRequest, envelope.payload)
    site_key = VerifyKey.from_base64(claimed.signing_key)
    request = open_statement(JoinRequest, envelope, site_key)
    if request.study_sha256 != study_sha256:
        raise IdentityError(
            "FH-IDENTITY-032",
            f"the request of site {request.site_id} is for another study, or another version of this one.",
            why="A site must train what the consortium agreed on.",
            fix="Send the site this home's invitation.json and ask for a new request.",
        )
    _check_possession(request, site_key)
    return request, site_key


def _check_possession(request: JoinRequest, site_key: VerifyKey) -> None:
    message = hashlib.sha256(
        f"fedhealth node key {request.study_sha256} {site_key.key_id}".encode()
    ).digest()
    try:
        public = load_ssh_public_key(request.node_key.encode())
        proof = base64.b64decode(request.node_key_proof)
        cast("EllipticCurvePublicKey", public).verify(proof, message, ECDSA(SHA384()))
    except (InvalidSignature, ValueError, TypeError, AttributeError, binascii.Error):
        raise IdentityError(
            "FH-IDENTITY-031",
            f"the request of site {request.site_id} does not prove that it holds its node key.",
            why="Otherwise somebody could enrol another hospital's node key as theirs.",
            fix="Ask the site for the request.json that `fedhealth site init` wrote.",
        ) from None


def node_key_id(ssh_public_key: str) -> str:
    """SHA-256 of a node key's PEM: the form in which Flower names nodes."""
    public = load_ssh_public_key(ssh_public_key.encode())
    if not isinstance(public, EllipticCurvePublicKey):
        raise IdentityError("FH-IDENTITY-031", "a node key is not an elliptic-curve key.")
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def utc_now() -> str:
    """This moment as RFC 3339 UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
