"""Bytes of one update of a model: float32, 8 bits, under masks. Worked out from the code that writes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from fedhealth.config.load import load_study
from fedhealth.config.study import Study
from fedhealth.config.template import template_path
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.contracts.update_encoding import encoded_size
from fedhealth.secagg.layout import MaskedLayout, TailLayout
from fedhealth.secagg.site_side import sealed_size
from fedhealth.site.sessions import load_training_method

NUM_SITES: Final = 3
SHIPPED: Final = ("heart", "synthetic", "blank", "survival", "segmentation", "client-specific")
MASKS: Final = {
    # as shipped; the same with one weight for all; the same with fewer bits
    "masked_16_bits_by_size": (16, 4096),
    "masked_16_bits_uniform": (16, 1),
    "masked_8_bits_uniform": (8, 1),
}
IMAGE_MODELS: Final[dict[str, dict[str, Any]]] = {
    "cnn": {},
    "cnn, lora": {"trainable": "lora"},
    "cnn, lora_parts all": {"trainable": "lora", "lora_parts": "all"},
    "cnn, head_only": {"trainable": "head_only"},
    "resnet10": {"image_encoder": "resnet10"},
    "resnet10, lora": {"image_encoder": "resnet10", "trainable": "lora"},
    "resnet10, lora_parts all": {
        "image_encoder": "resnet10",
        "trainable": "lora",
        "lora_parts": "all",
    },
    "resnet10, head_only": {"image_encoder": "resnet10", "trainable": "head_only"},
}
"""Options of the default model; a volume, a table of ten columns and the default fusion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of one update, and how many times fewer numbers than the whole model it has."""

    model: str
    num_values: int
    num_tensors: int
    float32: int
    int8: int
    masked: dict[str, int]
    fewer_values: float

    @property
    def ratio(self) -> float:
        """Bytes in float32 over bytes in 8 bits."""
        return self.float32 / self.int8


def sizes() -> Iterator[Sizes]:
    """The shipped studies' models, then the image models."""
    for name in SHIPPED:
        study = load_study(template_path(name))
        spec = _spec(study)
        yield _sizes(f"study {name}", spec, whole=spec.num_elements)
    base = load_study(template_path("synthetic").with_name("study-tests.yaml"))
    whole = 0
    for name, options in IMAGE_MODELS.items():
        spec = _spec(
            base.model_copy(update={"model": base.model.model_copy(update={"options": options})})
        )
        whole = spec.num_elements if "," not in name else whole
        yield _sizes(name, spec, whole=whole)


def _spec(study: Study) -> TensorSpec:
    method = load_training_method(study.training.name)
    return TensorSpec.of(method.initial_tensors(study, study.runs[0]))


def _sizes(model: str, spec: TensorSpec, *, whole: int) -> Sizes:
    return Sizes(
        model=model,
        num_values=spec.num_elements,
        num_tensors=len(spec.entries),
        float32=spec.num_bytes,
        int8=encoded_size(spec, "int8"),
        masked={name: _masked(spec, *settings) for name, settings in MASKS.items()},
        fewer_values=whole / spec.num_elements,
    )


def _masked(spec: TensorSpec, bits: int, max_weight: int) -> int:
    """Of a masked vector without metrics, and the sealed shares that go with it."""
    layout = MaskedLayout(
        num_sites=NUM_SITES,
        num_values=spec.num_elements,
        levels=2 ** (bits - 1) - 1,
        value_range=1.0,
        max_weight=max_weight,
        tail=TailLayout(train_metrics=(), evaluate_metrics=()),
    )
    return layout.num_bytes + NUM_SITES * sealed_size(NUM_SITES)
