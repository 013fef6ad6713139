"""A model outside of its federation: what describes it, its weights, and how it is opened again.

Called by `model export` and `predict`, and by anybody with an exported folder. Nothing here reads a study file or a
home. The weights are the model's named parameters, trained or frozen, in one safetensors file; there is no pickle.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from fedhealth import plugins
from fedhealth.config.base import ConfigModel
from fedhealth.config.data import DataConfig
from fedhealth.config.study import PluginChoice
from fedhealth.contracts.data import DataContract
from fedhealth.data.batch import PatientDataset
from fedhealth.errors import ConfigError, EvidenceError, TrainingError
from fedhealth.models.build import seeded_model
from fedhealth.models.judgement import predictions_of
from fedhealth.models.protocol import Predictions, Task
from fedhealth.models.weight_files import weights_replaced

if TYPE_CHECKING:
    from fedhealth.config.study import Study

DESCRIPTION_FILE = Path("configs") / "model.json"
WEIGHTS_FILE = Path("models") / "model.safetensors"
DESCRIPTION_SCHEMA: Literal["fedhealth/exported-model/v1"] = "fedhealth/exported-model/v1"
_OWN_DIGEST: Final = "content_sha256"
"""SHA-256 of all other fields of the file as they are in it. It tells accidents; it is no signature."""


class ModelDescription(ConfigModel):
    """What a model is built from: the parts of a study that say what goes in, what comes out, and how."""

    schema_id: Literal["fedhealth/exported-model/v1"] = Field(
        DESCRIPTION_SCHEMA, description="Version of this file's format."
    )
    seed: int = Field(ge=0, lt=2**31, description="Of the parts that stay as they were drawn.")
    data: DataConfig = Field(description="What every patient's data must look like.")
    task: PluginChoice = Field(description="What is predicted.")
    model: PluginChoice = Field(description="How the model is built.")
    weights_sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the weights file."
    )
    missing_tensors: tuple[str, ...] = Field(
        (), description="Tensors that only sites have; with any, the model cannot predict."
    )
    unseen_modalities: tuple[str, ...] = Field(
        (), description="Modalities that nobody trained this model on: left out of predictions."
    )

    @classmethod
    def of(
        cls,
        study: "Study",
        weights: bytes,
        *,
        missing_tensors: tuple[str, ...] = (),
        unseen_modalities: tuple[str, ...] = (),
    ) -> "ModelDescription":
        """The description of a study's model with these weights."""
        return cls(
            seed=study.seed,
            data=study.data,
            task=study.task,
            model=study.model,
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            missing_tensors=missing_tensors,
            unseen_modalities=unseen_modalities,
        )

    def to_bytes(self) -> bytes:
        """The file's content, with a digest of itself: the same description gives the same bytes."""
        fields = self.model_dump(mode="json")
        return json.dumps(fields | {_OWN_DIGEST: _digest(fields)}, indent=2).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model that predicts. `contract` is that of new patients: without labels.

    Patients are scored as if they lacked the `unseen` modalities: what reads those was never trained on anybody.
    """

    model: nn.Module = field(repr=False)
    task: Task = field(repr=False)
    contract: DataContract
    weights_sha256: str
    unseen: tuple[str, ...] = ()

    def predict(
        self, dataset: PatientDataset, *, batch_size: int = 64, device: str | torch.device = "cpu"
    ) -> Predictions:
        """(N, ...) what the task predicts of N records: (N,) probabilities of label 1 for a binary one.

        Raises:
            TrainingError: FH-TRAIN-004 the model's output is not finite.
            SiteDataError: a volume cannot be read.
        """
        self.model.to(device).eval()
        parts: list[Predictions] = []
        with torch.inference_mode():
            for start in range(0, len(dataset), batch_size):
                rows = np.arange(start, min(start + batch_size, len(dataset)))
                batch = dataset.batch(rows).without(self.unseen)
                logits = self.model(batch.to(device))
                parts.append(predictions_of(self.task, logits))
        nobody = torch.zeros(0, self.task.num_outputs)
        found = np.concatenate(parts or [predictions_of(self.task, nobody)])
        if not np.isfinite(found).all():
            raise TrainingError(
                "FH-TRAIN-004",
                "the model's output is not finite.",
                why="A score that is no number says nothing about a patient.",
                fix="Take the model of another round or run.",
            )
        return found


def weights_bytes(parameters: Mapping[str, nn.Parameter]) -> bytes:
    """The weights file of named parameters: the same values give the same bytes."""
    return save({name: p.detach().cpu().contiguous() for name, p in parameters.items()})


def open_folder(folder: Path) -> OpenedModel:
    """The model of an exported folder.

    Raises:
        EvidenceError: FH-EXPORT-001 a file is missing or damaged, or is of another model.
        ConfigError: as `open_model`.
    """
    try:
        description = (folder / DESCRIPTION_FILE).read_bytes()
        weights = (folder / WEIGHTS_FILE).read_bytes()
    except OSError:
        raise _damaged("it lacks configs/model.json or models/model.safetensors") from None
    return open_model(description, weights)


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _described(content: bytes) -> ModelDescription:
    """What the file says, where it is the file that was written: another limit or label order gives other scores."""
    try:
        fields = json.loads(content)
        own = fields.pop(_OWN_DIGEST)
        said = ModelDescription.model_validate_json(json.dumps(fields))
    except (ValueError, AttributeError, TypeError, KeyError):
        raise _damaged("configs/model.json is no description of a model") from None
    if own != _digest(fields):
        raise _damaged("configs/model.json was changed after it was written")
    return said


def load_network(bundle_root: str) -> nn.Module:
    """The network of an exported folder: `configs/inference.json` names this. Raises as `open_folder`."""
    return open_folder(Path(bundle_root)).model.eval()


def open_model(description: bytes, weights: bytes) -> OpenedModel:
    """Build the model that is described, and give it these weights.

    Raises:
        EvidenceError: FH-EXPORT-001 the description does not read or was changed, or the weights are not those that it
            names.
        ConfigError: model or task are not installed (FH-CONFIG-010 to 012) or refuse their options; FH-EXPORT-002 the
            model lacks tensors that only sites have; FH-EXPORT-003 the installed model has other tensors.
    """
    said = _described(description)
    if hashlib.sha256(weights).hexdigest() != said.weights_sha256:
        raise _damaged("the weights are not those that configs/model.json names")
    if said.missing_tensors:
        raise ConfigError(
            "FH-EXPORT-002",
            f"this model lacks {len(said.missing_tensors)} tensors that only the sites have.",
            why="The run keeps part of the model at every site; what the server has cannot predict by itself.",
            fix="Use the model that a site exported, or fine-tune the missing part on data of your own.",
        )
    contract = replace(said.data.to_contract(seed=said.seed), has_labels=False)
    task: Task = plugins.load("fedhealth.tasks", said.task.name)(contract, said.task.options)
    builder = plugins.load("fedhealth.models", said.model.name)
    with weights_replaced():
        model = seeded_model(
            builder, contract, task.num_outputs, said.model.options, seed=said.seed
        )
    _put(model, weights)
    return OpenedModel(
        model=model,
        task=task,
        contract=contract,
        weights_sha256=said.weights_sha256,
        unseen=said.unseen_modalities,
    )


def _put(model: nn.Module, weights: bytes) -> None:
    try:
        tensors = load(weights)
    except SafetensorError:
        raise _damaged("the weights do not read") from None
    parameters = dict(model.named_parameters())
    same = {n: tuple(t.shape) for n, t in tensors.items()} == {
        n: tuple(p.shape) for n, p in parameters.items()
    }
    if not same:
        raise ConfigError(
            "FH-EXPORT-003",
            f"the model that is installed here has other tensors ({len(parameters)}, the file {len(tensors)}).",
            why="Weights say nothing in a model of another shape.",
            fix="Install the versions that the model card names.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _damaged(reason: str) -> EvidenceError:
    return EvidenceError(
        "FH-EXPORT-001",
        f"this folder is no exported model: {reason}.",
        why="A score of a damaged or exchanged model could be anything.",
        fix="Give the folder that `fedhealth model export` wrote, whole and unchanged, or export it again.",
    )
