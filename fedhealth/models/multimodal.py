"""The default model: one encoder a modality, a fusion, a linear head. Entry point ``multimodal``.

Called by local training through the plug-in registry. Shape legend: B patients, M modalities, E embedding.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedhealth.config.base import OptionValue
from fedhealth.contracts.data import DataContract, Modality, TableModality, VolumeModality
from fedhealth.data.batch import Batch
from fedhealth.data.tables import table_encoders
from fedhealth.models.fusion import FUSIONS
from fedhealth.models.image_encoder import ImageEncoder, VolumeEncoder
from fedhealth.models.image_encoders import make_image_encoder
from fedhealth.models.multimodal_options import MultimodalOptions
from fedhealth.models.options import parse_options
from fedhealth.models.patient_rows import row_copies, rows_of_patients
from fedhealth.models.pretrained import check_phantom_fits, load_phantom_encoder
from fedhealth.models.published_weights import LoadedWeights, load_published
from fedhealth.models.table_encoder import TableEncoder
from fedhealth.models.trainable_parts import keep_trainable
from fedhealth.models.weight_files import PinnedFile, are_weights_replaced

FUSION_PARTS = ("fusion.", "absent.")
"""Parameters by which modalities are joined: the fusion, and what stands in for an absent modality."""


class MultimodalModel(nn.Module):
    """Encoders, a learnt token for each modality that a patient may lack, a fusion, a linear head.

    Args:
        contract: modalities and their widths.
        num_outputs: logits a patient.
        options: see `MultimodalOptions`.

    Attributes:
        modality_prefixes: the encoders. The token of an absent modality is not in its block: patients who lack the
            modality train it.
    """

    head_prefixes: tuple[str, ...] = ("head.",)

    def __init__(
        self, contract: DataContract, num_outputs: int, options: MultimodalOptions
    ) -> None:
        super().__init__()
        self._modalities = contract.modalities
        self.modality_prefixes = {m.name: (f"encoders.{_key(m)}.",) for m in contract.modalities}
        self.encoders = nn.ModuleDict(
            {_key(m): _encoder(contract, m, options) for m in contract.modalities}
        )
        self.absent = nn.ParameterDict(
            {_key(m): _token(options.embedding_size) for m in contract.modalities}
        )
        self.fusion = FUSIONS[options.fusion](len(contract.modalities), options.embedding_size)
        self.head = nn.Linear(self.fusion.output_size, num_outputs)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, num_outputs) float32."""
        embeddings = [self._embed(batch, modality) for modality in self._modalities]
        present_BM = torch.stack(  # noqa: N806 - shape suffix
            [batch.present[modality.name] for modality in self._modalities], dim=1
        ).to(torch.float32)
        logits: Tensor = self.head(self.fusion(embeddings, present_BM))
        return logits

    def other_parts(self) -> list[nn.Module]:
        """Encoders of tables, and the fusion: what `lora_parts: all` adds to the image encoders."""
        tables = [e for e in self.encoders.values() if isinstance(e, TableEncoder)]
        return [*tables, self.fusion]

    def take_out_frozen_encoders(self) -> dict[str, nn.Module]:
        """Image encoders that are not trained, by modality; afterwards the model wants their output instead.

        Local training calls it once, so that a frozen encoder sees each patient once and not in every step:
        `Batch.volumes` then holds (B, E) embeddings, or (B, F) features where the projection is trained (see
        `PatientDataset.encode_volumes`).
        """
        taken: dict[str, nn.Module] = {}
        for modality in self._modalities:
            encoder = self.encoders[_key(modality)]
            parts = encoder.take_out() if isinstance(encoder, VolumeEncoder) else None
            if parts is not None:
                taken[modality.name], self.encoders[_key(modality)] = parts
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
        ConfigError: FH-MODEL-001 an option is wrong, FH-MODEL-010 the shipped weights are damaged, FH-MODEL-030 a grid
            does not fit the image encoder, FH-MODEL-031 there is nothing for low-rank changes, FH-MODEL-032 to 036 the
            weights file is missing, another or does not fit (see `published_weights`).
    """
    parsed = parse_options(MultimodalOptions, options, owner="model 'multimodal'")
    model = MultimodalModel(contract, num_outputs, parsed)
    keep_trainable(
        model,
        "image_frozen" if parsed.freezes_images_only else parsed.trainable,
        lora_rank=parsed.lora_rank,
        lora_alpha=parsed.lora_alpha,
        fusion_parts=FUSION_PARTS,
        low_rank_parts=model.other_parts() if parsed.lora_parts == "all" else (),
    )
    return model


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
    encoder = _new_image_encoder(modality, options)
    if options.image_weights == "phantom" and isinstance(encoder, ImageEncoder):
        check_phantom_fits(modality)
        load_phantom_encoder(encoder)
    if options.image_weights == "file":
        encoder.adapts_projection = False
        if not are_weights_replaced():
            _load_file(encoder, options)
    return encoder


def _new_image_encoder(modality: VolumeModality, options: MultimodalOptions) -> VolumeEncoder:
    return make_image_encoder(
        options.image_encoder,
        modality,
        embedding_size=options.embedding_size,
        widths=options.image_widths,
        patch_size=options.image_patch_size,
        frozen_norm=options.image_norm == "frozen_batch",
    )


def loaded_weights(
    contract: DataContract, options: Mapping[str, OptionValue]
) -> dict[str, LoadedWeights]:
    """What came of the options' weights file, by volume modality.

    Raises:
        ConfigError: as `build_multimodal`.
    """
    parsed = parse_options(MultimodalOptions, options, owner="model 'multimodal'")
    return {v.name: _load_file(_new_image_encoder(v, parsed), parsed) for v in contract.volumes}


def _load_file(encoder: VolumeEncoder, options: MultimodalOptions) -> LoadedWeights:
    pinned = PinnedFile(name=options.image_weights_file, sha256=options.image_weights_sha256)
    return load_published(encoder, pinned, prefix=options.image_weights_prefix)


def _token(embedding_size: int) -> nn.Parameter:
    """(E,) zeros: an absent modality begins as saying nothing."""
    return nn.Parameter(torch.zeros(embedding_size))


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    return values if rows.numel() == values.shape[0] else values[rows]
