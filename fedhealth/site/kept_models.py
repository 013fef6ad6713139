"""`model list`: the models and personal states that lie in a site's home, from files only. Imports no torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedhealth.config.load import load_site, load_study
from fedhealth.contracts.tensors import vector_digest, vector_from_bytes
from fedhealth.site.home import SiteHome, StudyFolder
from fedhealth.site.sessions import FLOAT32_BYTES, closing_model_path
from fedhealth.training.personalisation.places import control_folder, held_by, state_folder
from fedhealth.training.private_head import kept_files

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptModel:
    """One file of a model, or of a part of one.

    Attributes:
        round_number: whose update it was trained with; None for the global model that came with the last trip.
        holds: ``global model``, ``own model``, ``own tensors``, ``private head``, ``private blocks`` or ``control
            variate``.
        method: the run's personalisation.
        model_sha256: digest of the global model that it is, or was trained with; None where it is not known.
        written_at: UTC, to the second, by the file system.
        file: path below the site's home.
        is_readable: whether it is what was written, as far as the file itself tells.
    """

    study_id: str
    run_name: str
    round_number: int | None
    holds: str
    method: str
    model_sha256: str | None
    written_at: str
    size_bytes: int
    file: str
    is_readable: bool

    def as_json(self) -> dict[str, object]:
        """The fields, for `--json`."""
        return asdict(self)


def list_kept(home: SiteHome, study_id: str | None) -> list[KeptModel]:
    """What is kept of one study, or of all in this home; by study, run (in the study's order) and round.

    Raises:
        UsageError: FH-USAGE-010 the named study is not in this home.
        ConfigError: the home has no readable site.yaml, or a pinned study is wrong.
    """
    load_site(
        home.config_path
    )  # a folder without one is no site's home: an empty list would be false comfort
    chosen = home.studies() if study_id is None else [home.choose_study(study_id)]
    return [kept for name in chosen for kept in _of_study(home, name)]


def _of_study(home: SiteHome, study_id: str) -> Iterator[KeptModel]:
    folder = home.study(study_id)
    if not folder.study.exists():
        return
    for run in load_study(folder.study).runs:
        state_dir = folder.state / run.name
        yield from _states(home, study_id, run, state_folder(state_dir, run), held_by(run))
        if run.control_variates:
            place = control_folder(state_dir, run)
            yield from _states(home, study_id, run, place, "control variate")
        yield from _closing_model(home, study_id, run, folder)


def _states(
    home: SiteHome, study_id: str, run: "RunPlan", folder: Path, holds: str
) -> Iterator[KeptModel]:
    for kept in kept_files(folder):
        yield KeptModel(
            study_id=study_id,
            run_name=run.name,
            round_number=kept.round_number,
            holds=holds,
            method=run.personalisation,
            model_sha256=kept.model_sha256,
            written_at=_moment(kept.written_at),
            size_bytes=kept.size_bytes,
            file=str(kept.path.relative_to(home.root)),
            is_readable=kept.is_readable,
        )


def _closing_model(
    home: SiteHome, study_id: str, run: "RunPlan", folder: StudyFolder
) -> Iterator[KeptModel]:
    path = closing_model_path(folder, run.name)
    if not path.exists():
        return
    payload, facts = path.read_bytes(), path.stat()
    is_whole = len(payload) > 0 and len(payload) % FLOAT32_BYTES == 0
    vector = vector_from_bytes(payload) if is_whole else None
    is_readable = vector is not None and bool(np.isfinite(vector).all())
    yield KeptModel(
        study_id=study_id,
        run_name=run.name,
        round_number=None,
        holds="global model",
        method=run.personalisation,
        model_sha256=None if vector is None else vector_digest(vector),
        written_at=_moment(facts.st_mtime),
        size_bytes=facts.st_size,
        file=str(path.relative_to(home.root)),
        is_readable=is_readable,
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
