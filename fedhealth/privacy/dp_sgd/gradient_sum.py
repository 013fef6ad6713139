"""The sum of clipped gradients of one logical step, and its noised mean. Called by the private training steps."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.errors import PrivacyError
from fedhealth.privacy.dp_sgd.noise import normals
from fedhealth.privacy.randomness import Randomness


class GradientSum:
    """One float64 vector with a view for each trained tensor, so that noise is one draw a step.

    Args:
        parameters: every trainable tensor of the model by name, shared and private.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        device = next(iter(self._parameters.values())).device
        self._flat = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        parts = torch.split(self._flat, sizes)
        self.by_name: dict[str, Tensor] = {
            name: part.view(parameter.shape)
            for (name, parameter), part in zip(self._parameters.items(), parts, strict=True)
        }

    def clear(self) -> None:
        """Back to zero, for the next step."""
        self._flat.zero_()

    def write_noised_mean(self, mechanism: PatientMechanism, randomness: Randomness) -> None:
        """Set `grad` of every parameter to (sum + N(0, (z C)^2)) / expected batch size, in float32.

        Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1, with the expected batch size as
        the constant denominator: the size that was drawn depends on who is there.
        """
        noise = normals(randomness, self._flat.numel()).to(self._flat.device)
        scale = mechanism.noise_multiplier * mechanism.clipping_norm
        self._flat.add_(noise, alpha=scale).div_(mechanism.expected_batch_size)
        for name, parameter in self._parameters.items():
            parameter.grad = self.by_name[name].to(parameter.dtype)


def check_mechanism(mechanism: PatientMechanism) -> None:
    """Refuse a mechanism that is none.

    Raises:
        PrivacyError: FH-PRIVACY-053 a number of it is out of its range.
    """
    positive = {
        "noise_multiplier": mechanism.noise_multiplier,
        "clipping_norm": mechanism.clipping_norm,
        "expected_batch_size": mechanism.expected_batch_size,
        "num_steps": mechanism.num_steps,
        "sampling_rate": mechanism.sampling_rate,
    }
    wrong = [name for name, value in positive.items() if not (math.isfinite(value) and value > 0)]
    if not wrong and mechanism.sampling_rate > 1:
        wrong = ["sampling_rate"]
    if wrong:
        raise PrivacyError(
            "FH-PRIVACY-053",
            f"the step's {', '.join(wrong)} is out of range.",
            why="All are finite and above 0, and the sampling rate is at most 1.",
            fix="Correct the study's privacy section.",
        )


def check_all_noised(model: nn.Module, noised: Mapping[str, nn.Parameter]) -> None:
    """Refuse to go on when something trainable would get no noise, or state appeared that training can change.

    Raises:
        PrivacyError: FH-PRIVACY-054 with the tensor's name.
    """
    known = {id(parameter) for parameter in noised.values()}
    loose = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    loose += [name for name, _ in model.named_buffers()]
    if loose:
        raise PrivacyError(
            "FH-PRIVACY-054",
            f"tensor {loose[0]!r} would be trained without noise.",
            why="It would then depend on every patient in full, and so would all that is trained with it.",
            fix="Set requires_grad when the model is built, not in forward, and keep no buffers.",
        )
