"""Encoders averaged over the sites that declared their modality, with any strategy that takes the weighted mean.

Such a strategy computes sum_k w_k x_k / W over all sites k of the round, with W = sum_k w_k. For a block that the sites
B declared, a reply's change is multiplied by W / W_B (W_B = sum of w_k over B) where the site is in B, and by zero
elsewhere: the strategy's mean of the block is then the owners' mean, origin + sum_B w_k d_k / W_B. Nothing of it
depends on the strategy. Replies are rescaled one at a time, when the strategy asks for them.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedhealth.contracts.aggregation import SiteReply, Vector
from fedhealth.contracts.blocks import ranges_of
from fedhealth.errors import AggregationError
from fedhealth.evidence.presence import block_floor, owners_of
from fedhealth.evidence.statements import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMean:
    """One modality in one round.

    Attributes:
        modality: its name.
        parts: where its tensors lie in the flat vector.
        owners: sites whose updates are in its mean, in cohort order; none when it stays as it is.
    """

    modality: str
    parts: tuple[slice, ...] = field(repr=False)
    owners: tuple[str, ...]


def block_means(manifest: Manifest, contributed: Collection[str]) -> tuple[BlockMean, ...]:
    """Whose mean each block is, once it is known who contributed.

    A block whose owners among them are fewer than its floor has none: its mean would show a small group's update.
    """
    floor, found = block_floor(manifest), []
    for block in manifest.blocks:
        owners = tuple(s for s in owners_of(manifest, block.modality) if s in contributed)
        parts = tuple(ranges_of(manifest.spec, block.tensors))
        found.append(
            BlockMean(
                modality=block.modality,
                parts=parts,
                owners=owners if len(owners) >= floor else (),
            )
        )
    return tuple(found)


def over_owners(
    replies: Sequence[SiteReply], blocks: Sequence[BlockMean], origin: Vector, *, by_size: bool
) -> Iterator[SiteReply]:
    """The same replies, with the change of every block scaled as the module says.

    Args:
        replies: one for each site that contributed; vectors are loaded when the strategy asks.
        blocks: of `block_means`.
        origin: (n,) float32, the model before the round.
        by_size: the strategy weighs a site by its size; else all alike.
    """
    weights = {reply.site_id: reply.weight if by_size else 1.0 for reply in replies}
    total = sum(weights.values())
    for reply in replies:
        factors = [
            (part, _factor(block, reply.site_id, weights, total))
            for block in blocks
            for part in block.parts
        ]
        yield replace(
            reply,
            load_vector=lambda reply=reply, factors=factors: _scaled(  # type: ignore[misc]  # default binds
                reply, factors, origin
            ),
        )


def keep_unowned(vector: Vector, blocks: Sequence[BlockMean], origin: Vector) -> Vector:
    """The new model, with blocks that nobody trained as they were, bit for bit.

    A server optimiser would move them on by its momentum, and a mean of equal values may round.
    """
    for block in blocks:
        for part in block.parts if not block.owners else ():
            vector[part] = origin[part]
    return vector


def _factor(block: BlockMean, site_id: str, weights: dict[str, float], total: float) -> float:
    if site_id not in block.owners:
        return 0.0
    return total / sum(weights[owner] for owner in block.owners)


def _scaled(reply: SiteReply, factors: Sequence[tuple[slice, float]], origin: Vector) -> Vector:
    vector = np.array(reply.load_vector(), dtype=np.float32)
    if vector.shape != origin.shape:
        raise AggregationError(
            "FH-TENSOR-003", f"a vector of shape {vector.shape} is not on the model's spec."
        )
    for part, factor in factors:
        if factor == 0.0:
            vector[part] = origin[part]
            continue
        change = vector[part].astype(np.float64) - origin[part]
        change *= factor
        with np.errstate(over="ignore"):  # what is not finite then is refused by the adapter
            vector[part] = origin[part] + change
    return vector
