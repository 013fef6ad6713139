"""Enrolment without a network: what each side refuses, and what it leaves untouched when it does."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhealth.config.load import load_site
from fedhealth.errors import ConfigError, EvidenceError, IdentityError, UsageError
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import (
    Admission,
    Invitation,
    JoinRequest,
    open_statement,
    parse_statement,
)
from fedhealth.server.enrolment import admit, init_server, revoke
from fedhealth.server.roster import read_roster
from fedhealth.site.enrolment import init_site, join
from fedhealth.site.home import SiteHome, load_pinned
from fedhealth.site.sessions import load_training_method

from ..conftest import STUDY_ID, Consortium, study_content  # noqa: TID252 - tests are no installed package


@pytest.fixture
def empty(new_consortium: Any) -> Consortium:
    made: Consortium = new_consortium()
    return made


def resign(envelope: Envelope, key: SigningKey, **changes: Any) -> bytes:
    statement = json.loads(envelope.payload) | changes
    return key.sign(envelope.payload_type, statement).to_bytes()


def tampered(path: Path, old: str, new: str) -> Path:
    envelope = Envelope.from_bytes(path.read_bytes())
    assert old in envelope.payload
    altered = envelope.model_copy(update={"payload": envelope.payload.replace(old, new)})
    target = path.with_name("tampered.json")
    target.write_bytes(altered.to_bytes())
    return target


def test_a_site_that_was_admitted_pins_the_servers_key_and_its_own_admission(
    empty: Consortium,
) -> None:
    home = empty.enrol("site-1", 40)
    pinned = load_pinned(home, STUDY_ID)
    assert pinned.server_key.key_id == empty.server_key.public.key_id
    assert pinned.admission.site.train_size == 40
    assert pinned.admission.site.key_id == empty.site_key("site-1").public.key_id


def test_private_halves_stay_where_they_were_born(empty: Consortium) -> None:
    home = empty.enrol("site-1")
    secrets = [p.read_bytes().splitlines()[1] for p in (home.signing_key, home.node_key)]
    for path in empty.server.root.rglob("*"):
        if path.is_file():
            assert not any(secret in path.read_bytes() for secret in secrets)
    assert b"PRIVATE" not in home.study(STUDY_ID).request.read_bytes()
    assert b"PRIVATE" not in empty.server.invitation.read_bytes()
    private = [empty.server.signing_key, empty.server.keys / "server.key"]
    for path in (*private, home.signing_key, home.node_key):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not list(empty.server.keys.glob("ca*key*")), "the authority's key is not kept"


def test_the_request_names_no_path_and_no_package(empty: Consortium) -> None:
    request = json.loads(Envelope.from_bytes(empty.request("site-1").read_bytes()).payload)
    assert set(request) == set(JoinRequest.model_fields)
    assert str(empty.root) not in json.dumps(request)
    assert "synthetic" not in json.dumps(request)


@pytest.mark.parametrize(
    ("old", "new"),
    [("127.0.0.1", "127.0.0.2"), ('"min_cohort":2', '"min_cohort":3'), ("step: 0.5", "step: 0.9")],
)
def test_an_altered_invitation_is_refused(empty: Consortium, old: str, new: str) -> None:
    home = SiteHome(empty.root / "site-1")
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        init_site(home, tampered(empty.server.invitation, old, new), empty.settings("site-1"))
    assert not home.root.exists(), "nothing was written for it"


def test_an_invitation_whose_study_is_not_the_one_it_names_is_refused(empty: Consortium) -> None:
    envelope = Envelope.from_bytes(empty.server.invitation.read_bytes())
    other = yaml.safe_dump(study_content(min_cohort=3))
    for changes in ({"study_yaml": other}, {"study_id": "other"}, {"study_sha256": "ab" * 32}):
        path = empty.root / "wrong.json"
        path.write_bytes(resign(envelope, empty.server_key, **changes))
        with pytest.raises(ConfigError, match="FH-CONFIG-030"):
            init_site(SiteHome(empty.root / "site-1"), path, empty.settings("site-1"))


def test_an_invitation_of_another_server_is_a_server_of_its_own(empty: Consortium) -> None:
    """Anybody can make one: that is why fingerprints are compared, and why a second one is refused."""
    home = empty.enrol("site-1")
    before = home.study(STUDY_ID).invitation.read_bytes()
    key = SigningKey.generate()
    envelope = Envelope.from_bytes(empty.server.invitation.read_bytes())
    path = empty.root / "evil.json"
    path.write_bytes(resign(envelope, key, server_key=key.public.to_base64()))
    with pytest.raises(UsageError, match="FH-USAGE-012"):
        init_site(home, path, None)
    assert home.study(STUDY_ID).invitation.read_bytes() == before
    assert load_pinned(home, STUDY_ID).server_key.key_id == empty.server_key.public.key_id


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff"])
def test_a_file_that_is_no_statement_is_refused_by_all(empty: Consortium, content: bytes) -> None:
    path = empty.root / "file.json"
    path.write_bytes(content)
    home = empty.enrol("site-1")
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-001"):
        init_site(SiteHome(empty.root / "site-2"), path, empty.settings("site-2"))
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-001"):
        admit(empty.server, path)
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-001"):
        join(home, path)


def test_a_file_that_is_not_there_is_said_so(empty: Consortium) -> None:
    home = empty.enrol("site-1")
    absent = empty.root / "absent.json"
    for call in (lambda: admit(empty.server, absent), lambda: join(home, absent)):
        with pytest.raises(UsageError, match="FH-USAGE-014"):
            call()


def test_an_altered_request_is_refused_and_the_roster_stays(empty: Consortium) -> None:
    path = empty.request("site-1", 10)
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        admit(empty.server, tampered(path, '"train_size":10', '"train_size":99'))
    assert read_roster(empty.server.roster).lines == ()


def test_a_request_for_another_study_is_refused(empty: Consortium, new_consortium: Any) -> None:
    other = new_consortium(name="other", content=study_content(min_cohort=3))
    with pytest.raises(IdentityError, match="FH-IDENTITY-032"):
        admit(empty.server, other.request("site-1"))


def test_nobody_enrols_the_node_key_of_somebody_else(empty: Consortium) -> None:
    victim = Envelope.from_bytes(empty.request("site-1").read_bytes())
    thief = Envelope.from_bytes(empty.request("site-2").read_bytes())
    stolen = json.loads(victim.payload)
    path = empty.root / "theft.json"
    for changes in (
        {"node_key": stolen["node_key"]},
        {"node_key": stolen["node_key"], "node_key_proof": stolen["node_key_proof"]},
        {"node_key_proof": ""},
        {"node_key_proof": "AAAA"},
    ):
        path.write_bytes(resign(thief, empty.site_key("site-2"), **changes))
        with pytest.raises(IdentityError, match="FH-IDENTITY-031"):
            admit(empty.server, path)
    assert read_roster(empty.server.roster).lines == ()


def test_a_request_signed_with_another_key_than_it_names_is_refused(empty: Consortium) -> None:
    envelope = Envelope.from_bytes(empty.request("site-1").read_bytes())
    path = empty.root / "forged.json"
    path.write_bytes(resign(envelope, SigningKey.generate()))
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        admit(empty.server, path)


def test_a_site_id_and_a_key_are_admitted_once(empty: Consortium, new_consortium: Any) -> None:
    path = empty.request("site-1")
    admit(empty.server, path)
    with pytest.raises(UsageError, match="FH-USAGE-021"):
        admit(empty.server, path)
    renamed = empty.root / "renamed.json"
    envelope = Envelope.from_bytes(path.read_bytes())
    renamed.write_bytes(resign(envelope, empty.site_key("site-1"), site_id="site-9"))
    with pytest.raises(UsageError, match="FH-USAGE-021"):
        admit(empty.server, renamed)
    assert len(read_roster(empty.server.roster).lines) == 1


def test_a_revoked_key_never_comes_back(empty: Consortium) -> None:
    path = empty.request("site-1")
    admit(empty.server, path)
    revoke(empty.server, "site-1")
    with pytest.raises(UsageError, match="FH-USAGE-021"):
        admit(empty.server, path)
    for site_id in ("site-1", "nobody"):
        with pytest.raises(UsageError, match="FH-USAGE-022"):
            revoke(empty.server, site_id)
    assert read_roster(empty.server.roster).admitted == ()


def test_an_admission_for_another_site_is_refused(empty: Consortium) -> None:
    empty.request("site-1")
    foreign = admit(empty.server, empty.request("site-2")).admission_path
    with pytest.raises(IdentityError, match="FH-IDENTITY-011"):
        join(empty.sites["site-1"], foreign)
    assert not empty.sites["site-1"].study(STUDY_ID).admission.exists()


def test_an_altered_or_forged_admission_is_refused(empty: Consortium) -> None:
    path = admit(empty.server, empty.request("site-1", 10)).admission_path
    home = empty.sites["site-1"]
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        join(home, tampered(path, '"train_size":10', '"train_size":99'))
    forged = empty.root / "forged.json"
    envelope = Envelope.from_bytes(path.read_bytes())
    forged.write_bytes(resign(envelope, SigningKey.generate()))
    with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
        join(home, forged)


def test_a_server_cannot_give_a_site_another_weight_name_or_study(empty: Consortium) -> None:
    path = admit(empty.server, empty.request("site-1", 10)).admission_path
    envelope = Envelope.from_bytes(path.read_bytes())
    entry = json.loads(envelope.payload)["site"]
    changed = empty.root / "changed.json"
    for changes in (
        {"site": entry | {"train_size": 99}},
        {"site": entry | {"site_id": "site-9"}},
        {"study_sha256": "ab" * 32},
    ):
        changed.write_bytes(resign(envelope, empty.server_key, **changes))
        with pytest.raises(IdentityError, match="FH-IDENTITY-011"):
            join(empty.sites["site-1"], changed)


def test_a_site_that_has_not_joined_cannot_start(empty: Consortium) -> None:
    empty.request("site-1")
    with pytest.raises(IdentityError, match="FH-IDENTITY-010"):
        load_pinned(empty.sites["site-1"], STUDY_ID)


def test_a_pinned_file_that_was_edited_at_the_site_is_refused(empty: Consortium) -> None:
    home = empty.enrol("site-1")
    folder = home.study(STUDY_ID)
    for path in (folder.invitation, folder.admission):
        before = path.read_bytes()
        path.write_bytes(before.replace(b"127.0.0.1", b"127.0.0.2", 1))
        with pytest.raises(IdentityError, match="FH-IDENTITY-002"):
            load_pinned(home, STUDY_ID)
        path.write_bytes(before)


def test_a_pinned_study_that_was_edited_at_the_site_is_refused(empty: Consortium) -> None:
    """Whoever lowers the floor in the site's copy would otherwise weaken the site's own checks."""
    home = empty.enrol("site-1")
    path = home.study(STUDY_ID).study
    path.write_text(path.read_text().replace("gather_s: 1", "gather_s: 2"))
    with pytest.raises(ConfigError, match="FH-CONFIG-031"):
        load_pinned(home, STUDY_ID)


def test_a_second_study_in_the_same_home_uses_the_same_keys(
    empty: Consortium, new_consortium: Any
) -> None:
    home = empty.enrol("site-1")
    keys = home.signing_key.read_bytes(), home.node_key.read_bytes()
    other = new_consortium(name="other", content=study_content("second"))
    done = init_site(home, other.server.invitation, None)
    join(home, admit(other.server, done.request_path).admission_path)
    assert (home.signing_key.read_bytes(), home.node_key.read_bytes()) == keys
    assert home.studies() == ["scripted", "second"]
    first, second = (load_pinned(home, name) for name in home.studies())
    assert first.server_key.key_id != second.server_key.key_id
    assert first.signing_key.public.key_id == second.signing_key.public.key_id
    with pytest.raises(UsageError, match="FH-USAGE-010"):
        home.choose_study(None)


def test_a_new_home_needs_settings_and_an_old_one_keeps_its_own(empty: Consortium) -> None:
    with pytest.raises(UsageError, match="FH-USAGE-011"):
        init_site(SiteHome(empty.root / "site-1"), empty.server.invitation, None)
    home = empty.enrol("site-1")
    before = home.config_path.read_bytes()
    with pytest.raises(UsageError):
        init_site(home, empty.server.invitation, empty.settings("site-9"))
    assert home.config_path.read_bytes() == before
    assert load_site(home.config_path).site_id == "site-1"


def test_a_servers_home_is_initialised_once(empty: Consortium) -> None:
    key = empty.server.signing_key.read_bytes()
    with pytest.raises(UsageError, match="FH-USAGE-023"):
        init_server(
            empty.server,
            empty.server.study,
            host="127.0.0.1",
            listen_host="127.0.0.1",
            port=0,
            method=load_training_method("scripted"),
        )
    assert empty.server.signing_key.read_bytes() == key


def test_both_sides_see_the_same_fingerprints(empty: Consortium) -> None:
    home = empty.sites["site-1"] = SiteHome(empty.root / "site-1")
    enrolled = init_site(home, empty.server.invitation, empty.settings("site-1"))
    admitted = admit(empty.server, enrolled.request_path)
    assert enrolled.site_key_id == admitted.site_key_id
    assert enrolled.server_key_id == admitted.server_key_id
    signed = Envelope.from_bytes(admitted.admission_path.read_bytes())
    said = open_statement(Admission, signed, empty.server_key.public)
    assert said.site.key_id == enrolled.site_key_id
    invitation = parse_statement(
        Invitation, Envelope.from_bytes(empty.server.invitation.read_bytes()).payload
    )
    assert "PRIVATE" not in invitation.ca_certificate
