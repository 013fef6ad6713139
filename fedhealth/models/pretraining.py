"""Pretrain the image encoder on phantoms. Called by `benchmarks/pretrain_encoder.py`, which writes the file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import cos, pi

import torch
from torch import Tensor, nn

from fedhealth.models.image_encoder import ImageEncoder
from fedhealth.models.phantoms import LOG_LOAD_STD, Anatomy, draw_phantoms
from fedhealth.models.pretrained import ENCODER_EMBEDDING_SIZE, ENCODER_WIDTHS
from fedhealth.models.seeds import derive_seed

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; without it the first thousand steps learn nothing."""

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingPlan:
    """How long, on what, from which seed. Phantoms are drawn anew for every step: none is seen twice."""

    seed: int = 20
    num_steps: int = 3000
    batch_size: int = 32
    learning_rate: float = 5e-3
    sizes: tuple[int, ...] = field(default=(32, 16))


def pretrain(
    anatomy: Anatomy, plan: PretrainingPlan, *, on_step: Callable[[int, float], None]
) -> ImageEncoder:
    """Train an encoder whose embedding tells the lesion load, at several grid sizes.

    Args:
        anatomy: from `phantoms.read_anatomy`.
        plan: steps, batches, sizes (one size a step, in turn), seed.
        on_step: called with the step number and its loss.

    Returns:
        The encoder; each number of its embedding has mean 0 and standard deviation 1 over phantoms.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(plan.seed, "encoder weights"))
        encoder = ImageEncoder(ENCODER_WIDTHS, ENCODER_EMBEDDING_SIZE)
        readout = nn.Linear(ENCODER_EMBEDDING_SIZE, 1)
    generator = torch.Generator().manual_seed(derive_seed(plan.seed, "phantoms"))
    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *readout.parameters()], lr=plan.learning_rate
    )
    for step in range(plan.num_steps):
        optimizer.param_groups[0]["lr"] = plan.learning_rate * _schedule(step / plan.num_steps)
        size = plan.sizes[step % len(plan.sizes)]
        volumes, log_load = draw_phantoms(anatomy, plan.batch_size, size, generator)
        predicted = readout(encoder(volumes)).squeeze(1)
        loss = nn.functional.mse_loss(predicted, log_load / LOG_LOAD_STD)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(encoder.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        on_step(step, loss.item())
    _standardise(encoder, anatomy, plan)
    return encoder


def fit_readout(
    encoder: ImageEncoder, anatomy: Anatomy, *, sizes: tuple[int, ...], count: int, seed: int
) -> nn.Linear:
    """The least-squares readout of the log lesion load, scaled to standard deviation 1 over its phantoms.

    Args:
        encoder: pretrained.
        anatomy: from `phantoms.read_anatomy`.
        sizes: grids, voxels a side; `count` phantoms of each.
        count: phantoms a size.
        seed: of the phantoms.

    Returns:
        A layer from embeddings (B, E) to (B, 1).
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "readout"))
    parts = [_embed(encoder, anatomy, size, count, generator) for size in sizes]
    embeddings = torch.cat([embedded for embedded, _ in parts]).double()
    ones = torch.ones(len(embeddings), 1, dtype=torch.float64)
    joined = torch.cat([embeddings, ones], dim=1)
    load = torch.cat([log_load for _, log_load in parts]).double()
    weights = torch.linalg.lstsq(joined, load[:, None], driver="gelsd").solution
    weights = weights / (joined @ weights).std()
    readout = nn.Linear(encoder.projection.out_features, 1)
    with torch.no_grad():
        readout.weight.copy_(weights[:-1].T)
        readout.bias.copy_(weights[-1])
    return readout


def load_correlation(
    encoder: ImageEncoder, anatomy: Anatomy, *, size: int, count: int, seed: int
) -> float:
    """Correlation of the true log load with its best linear readout from the embedding, on new phantoms.

    The readout is fitted by least squares on `count` phantoms and judged on `count` others.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "held out", size))
    fitted, fitted_load = _embed(encoder, anatomy, size, count, generator)
    judged, judged_load = _embed(encoder, anatomy, size, count, generator)
    ones = torch.ones(count, 1)
    weights = torch.linalg.lstsq(
        torch.cat([fitted, ones], dim=1), fitted_load[:, None], driver="gelsd"
    ).solution
    predicted = (torch.cat([judged, ones], dim=1) @ weights).squeeze(1)
    return float(torch.corrcoef(torch.stack([predicted, judged_load]))[0, 1])


def _schedule(progress: float) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + cos(pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _standardise(encoder: ImageEncoder, anatomy: Anatomy, plan: PretrainingPlan) -> None:
    """Fold mean 0 and standard deviation 1 of every embedding number into the projection."""
    generator = torch.Generator().manual_seed(derive_seed(plan.seed, "standardise"))
    parts = [_embed(encoder, anatomy, size, 512, generator)[0] for size in plan.sizes]
    std, mean = torch.std_mean(torch.cat(parts), dim=0)
    with torch.no_grad():
        encoder.projection.weight.div_(std[:, None])
        encoder.projection.bias.sub_(mean).div_(std)


def _embed(
    encoder: ImageEncoder, anatomy: Anatomy, size: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    embeddings, loads = [], []
    with torch.inference_mode():
        for start in range(0, count, 64):
            wanted = min(64, count - start)
            volumes, log_load = draw_phantoms(anatomy, wanted, size, generator)
            embeddings.append(encoder(volumes))
            loads.append(log_load)
    return torch.cat(embeddings), torch.cat(loads)
