"""The files of an exported model, in the layout of a MONAI bundle. Called by `server.export` and `site.export`.

MONAI 1.6: `configs/metadata.json` has what `monai.bundle.properties.MetaProperties` asks for and the fields of the
bundle specification; `configs/inference.json` names the network. There is no `models/model.pt`: that is a pickle. The
bytes depend on the arguments only.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fedhealth.contracts.data import (
    DataContract,
    MaskLabel,
    MultiLabel,
    SurvivalLabel,
    TableModality,
    VolumeModality,
)
from fedhealth.data.tables import TableEncoder
from fedhealth.durable import write_atomically
from fedhealth.errors import UsageError
from fedhealth.report.model_card import ModelCard
from fedhealth.report.model_card_page import card_markdown

CARD_PAGE: Final = Path("docs") / "README.md"
BUNDLE_VERSION: Final = "1.0.0"
_MODE: Final = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleParts:
    """What a bundle is made of.

    Attributes:
        description: bytes of `configs/model.json`.
        weights: bytes of `models/model.safetensors`.
        num_outputs: logits a patient.
        versions: of the libraries that ran: fedhealth, monai, torch, numpy and safetensors.
        license_text: of the consortium; None leaves the file out.
    """

    card: ModelCard
    contract: DataContract
    description: bytes = field(repr=False)
    weights: bytes = field(repr=False)
    num_outputs: int
    versions: Mapping[str, str]
    license_text: str | None = None


def bundle_files(parts: BundleParts) -> dict[str, bytes]:
    """Every file of the bundle by its path in the folder."""
    files = {
        "configs/metadata.json": _json(_metadata(parts)),
        "configs/inference.json": _json(_inference()),
        "configs/model.json": parts.description,
        CARD_PAGE.as_posix(): card_markdown(parts.card).encode(),
        "docs/model_card.json": _json(parts.card.model_dump(mode="json")),
        "models/model.safetensors": parts.weights,
    }
    if parts.license_text is not None:
        files["LICENSE"] = parts.license_text.encode()
    return files


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that an exported model needs, as they are installed here."""
    return {n: version(n) for n in ("fedhealth", "monai", "torch", "numpy", "safetensors")}


def write_bundle(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into a folder that is not there yet, or is empty.

    Raises:
        UsageError: FH-USAGE-080 the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            "FH-USAGE-080",
            "the folder of --out is not empty.",
            why="Files of two models in one folder would be a third one.",
            fix="Give a folder that is not there yet.",
        )
    for name, content in files.items():
        write_atomically(folder / name, content, mode=_MODE)


def _metadata(parts: BundleParts) -> dict[str, Any]:
    card = parts.card
    return {
        "version": BUNDLE_VERSION,
        "changelog": {
            BUNDLE_VERSION: f"round {card.study.rounds_done} of run {card.study.run_name}"
        },
        "monai_version": parts.versions["monai"],
        "pytorch_version": parts.versions["torch"].split("+")[0],
        "numpy_version": parts.versions["numpy"],
        "required_packages_version": {
            name: parts.versions[name] for name in ("fedhealth", "safetensors")
        },
        "name": card.study.study_title,
        "task": card.study.task,
        "description": f"Run {card.study.run_name} of study {card.study.study_id}, trained by federated learning.",
        "intended_use": card.intended_use,
        "authors": card.authors,
        "copyright": card.authors,
        "data_type": "NIfTI volumes and a CSV table",
        "eval_metrics": {} if card.metrics is None else dict(sorted(card.metrics.values.items())),
        "network_data_format": {
            "inputs": {m.name: _input(m) for m in parts.contract.modalities},
            "outputs": {"pred": _output(parts)},
        },
    }


def _input(modality: TableModality | VolumeModality) -> dict[str, Any]:
    if isinstance(modality, VolumeModality):
        return {
            "type": "image",
            "format": "magnitude",
            "modality": "unspecified",
            "num_channels": 1,
            "spatial_shape": list(modality.shape),
            "dtype": "float32",
            "value_range": [],
            "is_patch_data": False,
            "channel_def": {"0": modality.name},
        }
    features = TableEncoder(modality).feature_names
    return {
        "type": "tuples",
        "format": "raw",
        "num_channels": len(features),
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
        "channel_def": {str(index): name for index, name in enumerate(features)},
    }


def _output(parts: BundleParts) -> dict[str, Any]:
    target = parts.contract.target
    return {
        "type": "tuples",
        "format": "logits",
        "num_channels": parts.num_outputs,
        "spatial_shape": list(target.grid.shape) if isinstance(target, MaskLabel) else [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {
            str(index): name
            for index, name in enumerate(_channels(parts.contract, parts.num_outputs))
        },
    }


def _channels(contract: DataContract, num_outputs: int) -> list[str]:
    """What each logit is about."""
    match contract.target:
        case None:
            codes = contract.label_codes[1:] if num_outputs == 1 else contract.label_codes
            return [f"{contract.label_column}={code}" for code in codes]
        case MultiLabel(columns=columns):
            return list(columns)
        case SurvivalLabel(time_column=time):
            if num_outputs == 1:
                return [f"log hazard ratio of {time}"]
            return [f"hazard of {time} in interval {index + 1}" for index in range(num_outputs)]
        case MaskLabel(name=name, codes=codes):
            return [f"{name}={code}" for code in codes]


def _inference() -> dict[str, Any]:
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "fedhealth.models.exported.load_network",
            "bundle_root": "@bundle_root",
        },
        "network": "$@network_def.to(@device)",
    }


def _json(value: Any) -> bytes:  # noqa: ANN401 - whatever JSON holds
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
