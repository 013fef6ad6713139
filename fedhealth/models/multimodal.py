"""The default model: one encoder a modality, gated fusion, a linear head. Entry point ``multimodal``.

Called by local training through the plug-in registry. Shape legend: B patients, M modalities, E embedding.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.contracts.data import DataContract, Modality, TableModality
from fedhealth.data.batch import Batch
from fedhealth.data.tables import table_encoders
from fedhealth.models.fusion import GatedFusion
from fedhealth.models.image_encoder import CHANNELS_PER_GROUP, ImageEncoder
from fedhealth.models.options import parse_options
from fedhealth.models.patient_rows import row_copies, rows_of_patients
from fedhealth.models.pretrained import ENCODER_EMBEDDING_SIZE, ENCODER_WIDTHS, load_phantom_encoder
from fedhealth.models.table_encoder import TableEncoder

Width = Annotated[int, Field(ge=CHANNELS_PER_GROUP, le=512, multiple_of=CHANNELS_PER_GROUP)]


class MultimodalOptions(ConfigModel):
    """Options of the model in study.yaml."""

    embedding_size: int = Field(
        16, ge=1, le=512, description="Numbers an encoder makes of a modality."
    )
    table_hidden_size: int = Field(
        32, ge=1, le=4096, description="Hidden units of a table encoder."
    )
    image_widths: list[Width] = Field(
        default_factory=lambda: list(ENCODER_WIDTHS),
        min_length=1,
        max_length=6,
        description="Channels of each block of an image encoder, multiples of 4.",
    )
    image_weights: Literal["random", "phantom"] = Field(
        "random",
        description="phantom: start from the shipped encoder, pretrained on synthetic phantoms, not clinical.",
    )
    freeze_image_encoder: bool = Field(
        False, description="True: image encoders are not trained and do not travel."
    )

    @model_validator(mode="after")
    def _pretrained_shape(self) -> Self:
        if self.image_weights == "phantom" and (
            tuple(self.image_widths) != ENCODER_WIDTHS
            or self.embedding_size != ENCODER_EMBEDDING_SIZE
        ):
            raise ValueError(
                f"image_weights phantom needs image_widths {list(ENCODER_WIDTHS)} and "
                f"embedding_size {ENCODER_EMBEDDING_SIZE}"
            )
        return self


class MultimodalModel(nn.Module):
    """Encoders, a learnt token for each modality that a patient may lack, gated fusion, a linear head.

    Args:
        contract: modalities and their widths.
        num_outputs: logits a patient.
        options: see `MultimodalOptions`.
    """

    head_prefixes: tuple[str, ...] = ("head.",)

    def __init__(
        self, contract: DataContract, num_outputs: int, options: MultimodalOptions
    ) -> None:
        super().__init__()
        self._modalities = contract.modalities
        self.encoders = nn.ModuleDict(
            {_key(m): _encoder(contract, m, options) for m in contract.modalities}
        )
        self.absent = nn.ParameterDict(
            {_key(m): _token(options.embedding_size) for m in contract.modalities}
        )
        self.fusion = GatedFusion(len(contract.modalities), options.embedding_size)
        self.head = nn.Linear(self.fusion.output_size, num_outputs)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, num_outputs) float32."""
        embeddings = [self._embed(batch, modality) for modality in self._modalities]
        present_BM = torch.stack(  # noqa: N806 - shape suffix
            [batch.present[modality.name] for modality in self._modalities], dim=1
        ).to(torch.float32)
        logits: Tensor = self.head(self.fusion(embeddings, present_BM))
        return logits

    def take_out_frozen_encoders(self) -> dict[str, nn.Module]:
        """Image encoders that are not trained, by modality; afterwards the model wants their embeddings.

        Local training calls it once, so that a frozen encoder sees each patient once and not in every step:
        `Batch.volumes` then holds (B, E) embeddings (see `PatientDataset.encode_volumes`).
        """
        taken: dict[str, nn.Module] = {}
        for modality in self._modalities:
            encoder = self.encoders[_key(modality)]
            if isinstance(encoder, ImageEncoder) and not any(
                p.requires_grad for p in encoder.parameters()
            ):
                taken[modality.name] = encoder
                self.encoders[_key(modality)] = nn.Identity()
        return taken

    def _embed(self, batch: Batch, modality: Modality) -> Tensor:
        """Embeddings (B, E): the encoder's where the modality is present, the token elsewhere.

        The encoder sees only patients who have the modality: a site without imaging pays nothing for it,
        and its image encoder has no gradient at all.
        """
        name = modality.name
        rows = batch.present[name].nonzero().squeeze(1)
        token_BE = row_copies(self.absent[_key(modality)], len(batch))  # noqa: N806
        if rows.numel() == 0:
            return token_BE
        if rows.numel() == len(batch):
            return self._encode(batch, modality, rows)
        with rows_of_patients(rows):
            encoded = self._encode(batch, modality, rows)
        return token_BE.index_copy(0, rows, encoded)

    def _encode(self, batch: Batch, modality: Modality, rows: Tensor) -> Tensor:
        encoder, name = self.encoders[_key(modality)], modality.name
        if isinstance(modality, TableModality):
            features, missing = batch.tables[name], batch.missing[name]
            encoded: Tensor = encoder(_rows(features, rows), _rows(missing, rows))
        else:
            encoded = encoder(_rows(batch.volumes[name], rows))
        return encoded


def build_multimodal(
    contract: DataContract, num_outputs: int, options: Mapping[str, OptionValue]
) -> MultimodalModel:
    """A new model (a `ModelBuilder`).

    Raises:
        ConfigError: FH-MODEL-001 an option is wrong, FH-MODEL-010 the shipped weights are damaged.
    """
    parsed = parse_options(MultimodalOptions, options, owner="model 'multimodal'")
    return MultimodalModel(contract, num_outputs, parsed)


def _key(modality: Modality) -> str:
    """Name of a modality's parameters. The prefix keeps names such as ``keys`` clear of torch's own."""
    kind = "table" if isinstance(modality, TableModality) else "volume"
    return f"{kind}_{modality.name}"


def _encoder(contract: DataContract, modality: Modality, options: MultimodalOptions) -> nn.Module:
    if isinstance(modality, TableModality):
        widths = table_encoders(contract)[modality.name]
        return TableEncoder(
            widths.num_features,
            widths.num_columns,
            hidden_size=options.table_hidden_size,
            embedding_size=options.embedding_size,
        )
    encoder = ImageEncoder(options.image_widths, options.embedding_size)
    if options.image_weights == "phantom":
        load_phantom_encoder(encoder)
    return encoder.requires_grad_(not options.freeze_image_encoder)


def _token(embedding_size: int) -> nn.Parameter:
    """(E,) zeros: an absent modality begins as saying nothing."""
    return nn.Parameter(torch.zeros(embedding_size))


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    return values if rows.numel() == values.shape[0] else values[rows]
