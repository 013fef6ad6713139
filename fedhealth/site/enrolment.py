"""How a hospital joins: keys are born here, only public halves leave, the server's key is pinned here."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from fedhealth.config.load import load_study, study_digest
from fedhealth.config.site import SiteConfig
from fedhealth.config.source import Dumper
from fedhealth.config.study import Study
from fedhealth.config.variants import own_study
from fedhealth.durable import write_atomically
from fedhealth.errors import ConfigError, IdentityError, UsageError
from fedhealth.evidence.journal import Journal
from fedhealth.evidence.signing import (
    Envelope,
    SigningKey,
    VerifyKey,
    read_private,
    write_private,
)
from fedhealth.evidence.statements import (
    Admission,
    Invitation,
    JoinRequest,
    StudyRoster,
    open_statement,
    parse_statement,
)
from fedhealth.gate.gate import release_keys
from fedhealth.site.home import SiteHome, joined_study, read_pinned_roster


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """What `site init` writes into site.yaml."""

    site_id: str
    package: str
    package_options: Mapping[str, object]
    data_dir: Path
    train_size: int
    modalities: tuple[str, ...] | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What `site init` did: show both fingerprints to a person."""

    study_id: str
    study_title: str
    site_id: str
    request_path: Path
    site_key_id: str
    server_key_id: str


def init_site(home: SiteHome, invitation_path: Path, settings: SiteSettings | None) -> Enrolled:
    """Read an invitation, make this site's keys (once per home), write the join request.

    Args:
        home: the site's home; created when absent.
        invitation_path: the file that the coordinator sent.
        settings: for a new home; None when the home has a site.yaml already (a further study).

    Raises:
        IdentityError: the invitation is not signed by the key that it names.
        ConfigError: the study in it is not the study that it names, or site.yaml is wrong; FH-CONFIG-045 the study has
            no such variant.
        UsageError: FH-USAGE-011 a new home without settings; FH-USAGE-012 already enrolled; FH-USAGE-017 the settings
            name a modality that the study does not have.
    """
    from fedhealth.config.load import load_site

    envelope = Envelope.from_bytes(read_file(invitation_path, "invitation"))
    invitation = parse_statement(Invitation, envelope.payload)
    server_key = VerifyKey.from_base64(invitation.server_key)
    open_statement(Invitation, envelope, server_key)
    folder = home.study(invitation.study_id)
    if folder.request.exists():
        raise UsageError(
            "FH-USAGE-012",
            f"this home has a join request for study {invitation.study_id} already.",
            why="A second one would replace keys that the coordinator may have admitted.",
            fix=f"Send {folder.request} to the coordinator, or begin with another --home.",
        )
    folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder.study, invitation.study_yaml.encode())
    study = load_study(folder.study)
    if study.id != invitation.study_id or study_digest(study) != invitation.study_sha256:
        raise ConfigError(
            "FH-CONFIG-030",
            "the study inside the invitation is not the study that the invitation names.",
            why="Sites would train something else than agreed.",
            fix="Ask the coordinator for a new invitation (`fedhealth server init`).",
        )
    if settings is not None:
        _check_modalities(settings, study)
        own_study(study, settings.variant)
        write_site_config(home, settings)
    elif not home.config_path.exists():
        raise UsageError(
            "FH-USAGE-011",
            "this is a new home, and nothing says which site it is.",
            fix="Give --site-id, --package, --data-dir and --train-size.",
        )
    config = load_site(home.config_path)
    own_study(study, config.variant)
    write_atomically(folder.ca_certificate, invitation.ca_certificate.encode())
    write_atomically(folder.invitation, envelope.to_bytes())
    signing_key = _signing_key(home)
    request = _request(home, invitation, study, signing_key, config)
    outbound = release_keys(request.sign(signing_key).to_bytes())
    Journal(folder.journal).append(
        "keys", {"sha256": outbound.digest, "num_bytes": len(outbound.payload)}
    )
    write_atomically(folder.request, bytes(outbound.payload))
    return Enrolled(
        study_id=study.id,
        study_title=study.title,
        site_id=config.site_id,
        request_path=folder.request,
        site_key_id=signing_key.public.key_id,
        server_key_id=server_key.key_id,
    )


def join(home: SiteHome, admission_path: Path) -> Admission:
    """Check the admission against this site's own keys and pin it.

    Raises:
        IdentityError: FH-IDENTITY-011 not for this home, or not signed by the server of the invitation.
    """
    envelope = Envelope.from_bytes(read_file(admission_path, "admission"))
    claimed = parse_statement(Admission, envelope.payload)
    folder = home.study(claimed.study_id)
    if not folder.invitation.exists():
        raise _not_ours("it names a study that this home was not invited to")
    invitation = parse_statement(
        Invitation, Envelope.from_bytes(folder.invitation.read_bytes()).payload
    )
    admission = open_statement(Admission, envelope, VerifyKey.from_base64(invitation.server_key))
    own = SigningKey.load(home.signing_key).public
    if admission.site.key_id != own.key_id or admission.site.signing_key != own.to_base64():
        raise _not_ours("it admits another site's key")
    if admission.study_sha256 != invitation.study_sha256:
        raise _not_ours("it admits to another version of the study")
    asked = parse_statement(JoinRequest, Envelope.from_bytes(folder.request.read_bytes()).payload)
    entry = admission.site
    if (entry.site_id, entry.train_size, entry.modalities, entry.variant) != (
        asked.site_id,
        asked.train_size,
        asked.modalities,
        asked.variant,
    ):
        raise _not_ours(
            "it gives this site another name, weight, variant or modalities than it asked for"
        )
    write_atomically(folder.admission, envelope.to_bytes())
    return admission


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedRoster:
    """A roster that was read and verified, not yet pinned: for a person to compare.

    Attributes:
        key_ids: by site id.
        changes: by site id: new, same, CHANGED or gone, against what is pinned.
    """

    study_id: str
    key_ids: dict[str, str]
    changes: dict[str, str]
    envelope: Envelope


def read_roster_file(home: SiteHome, path: Path) -> OfferedRoster:
    """Verify a roster of the coordinator for a study that this home joined.

    Raises:
        IdentityError: FH-IDENTITY-011 it is not for a study of this home, not signed by its server, or does not
            hold this site's own key.
    """
    envelope = Envelope.from_bytes(read_file(path, "roster"))
    claimed = parse_statement(StudyRoster, envelope.payload)
    folder = home.study(claimed.study_id)
    if not folder.admission.exists():
        raise _not_ours("it names a study that this home has not joined", "roster")
    study, server_key = joined_study(home, claimed.study_id)
    roster = open_statement(StudyRoster, envelope, server_key)
    if roster.study_sha256 != study_digest(study):
        raise _not_ours("it is for another version of the study", "roster")
    keys = {site.site_id: VerifyKey.from_base64(site.signing_key) for site in roster.sites}
    own = SigningKey.load(home.signing_key).public.key_id
    if own not in {key.key_id for key in keys.values()}:
        raise _not_ours("this site's key is not on it", "roster")
    before = (
        read_pinned_roster(folder, claimed.study_id, server_key) if folder.roster.exists() else {}
    )
    key_ids = {site_id: key.key_id for site_id, key in keys.items()}
    old = {site_id: key.key_id for site_id, key in before.items()}
    changes = {
        site_id: "new" if site_id not in old else "same" if old[site_id] == key_id else "CHANGED"
        for site_id, key_id in key_ids.items()
    }
    changes |= dict.fromkeys(set(old) - set(key_ids), "gone")
    return OfferedRoster(
        study_id=claimed.study_id, key_ids=key_ids, changes=changes, envelope=envelope
    )


def pin_roster(home: SiteHome, offered: OfferedRoster) -> None:
    """Believe a roster from now on: a person compared its fingerprints with the hospitals."""
    write_atomically(home.study(offered.study_id).roster, offered.envelope.to_bytes())


def write_site_config(home: SiteHome, settings: SiteSettings) -> None:
    """Write site.yaml for a new home.

    Raises:
        UsageError: FH-USAGE-013 it is there already.
    """
    if home.config_path.exists():
        raise UsageError(
            "FH-USAGE-013",
            f"{home.config_path} is there already.",
            why="It may hold the hospital's own settings.",
            fix="Leave out --site-id, --package, --data-dir and --train-size to use it.",
        )
    content = {
        "schema_version": 1,
        "site_id": settings.site_id,
        "package": {"name": settings.package, "options": dict(settings.package_options)},
        "data_dir": str(settings.data_dir),
        "declared_train_size": settings.train_size,
    }
    if settings.modalities is not None:
        content["modalities"] = list(settings.modalities)
    if settings.variant is not None:
        content["variant"] = settings.variant
    write_atomically(home.config_path, yaml.dump(content, Dumper=Dumper, sort_keys=False).encode())


def _check_modalities(settings: SiteSettings, study: Study) -> None:
    unknown = sorted(set(settings.modalities or ()) - set(study.modalities))
    if unknown:
        raise UsageError(
            "FH-USAGE-017",
            f"study {study.id} has no modality {unknown[0]!r}.",
            why=f"Its modalities are {', '.join(study.modalities)}.",
            fix="Correct --modality, or leave it out to declare all of them.",
        )


def read_file(path: Path, what: str) -> bytes:
    """Read a file that another party sent. Raises UsageError FH-USAGE-014 when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            "FH-USAGE-014",
            f"the {what} {path} cannot be read ({error.strerror}).",
            fix="Check the path.",
        ) from None


def _signing_key(home: SiteHome) -> SigningKey:
    if home.signing_key.exists():
        return SigningKey.load(home.signing_key)
    key = SigningKey.generate()
    key.save(home.signing_key)
    return key


def node_key(home: SiteHome) -> EllipticCurvePrivateKey:
    """Flower's node key, made when absent (EC P-384: Flower 1.41 accepts NIST curves in SSH format only)."""
    if home.node_key.exists():
        loaded = load_ssh_private_key(read_private(home.node_key), password=None)
        if isinstance(loaded, EllipticCurvePrivateKey):
            return loaded
        raise IdentityError(
            "FH-IDENTITY-012",
            "the node key is not an elliptic-curve key.",
            fix="Restore it from your backup of the keys folder.",
        )
    key = generate_private_key(SECP384R1())
    write_private(
        home.node_key, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    return key


def _request(
    home: SiteHome,
    invitation: Invitation,
    study: Study,
    signing_key: SigningKey,
    config: SiteConfig,
) -> JoinRequest:
    """The size goes with it unless the study hides it."""
    key = node_key(home)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    proof = key.sign(
        possession_message(invitation.study_sha256, signing_key.public), ECDSA(SHA384())
    )
    return JoinRequest(
        study_id=invitation.study_id,
        study_sha256=invitation.study_sha256,
        site_id=config.site_id,
        signing_key=signing_key.public.to_base64(),
        node_key=public,
        node_key_proof=base64.b64encode(proof).decode(),
        train_size=None if study.hides_sizes else config.declared_train_size,
        modalities=config.declared_modalities(study),
        variant=config.variant,
    )


def possession_message(study_sha256: str, signing_key: VerifyKey) -> bytes:
    """What the node key signs, so that nobody enrols somebody else's node key."""
    return hashlib.sha256(
        f"fedhealth node key {study_sha256} {signing_key.key_id}".encode()
    ).digest()


def _not_ours(reason: str, what: str = "admission") -> IdentityError:
    return IdentityError(
        "FH-IDENTITY-011",
        f"this {what} is not for this site: {reason}.",
        why="With it this site would believe in an identity that nobody has.",
        fix=f"Ask the coordinator for the {what} of this study.",
    )
