"""Logistic regression over all modalities and their products: entry point ``logistic_fusion``.

For small hospitals and for training under noise. The noise of a private step is as long as the square root of the
number of trained values; this model has tens of them where `multimodal` has thousands, it is convex, and what an
image says enters as one public number. Called by local training through the plug-in registry.
"""

from collections.abc import Mapping
from itertools import product
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.contracts.data import DataContract
from fedhealth.data.batch import Batch
from fedhealth.data.tables import table_encoders
from fedhealth.models.options import parse_options
from fedhealth.models.patient_rows import row_copies
from fedhealth.models.pretrained import PhantomLoad, check_phantom_fits


class LogisticFusionOptions(ConfigModel):
    """Options of the model in study.yaml."""

    products: Literal["volume_table", "none"] = Field(
        "volume_table",
        description="volume_table: also each table feature times each volume's number; none: sums only.",
    )


class Intercept(nn.Module):
    """(num_outputs,) values added to every patient's logits: what differs between hospitals first."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, num_rows: int) -> Tensor:
        """(num_rows, num_outputs) float32."""
        return row_copies(self.bias, num_rows)


class LogisticFusion(nn.Module):
    """Logits that are linear in every modality's features, in its absence, and in products of two modalities.

    Features of a table are its encoded columns and its missing-value indicators (`fedhealth.data.tables`); of a volume
    the lesion load that the shipped encoder reads from it (`PhantomLoad`, pretrained on phantoms of T1 volumes of the
    brain, not clinical). The product of a volume's number and a table's features carries what only both together
    tell (Kim et al. 2017, "Hadamard Product for Low-rank Bilinear Pooling", section 2). All weights begin at zero.

    The head is the intercept alone: with ``personalisation: private_head`` hospitals share everything but how
    frequent the disease is among their patients.

    Args:
        contract: modalities and their widths.
        num_outputs: logits a patient.
        options: see `LogisticFusionOptions`.

    Attributes:
        modality_prefixes: each modality's own weights; a product belongs to its volume.

    Raises:
        ConfigError: FH-MODEL-010 the shipped weights are damaged, FH-MODEL-030 a modality is a 2D image.
    """

    head_prefixes: tuple[str, ...] = ("head.",)

    def __init__(
        self, contract: DataContract, num_outputs: int, options: LogisticFusionOptions
    ) -> None:
        super().__init__()
        widths = table_encoders(contract)
        self._tables = {f"table_{t.name}": t.name for t in contract.tables}
        self._volumes = {f"volume_{v.name}": v.name for v in contract.volumes}
        self._names = [modality.name for modality in contract.modalities]
        self._products = {
            f"{volume}_x_{table}": (volume, table)
            for volume, table in product(self._volumes, self._tables)
            if options.products == "volume_table"
        }
        for volume in contract.volumes:
            check_phantom_fits(volume)
        self.modality_prefixes: dict[str, tuple[str, ...]] = {
            name: (f"weights.{key}.",) for key, name in {**self._tables, **self._volumes}.items()
        }
        for key, (volume_key, _) in self._products.items():
            self.modality_prefixes[self._volumes[volume_key]] += (f"weights.{key}.",)
        self.encoders = nn.ModuleDict({key: PhantomLoad() for key in self._volumes})
        sizes = {
            key: widths[name].num_features + widths[name].num_columns
            for key, name in self._tables.items()
        }
        sizes |= dict.fromkeys(self._volumes, 1)
        sizes |= {
            key: widths[self._tables[t]].num_features for key, (_, t) in self._products.items()
        }
        sizes["absent"] = len(self._names)
        self.weights = nn.ModuleDict(
            {key: _zero_layer(size, num_outputs) for key, size in sizes.items()}
        )
        self.head = Intercept(num_outputs)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, num_outputs) float32."""
        present_BM = torch.stack([batch.present[name] for name in self._names], dim=1)  # noqa: N806
        features = {
            # A whole table that is absent is not each of its values missing: its weights stay its owners'.
            key: torch.cat(
                [batch.tables[name], batch.missing[name] * batch.present[name][:, None]], dim=1
            )
            for key, name in self._tables.items()
        }
        features |= {key: self._load(batch, key) for key in self._volumes}
        features |= {
            key: features[volume] * batch.tables[self._tables[table]]
            for key, (volume, table) in self._products.items()
        }
        features["absent"] = (~present_BM).to(torch.float32)
        logits: Tensor = self.head(len(batch))
        for key, layer in self.weights.items():
            logits = logits + layer(features[key])
        return logits

    def take_out_frozen_encoders(self) -> dict[str, nn.Module]:
        """The volumes' encoders by modality; afterwards the model wants their (B, 1) outputs instead of volumes."""
        taken: dict[str, nn.Module] = {}
        for key, name in self._volumes.items():
            if isinstance(self.encoders[key], PhantomLoad):
                taken[name] = self.encoders[key]
                self.encoders[key] = nn.Identity()
        return taken

    def _load(self, batch: Batch, key: str) -> Tensor:
        """(B, 1): zero where the volume is absent."""
        present = batch.present[self._volumes[key]]
        values = batch.volumes[self._volumes[key]]
        rows = present.nonzero().squeeze(1)
        if isinstance(self.encoders[key], nn.Identity):
            return values * present[:, None]
        load = torch.zeros(len(batch), 1, device=values.device)
        return load.index_copy(0, rows, self.encoders[key](values[rows])) if rows.numel() else load


def build_logistic_fusion(
    contract: DataContract, num_outputs: int, options: Mapping[str, OptionValue]
) -> LogisticFusion:
    """A new model (a `ModelBuilder`).

    Raises:
        ConfigError: FH-MODEL-001 an option is wrong, FH-MODEL-010 the shipped weights are damaged.
    """
    parsed = parse_options(LogisticFusionOptions, options, owner="model 'logistic_fusion'")
    return LogisticFusion(contract, num_outputs, parsed)


def _zero_layer(num_features: int, num_outputs: int) -> nn.Linear:
    layer = nn.Linear(num_features, num_outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
