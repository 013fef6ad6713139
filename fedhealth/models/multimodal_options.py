"""Options of the model `multimodal` in study.yaml. Imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhealth.config.base import ConfigModel

CHANNELS_PER_GROUP = 4
"""GroupNorm over groups of four channels: fewer and a group of one voxel-poor channel is all noise."""
PHANTOM_WIDTHS = (8, 16, 32)
PHANTOM_EMBEDDING_SIZE = 16

Width = Annotated[int, Field(ge=CHANNELS_PER_GROUP, le=512, multiple_of=CHANNELS_PER_GROUP)]


class MultimodalOptions(ConfigModel):
    """Options of the model in study.yaml."""

    embedding_size: int = Field(
        16, ge=1, le=512, description="Numbers an encoder makes of a modality."
    )
    table_hidden_size: int = Field(
        32, ge=1, le=4096, description="Hidden units of a table encoder."
    )
    fusion: Literal["gated", "concatenation", "product", "cross_attention"] = Field(
        "gated", description="How the embeddings of the modalities become one vector."
    )
    image_encoder: Literal[
        "cnn",
        "resnet10",
        "resnet18",
        "densenet_small",
        "densenet121",
        "vit_tiny",
        "vit_base",
        "swin_unetr_24",
        "swin_unetr_48",
    ] = Field("cnn", description="Network for volumes and images (docs/how-to/choose-a-model.md).")
    image_widths: list[Width] = Field(
        default_factory=lambda: list(PHANTOM_WIDTHS),
        min_length=1,
        max_length=6,
        description="Channels of each block of image_encoder cnn, multiples of 4.",
    )
    image_patch_size: int = Field(
        8, ge=2, le=64, description="Side of a patch of vit_tiny and vit_base, in voxels."
    )
    image_norm: Literal["group", "frozen_batch"] = Field(
        "group",
        description="What stands for BatchNorm in resnet and densenet encoders. frozen_batch: the statistics of a "
        "weights file, folded in as constants.",
    )
    image_weights: Literal["random", "phantom", "file"] = Field(
        "random",
        description="phantom: start from the shipped encoder, pretrained on synthetic phantoms, not clinical; file: "
        "from image_weights_file.",
    )
    image_weights_file: str = Field(
        "",
        max_length=200,
        pattern=r"^(?:[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*)?$",
        description="File below weights/ of every home (or beside study.yaml): .safetensors, a torch checkpoint, or a "
        "MONAI bundle as .zip.",
    )
    image_weights_sha256: str = Field(
        "", pattern=r"^(?:[0-9a-f]{64})?$", description="SHA-256 of that file; another is refused."
    )
    image_weights_prefix: str = Field(
        "",
        max_length=200,
        description="What stands before the encoder's names in that file, such as encoder.",
    )
    freeze_image_encoder: bool = Field(
        False, description="True: image encoders are not trained and do not travel."
    )
    trainable: Literal["all", "head_only", "head_and_fusion", "lora", "image_frozen"] = Field(
        "all",
        description="What is trained and travels. lora: low-rank changes of image encoders (FFA-LoRA) and everything "
        "else; image_frozen: everything but image encoders; head_and_fusion also takes the absent-modality tokens.",
    )
    lora_rank: int = Field(8, ge=1, le=256, description="Rank of the changes with trainable lora.")
    lora_alpha: float = Field(
        16.0, gt=0, le=1024, description="The changes are scaled by lora_alpha / lora_rank."
    )

    lora_parts: Literal["image", "all"] = Field(
        "image",
        description="With trainable lora, where changes are low-rank. image: in image encoders, and everything else is "
        "trained in full; all: in the linear layers of tables and fusion too.",
    )

    @model_validator(mode="after")
    def _pretrained_shape(self) -> Self:
        if self.image_weights == "phantom" and (
            self.image_encoder != "cnn"
            or tuple(self.image_widths) != PHANTOM_WIDTHS
            or self.embedding_size != PHANTOM_EMBEDDING_SIZE
        ):
            raise ValueError(
                f"image_weights phantom needs image_encoder cnn, image_widths {list(PHANTOM_WIDTHS)} and "
                f"embedding_size {PHANTOM_EMBEDDING_SIZE}"
            )
        return self

    @model_validator(mode="after")
    def _file_is_pinned(self) -> Self:
        given = (self.image_weights_file, self.image_weights_sha256)
        if self.image_weights == "file":
            if not all(given):
                raise ValueError(
                    "image_weights file needs image_weights_file and image_weights_sha256"
                )
        elif any(given) or self.image_weights_prefix:
            raise ValueError("image_weights_file, _sha256 and _prefix belong to image_weights file")
        has_batch_norm = self.image_encoder.startswith(("resnet", "densenet"))
        if self.image_norm == "frozen_batch" and not (
            self.image_weights == "file" and has_batch_norm
        ):
            raise ValueError(
                "image_norm frozen_batch needs image_weights file and a resnet or densenet encoder"
            )
        return self

    @model_validator(mode="after")
    def _one_answer_on_freezing(self) -> Self:
        if self.freeze_image_encoder and self.trainable == "lora":
            raise ValueError("freeze_image_encoder leaves nothing for trainable lora to change")
        if self.lora_parts == "all" and self.trainable != "lora":
            raise ValueError("lora_parts all belongs to trainable lora")
        return self

    @property
    def freezes_images_only(self) -> bool:
        """`freeze_image_encoder` is an older word for `trainable: image_frozen`."""
        return self.freeze_image_encoder and self.trainable == "all"
