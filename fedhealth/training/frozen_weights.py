"""What a model keeps as it was drawn or loaded, as one digest: it never travels, so both sides compare it.

A low-rank change B A means something only where every site has the same random A and the same base (`models.lora`), a
head only on the same frozen encoder. Another version of torch or another processor may draw others from one seed.
"""

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study


def digest_of_frozen(study: "Study", run: "RunPlan", model: nn.Module) -> str | None:
    """SHA-256 over name, shape and bytes of each parameter that is not trained, in the order of names.

    With personalisation private_blocks only what is under `site_models.shared_blocks` counts: the rest of the model is
    a site's own, and may be another model.

    Returns:
        Hex, or None where no such parameter is frozen.
    """
    prefixes: tuple[str, ...] = ("",)
    if run.personalisation == "private_blocks" and study.site_models is not None:
        prefixes = study.site_models.shared_blocks
    frozen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and name.startswith(prefixes)
    }
    if not frozen:
        return None
    digest = hashlib.sha256(b"fedhealth/frozen/v1")
    for name, parameter in sorted(frozen.items()):
        digest.update(f"|{name}|{parameter.dtype}|{tuple(parameter.shape)}|".encode())
        # As bytes: numpy does not know every type that torch has.
        digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
