"""The private head on the site's disk, one file a round. Called by `supervised` and `evaluation`.

A head belongs to the round whose update it was trained with. Several are kept, since a round may be repeated,
or the server may go on from an older checkpoint: the head of a round that did not count is then not used.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.durable import sync
from fedhealth.errors import TrainingError

Tensors = dict[str, NDArray[np.float32]]

KEPT_ROUNDS = 20
"""Heads kept behind the newest: further back than a server's checkpoints are worth going."""

_FILE = re.compile(r"head_(\d{5,})\.safetensors")
_MODEL, _CONTENT, _STUDY = "model_sha256", "tensors_sha256", "study_sha256"
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


class HeadStore:
    """The heads of one run at one site.

    Args:
        folder: private to the run; made when the first head is written.
        spec: names and shapes of the head's tensors.
        holds: what is kept there, for messages.
        study_sha256: digest of the study that the heads belong to; None where whoever calls knows it otherwise. Another
            version of a study, or one with other privacy, must not go on from what was trained in this one.
    """

    def __init__(
        self,
        folder: Path,
        spec: TensorSpec,
        *,
        holds: str = "private head",
        study_sha256: str | None = None,
    ) -> None:
        self._holds, self._study_sha256 = holds, study_sha256
        self._folder = folder
        self._spec = spec

    def newest(self, *, before_round: int | None = None) -> tuple[int, Tensors] | None:
        """The newest head, or the newest of a round before `before_round`, with its round; None if none.

        Raises:
            TrainingError: FH-TRAIN-006 the file is damaged or belongs to another model.
        """
        rounds = [r for r in self._rounds() if before_round is None or r < before_round]
        if not rounds:
            return None
        newest = max(rounds)
        return newest, self._read(self._path(newest))

    def trained_from(self, round_number: int) -> str | None:
        """Digest of the global model that the head of that round was trained with; None where it was not written."""
        return _metadata(self._path(round_number)).get(_MODEL)

    def save(
        self,
        round_number: int,
        tensors: Mapping[str, NDArray[np.float32]],
        *,
        model_sha256: str | None = None,
    ) -> None:
        """Write a head durably: after return it survives a crash, before it the old ones are untouched.

        `model_sha256` is the digest of the global model that it was trained with.

        Heads of later rounds are removed (a round that is done again has replaced what came after it), and
        those more than `KEPT_ROUNDS` behind.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
        known = {
            _CONTENT: _digest(tensors),
            _MODEL: model_sha256,
            _STUDY: self._study_sha256,
        }
        payload = safetensors.numpy.save(
            {n: np.ascontiguousarray(t) for n, t in tensors.items()},
            metadata={key: value for key, value in known.items() if value is not None},
        )
        path = self._path(round_number)
        temporary = path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(payload)
            stream.flush()
            sync(stream.fileno())
        temporary.replace(path)
        for other in self._rounds():
            if other > round_number or other <= round_number - KEPT_ROUNDS:
                self._path(other).unlink(missing_ok=True)
        _sync_folder(self._folder)

    def _rounds(self) -> list[int]:
        return _rounds_in(self._folder)

    def _path(self, round_number: int) -> Path:
        return _path_in(self._folder, round_number)

    def _read(self, path: Path) -> Tensors:
        tensors = _read_whole(path) or {}
        if TensorSpec.of({n: tensors[n] for n in self._spec.names() if n in tensors}) != self._spec:
            raise TrainingError(
                "FH-TRAIN-006",
                f"the {self._holds} in {path.name} is damaged or belongs to another model.",
                why="Going on with a new head would silently change the site's model.",
                fix="Restore the site's state folder from a backup, or remove that file to go on from the "
                "round before.",
            )
        if self._study_sha256 is not None:
            self._check_study(path)
        return tensors

    def _check_study(self, path: Path) -> None:
        if _metadata(path).get(_STUDY) == self._study_sha256:
            return
        raise TrainingError(
            "FH-TRAIN-006",
            f"the {self._holds} in {path.name} belongs to another version of this study.",
            why="What was trained under other rules, without noise perhaps, would reach what this study releases.",
            fix=f"Move the folder {path.parent.name} of this run's state away: the site then begins anew.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """One file of a store, as it lies on the disk.

    Attributes:
        path: where.
        round_number: whose update it was trained with.
        size_bytes: of the file.
        written_at: seconds since 1970, by the file system.
        model_sha256: digest of the global model that it was trained with; None where it was not written.
        is_readable: whether its tensors are all there, and are those that were written.
    """

    path: Path
    round_number: int
    size_bytes: int
    written_at: float
    model_sha256: str | None
    is_readable: bool


def kept_files(folder: Path) -> list[KeptFile]:
    """The files of a store by round, without a model to compare them with; none where there is no folder."""
    found = []
    for number in sorted(_rounds_in(folder)):
        path = _path_in(folder, number)
        facts, is_readable = path.stat(), _read_whole(path) is not None
        found.append(
            KeptFile(
                path=path,
                round_number=number,
                size_bytes=facts.st_size,
                written_at=facts.st_mtime,
                model_sha256=_metadata(path).get(_MODEL) if is_readable else None,
                is_readable=is_readable,
            )
        )
    return found


def _rounds_in(folder: Path) -> list[int]:
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - names only
    return [int(match[1]) for match in map(_FILE.fullmatch, names) if match]


def _path_in(folder: Path, round_number: int) -> Path:
    return folder / f"head_{round_number:05d}.safetensors"


def _metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="np") as stored:
        metadata: dict[str, str] = stored.metadata() or {}
    return metadata


def _read_whole(path: Path) -> Tensors | None:
    """The tensors of a file; None where it is damaged. Files of before there was a digest are taken as they are."""
    with contextlib.suppress(SafetensorError):
        tensors: Tensors = safetensors.numpy.load(path.read_bytes())
        if _metadata(path).get(_CONTENT) in {None, _digest(tensors)}:
            return tensors
    return None


def _digest(tensors: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 over names, shapes and values: safetensors itself has no checksum, and finds a cut file only."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(f"{name} {tensors[name].shape}\n".encode())
        content.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return content.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
