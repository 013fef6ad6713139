"""Named tensors out of a weights file, whatever wrote it. Called by `published_weights`.

Three formats: safetensors; a checkpoint of torch (``.pt``, ``.pth``, ``.ckpt``, such as ``models/model.pt`` of a MONAI
bundle); a MONAI bundle as one zip. A checkpoint is read by the restricted unpickler of torch, which makes tensors and
plain containers and calls nothing, and only after its SHA-256 was found to be the study's.
"""

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fedhealth.errors import ConfigError
from fedhealth.models.weight_files import MAX_FILE_BYTES

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
"""Keys under which training scripts keep a state_dict; MONAI's CheckpointSaver writes ``model``."""
_PARALLEL = "module."
"""What torch's DataParallel puts before every name."""
_MAX_METADATA_BYTES = 1 << 20


def read_tensors(name: str, payload: bytes) -> dict[str, Tensor]:
    """The tensors of a file by name, without the wrapping of training scripts. Raises ConfigError FH-MODEL-034."""
    suffix = PurePosixPath(name).suffix.lower()
    try:
        if suffix == ".safetensors":
            found: object = safetensors.torch.load(payload)
        elif suffix in CHECKPOINT_SUFFIXES:
            found = _checkpoint(payload)
        elif suffix == ".zip":
            found = _checkpoint(_member(payload, "models/model.pt", MAX_FILE_BYTES))
        else:
            raise _unreadable(name, f"the suffix {suffix!r} is not known")
    except (safetensors.SafetensorError, zipfile.BadZipFile, KeyError) as error:
        raise _unreadable(name, type(error).__name__) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise _unreadable(
            name, f"it holds more than tensors, or is damaged: {type(error).__name__}"
        ) from None
    tensors = _unwrapped(found)
    if not tensors:
        raise _unreadable(name, "there is no state_dict in it")
    if all(key.startswith(_PARALLEL) for key in tensors):
        return {key.removeprefix(_PARALLEL): value for key, value in tensors.items()}
    return tensors


def bundle_metadata(path: Path, payload: bytes) -> tuple[str | None, str | None]:
    """Name and licence from a bundle's ``configs/metadata.json``; both are for people, nothing depends on them."""
    try:
        if path.suffix.lower() == ".zip":
            text = _member(payload, "configs/metadata.json", _MAX_METADATA_BYTES)
        else:
            text = (path.parent.parent / "configs" / "metadata.json").read_bytes()
        said = json.loads(text[:_MAX_METADATA_BYTES])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None, None
    if not isinstance(said, dict):
        return None, None
    title, licence = said.get("name"), said.get("license") or said.get("copyright")
    return (
        title if isinstance(title, str) else None,
        licence if isinstance(licence, str) else None,
    )


def _checkpoint(payload: bytes) -> object:
    # weights_only: torch's own unpickler that knows tensors and plain containers, and calls nothing.
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def _unwrapped(found: object) -> dict[str, Tensor]:
    """The state_dict, of whatever was wrapped around it."""
    if not isinstance(found, Mapping):
        return {}
    for key in _WRAPPERS:
        if isinstance(found.get(key), Mapping):
            return _unwrapped(found[key])
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _member(payload: bytes, ending: str, limit_bytes: int) -> bytes:
    """A file of the zip, at any depth: bundles are zipped with and without their folder. KeyError if there is none."""
    with zipfile.ZipFile(io.BytesIO(payload)) as bundle:
        for member in bundle.infolist():
            if f"/{member.filename}".endswith(f"/{ending}") and member.file_size <= limit_bytes:
                return bundle.read(member)
    raise KeyError(ending)


def _unreadable(name: str, reason: str) -> ConfigError:
    return ConfigError(
        "FH-MODEL-034",
        f"the weights file {name!r} cannot be used: {reason}.",
        why="It is read as safetensors, as a checkpoint of tensors, or as a zipped MONAI bundle; "
        "code in it is never run.",
        fix="Save the network's state_dict as safetensors, and pin that file.",
    )
