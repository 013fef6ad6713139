"""Model and strategy state after every completed round, and how a run goes on from the last one."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedhealth.contracts.blocks import ModalityBlock
from fedhealth.contracts.tensors import TensorSpec, vector_digest
from fedhealth.durable import read_json, write_atomically, write_json
from fedhealth.errors import AggregationError, EvidenceError
from fedhealth.server.home import RunFolder

KEPT: int = 2  # the last, and the one before in case the last is damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a run stands: `round_number` rounds are complete; 0 is the initial model.

    `record` is the last round's record, so that a crash before its report was written does not lose it.
    """

    round_number: int
    spec: TensorSpec
    vector: NDArray[np.float32] = field(repr=False)
    strategy_state: Mapping[str, NDArray[Any]] = field(repr=False)
    record: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What of a run's model follows from the study besides its tensors.

    Attributes:
        blocks: tensors that are averaged over the sites with a modality.
        summed_modalities: modalities whose tensors are in a masked sum over all sites.
        frozen_sha256: digest of what nobody trains; None where all is trained.
    """

    blocks: tuple[ModalityBlock, ...]
    summed_modalities: tuple[str, ...]
    frozen_sha256: str | None


def write_checkpoint(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Write durably; the folder's `meta.json` comes last and makes it valid. Old ones are removed."""
    place = folder.checkpoints / f"round-{checkpoint.round_number:04d}"
    write_atomically(
        place / "model.safetensors", save(checkpoint.spec.unflatten(checkpoint.vector))
    )
    state = save(dict(checkpoint.strategy_state))
    write_atomically(place / "strategy.safetensors", state)
    write_atomically(place / "record.json", checkpoint.record)
    write_json(
        place / "meta.json",
        {
            "round_number": checkpoint.round_number,
            "model_sha256": vector_digest(checkpoint.vector),
            "strategy_sha256": hashlib.sha256(state).hexdigest(),
            "tensors": checkpoint.spec.names(),
        },
    )
    for stale in _places(folder)[:-KEPT]:
        shutil.rmtree(stale)


def read_last_checkpoint(folder: RunFolder) -> Checkpoint:
    """The last valid checkpoint, or the initial model.

    Raises:
        EvidenceError: FH-EVIDENCE-030 there is no valid model at all.
    """
    for place in reversed(_places(folder)):
        found = _read(place)
        if found is not None:
            return found
    try:
        tensors = load(folder.initial_model.read_bytes())
    except (OSError, SafetensorError):
        raise EvidenceError(
            "FH-EVIDENCE-030",
            f"the initial model of run {folder.root.name} is missing or damaged.",
            why="There is nothing to train from.",
            fix="Restore it from a backup of the server's home, or initialise the study again.",
        ) from None
    spec = TensorSpec.of(
        _in_file_order(tensors, read_json(folder.initial_model.with_suffix(".json")))
    )
    return Checkpoint(round_number=0, spec=spec, vector=spec.flatten(tensors), strategy_state={})


def write_initial(
    folder: RunFolder,
    tensors: Mapping[str, NDArray[np.float32]],
    blocks: Sequence[ModalityBlock] = (),
    summed_modalities: Sequence[str] = (),
    frozen_sha256: str | None = None,
) -> None:
    """Write the model of round 1 with the order of its tensors (safetensors sorts them by name).

    Args:
        folder: of the run.
        tensors: by name.
        blocks: which of them are averaged over the sites with a modality.
        summed_modalities: modalities whose tensors are in a masked sum over all sites.
        frozen_sha256: digest of what nobody trains; None where all is trained.
    """
    write_atomically(folder.initial_model, save(dict(tensors)))
    meta = {
        "tensors": list(tensors),
        "blocks": [{"modality": b.modality, "tensors": list(b.tensors)} for b in blocks],
        "summed_modalities": list(summed_modalities),
        "frozen_sha256": frozen_sha256,
    }
    write_json(folder.initial_model.with_suffix(".json"), meta)


def read_agreed(folder: RunFolder) -> Agreed:
    """What `write_initial` wrote beside the tensors; sites hold it against their own.

    Raises:
        EvidenceError: the file is damaged.
    """
    meta = read_json(folder.initial_model.with_suffix(".json"))
    frozen = meta.get("frozen_sha256")
    return Agreed(
        blocks=tuple(
            ModalityBlock(modality=str(block["modality"]), tensors=tuple(block["tensors"]))
            for block in meta.get("blocks", [])
        ),
        summed_modalities=tuple(str(name) for name in meta.get("summed_modalities", [])),
        frozen_sha256=None if frozen is None else str(frozen),
    )


def _read(place: Path) -> Checkpoint | None:
    """The checkpoint there, or None when a crash or a disk left it incomplete."""
    try:
        meta = read_json(place / "meta.json")
        tensors = load((place / "model.safetensors").read_bytes())
        strategy = (place / "strategy.safetensors").read_bytes()
        spec = TensorSpec.of(_in_file_order(tensors, meta))
        found = Checkpoint(
            round_number=int(meta["round_number"]),
            spec=spec,
            vector=spec.flatten(tensors),
            strategy_state=load(strategy),
            record=(place / "record.json").read_bytes(),
        )
        digests = meta["model_sha256"], meta["strategy_sha256"]
    except (
        OSError,
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AggregationError,
        EvidenceError,
    ):
        return None
    if (vector_digest(found.vector), hashlib.sha256(strategy).hexdigest()) != digests:
        return None
    return found


def _in_file_order(
    tensors: Mapping[str, NDArray[np.float32]], meta: Mapping[str, Any]
) -> dict[str, NDArray[np.float32]]:
    return {name: tensors[name] for name in meta.get("tensors", list(tensors))}


def _places(folder: RunFolder) -> list[Path]:
    """Oldest first; by number, since ten thousand sorts before two thousand as text."""
    places = folder.checkpoints.glob("round-*")
    return sorted(places, key=lambda place: int(place.name.removeprefix("round-")))
