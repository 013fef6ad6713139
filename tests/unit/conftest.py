"""A small consortium, enrolled offline by fedhealth's own functions: keys, roster and admissions are real."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedhealth.config.load import study_digest
from fedhealth.contracts.tensors import TensorSpec, vector_bytes, vector_digest
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import CohortMember, Manifest, RoundPrivacy, manifest_tensors
from fedhealth.server.checkpoint import read_agreed
from fedhealth.server.enrolment import admit, init_server, issue_roster
from fedhealth.server.home import ServerHome
from fedhealth.server.roster import RosterLine, read_roster
from fedhealth.site.enrolment import (
    SiteSettings,
    init_site,
    join,
    pin_roster,
    read_roster_file,
)
from fedhealth.site.home import Pinned, SiteHome, load_pinned
from fedhealth.site.sessions import load_training_method

STUDY_ID = "scripted"
NUM_ROUNDS = 3


def study_content(study_id: str = STUDY_ID, **federation: Any) -> dict[str, Any]:
    column = {"name": "age", "dtype": "float", "minimum": 0, "maximum": 120}
    rules = {"min_cohort": 2, "gather_s": 1, "cohort_wait_s": 1, "round_deadline_s": 5}
    return {
        "schema_version": 1,
        "id": study_id,
        "title": "Known updates",
        "seed": 7,
        "data": {"modalities": [{"kind": "table", "name": "ehr", "columns": [column]}]},
        "training": {"name": "scripted", "options": {"step": 0.5}, "local_steps": 1},
        "federation": rules | federation,
        "release": {"metrics": ["auc", "log_loss", "train_loss"]},
        "runs": [{"name": "main", "num_rounds": NUM_ROUNDS}],
    }


def two_modalities(study_id: str = STUDY_ID, **federation: Any) -> dict[str, Any]:
    """A study that averages what belongs to `mri`, tensor second.weight, over the sites that declared it."""
    content = study_content(
        study_id, **({"average_encoders_over": "sites_with_modality"} | federation)
    )
    mri = {"kind": "volume", "name": "mri", "shape": [8, 8, 8], "spacing_mm": [2, 2, 2]}
    content["data"]["modalities"].append(mri)
    return content


@dataclass
class Consortium:
    """One server's home and its sites' homes."""

    root: Path
    content: Mapping[str, Any]
    server: ServerHome = field(init=False)
    sites: dict[str, SiteHome] = field(default_factory=dict)
    modalities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = ServerHome(self.root / "server")
        self.root.mkdir(parents=True)
        study = self.root / "study.yaml"
        study.write_text(yaml.safe_dump(dict(self.content), sort_keys=False))
        init_server(
            self.server,
            study,
            host="127.0.0.1",
            listen_host="127.0.0.1",
            port=0,
            method=load_training_method("scripted"),
        )

    def settings(self, site_id: str, train_size: int = 10) -> SiteSettings:
        return SiteSettings(
            site_id=site_id,
            package="synthetic",
            package_options={},
            data_dir=self.root / site_id / "data",
            train_size=train_size,
            modalities=self.modalities.get(site_id),
        )

    def request(self, site_id: str, train_size: int = 10) -> Path:
        home = self.sites[site_id] = SiteHome(self.root / site_id)
        done = init_site(home, self.server.invitation, self.settings(site_id, train_size))
        return done.request_path

    def enrol(self, site_id: str, train_size: int = 10) -> SiteHome:
        admission = admit(self.server, self.request(site_id, train_size)).admission_path
        join(self.sites[site_id], admission)
        return self.sites[site_id]

    def pin_everywhere(self) -> None:
        """The roster goes to every site, which pins it."""
        path = issue_roster(self.server, self.root / "roster.json").path
        for home in self.sites.values():
            pin_roster(home, read_roster_file(home, path))

    def pinned(self, site_id: str) -> Pinned:
        return load_pinned(self.sites[site_id], str(self.content["id"]))

    def line(self, site_id: str) -> RosterLine:
        found = read_roster(self.server.roster).find(site_id)
        assert found is not None
        return found

    @property
    def server_key(self) -> SigningKey:
        return SigningKey.load(self.server.signing_key)

    def site_key(self, site_id: str) -> SigningKey:
        return SigningKey.load(self.sites[site_id].signing_key)

    @property
    def spec(self) -> TensorSpec:
        study = self.server.require()[0]
        return TensorSpec.of(load_training_method("scripted").initial_tensors(study, study.runs[0]))

    def model(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.zeros(self.spec.num_elements, dtype=np.float32)

    def manifest(self, **changes: Any) -> Manifest:
        study = self.server.require()[0]
        lines = read_roster(self.server.roster).admitted
        has_blocks = study.averages_by_modality and changes.get("kind", "train") == "train"
        said: dict[str, Any] = {
            "study_id": study.id,
            "study_sha256": study_digest(study),
            "run_name": "main",
            "flower_run_id": "1",
            "round_number": 1,
            "attempt": 1,
            "kind": "train",
            "model_sha256": vector_digest(self.model()),
            "frozen_sha256": read_agreed(self.server.run("main")).frozen_sha256,
            "tensors": manifest_tensors(self.spec),
            "cohort": tuple(
                CohortMember(
                    site_id=line.entry.site_id,
                    key_id=line.entry.key_id,
                    modalities=line.entry.modalities if has_blocks else None,
                )
                for line in lines
            ),
            "blocks": ({"modality": "mri", "tensors": ("second.weight",)},) if has_blocks else (),
            "min_cohort": 2,
            "strategy_config": {},
            "privacy": RoundPrivacy.of(study),
            "deadline_s": 5.0,
            "opened_at": "2026-01-01T00:00:00Z",
        }
        return Manifest(**(said | changes))

    def header(self, **changes: Any) -> dict[str, Any]:
        """What comes through the socket: the envelope of a manifest signed by the server."""
        return self.signed(**changes).model_dump()

    def signed(self, **changes: Any) -> Envelope:
        return self.manifest(**changes).sign(self.server_key)

    def payload(self) -> bytearray:
        return bytearray(vector_bytes(self.model()))


@pytest.fixture
def new_consortium(tmp_path: Path) -> Any:
    """Makes a consortium with some sites enrolled."""

    def make(
        *site_ids: str,
        name: str = "c",
        content: Mapping[str, Any] | None = None,
        modalities: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Consortium:
        made = Consortium(
            root=tmp_path / name,
            content=content or study_content(),
            modalities=modalities or {},
        )
        for number, site_id in enumerate(site_ids, start=1):
            made.enrol(site_id, 10 * number)
        if "secure_aggregation" in made.content:
            made.pin_everywhere()
        return made

    return make
