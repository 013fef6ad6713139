"""Which model a site trains is declared when it joins, and holds from then on."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhealth.errors import ConfigError, IdentityError
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import Admission, JoinRequest, parse_statement
from fedhealth.server.enrolment import admit, init_server
from fedhealth.server.home import ServerHome
from fedhealth.server.roster import read_roster
from fedhealth.site.enrolment import SiteSettings, init_site, join
from fedhealth.site.home import SiteHome, load_pinned
from fedhealth.site.sessions import load_training_method

FOLDER = Path(__file__).parents[3] / "configs" / "client-specific"
STUDY_ID = "client-specific"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    home = ServerHome(tmp_path_factory.mktemp("client-specific") / "server")
    init_server(
        home,
        FOLDER / "study.yaml",
        host="127.0.0.1",
        listen_host="127.0.0.1",
        port=0,
        method=load_training_method("supervised"),
    )
    return home


def settings(root: Path, site_id: str, variant: str | None) -> SiteSettings:
    return SiteSettings(
        site_id=site_id,
        package="synthetic",
        package_options={},
        data_dir=root / "data",
        train_size=140,
        variant=variant,
    )


def test_the_roster_says_which_model_a_site_has_and_the_site_builds_it(
    tmp_path: Path, server: ServerHome
) -> None:
    home = SiteHome(tmp_path / "site")
    request = init_site(home, server.invitation, settings(tmp_path, "st-mary", "wide"))
    join(home, admit(server, request.request_path).admission_path)
    line = read_roster(server.roster).find("st-mary")
    assert line is not None
    assert line.entry.variant == "wide"
    pinned = load_pinned(home, STUDY_ID)
    assert pinned.study.model.options["image_widths"] == [16, 32]
    assert pinned.study_sha256 == pinned.admission.study_sha256


def test_another_variant_in_site_yaml_is_refused_after_admission(
    tmp_path: Path, server: ServerHome
) -> None:
    home = SiteHome(tmp_path / "site")
    request = init_site(home, server.invitation, settings(tmp_path, "st-john", "wide"))
    join(home, admit(server, request.request_path).admission_path)
    content: dict[str, Any] = yaml.safe_load(home.config_path.read_bytes())
    for other in ("records_only", None):
        changed = content | {"variant": other}
        home.config_path.write_text(yaml.safe_dump(changed), encoding="utf-8")
        with pytest.raises(ConfigError, match="FH-CONFIG-046"):
            load_pinned(home, STUDY_ID)


def test_a_variant_that_the_study_does_not_have_makes_no_request(
    tmp_path: Path, server: ServerHome
) -> None:
    home = SiteHome(tmp_path / "site")
    with pytest.raises(ConfigError, match="FH-CONFIG-045"):
        init_site(home, server.invitation, settings(tmp_path, "st-anne", "huge"))
    assert not home.study(STUDY_ID).request.exists()


def test_a_server_admits_no_site_with_a_variant_that_the_study_does_not_have(
    tmp_path: Path, server: ServerHome
) -> None:
    home = SiteHome(tmp_path / "site")
    path = init_site(home, server.invitation, settings(tmp_path, "st-luke", "wide")).request_path
    asked = parse_statement(JoinRequest, Envelope.from_bytes(path.read_bytes()).payload)
    forged = asked.model_copy(update={"variant": "huge"}).sign(SigningKey.load(home.signing_key))
    path.write_bytes(forged.to_bytes())
    with pytest.raises(ConfigError, match="FH-CONFIG-045"):
        admit(server, path)
    assert read_roster(server.roster).find("st-luke") is None


def test_an_admission_with_another_variant_is_not_this_sites(
    tmp_path: Path, server: ServerHome
) -> None:
    home = SiteHome(tmp_path / "site")
    request = init_site(home, server.invitation, settings(tmp_path, "st-mark", "wide"))
    path = admit(server, request.request_path).admission_path
    said = parse_statement(Admission, Envelope.from_bytes(path.read_bytes()).payload)
    entry = said.site.model_copy(update={"variant": None})
    key = SigningKey.load(server.signing_key)
    path.write_bytes(said.model_copy(update={"site": entry}).sign(key).to_bytes())
    with pytest.raises(IdentityError, match="FH-IDENTITY-011"):
        join(home, path)
