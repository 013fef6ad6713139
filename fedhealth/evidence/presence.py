"""What a manifest says about modalities: who declared one, and whose part of the model a round trains.

Both sides read the same signed manifest, so both find the same. A study that averages encoders over all sites names
no block; with masks it names the modalities whose tensors would be in the sum of few sites.
"""

from collections.abc import Collection

from fedhealth.evidence.statements import Manifest, ManifestBlock


def block_floor(manifest: Manifest) -> int:
    """Fewest sites that a block's mean may be about: as many as the whole model's.

    A block's mean is published with the model, and with masks its sum is opened: of a single owner either would be
    that hospital's own update.
    """
    masking = manifest.masking
    return manifest.min_cohort if masking is None else masking.min_survivors


def declaring(manifest: Manifest, modality: str) -> tuple[str, ...]:
    """Sites of the cohort that declared a modality, in cohort order."""
    return tuple(m.site_id for m in manifest.cohort if modality in (m.modalities or ()))


def active_blocks(manifest: Manifest) -> tuple[ManifestBlock, ...]:
    """Blocks that the round trains: those with enough owners in its cohort."""
    floor = block_floor(manifest)
    return tuple(b for b in manifest.blocks if len(declaring(manifest, b.modality)) >= floor)


def owners_of(manifest: Manifest, modality: str) -> tuple[str, ...]:
    """Sites that train a modality's block in this round; none where it is not active."""
    found = declaring(manifest, modality)
    return found if len(found) >= block_floor(manifest) else ()


def exposed_blocks(manifest: Manifest, counted: Collection[str], floor: int) -> tuple[str, ...]:
    """Modalities whose sum over these sites would be about too few: some owner is among them, fewer than the floor.

    Averaged over all sites or not: a site that lacks a modality adds an exact zero to the tensors of the modality.
    """
    owners = {
        block.modality: owners_of(manifest, block.modality) for block in active_blocks(manifest)
    }
    owners |= {name: declaring(manifest, name) for name in manifest.summed_modalities}
    return tuple(
        modality for modality, own in owners.items() if 0 < len(set(own) & set(counted)) < floor
    )


def frozen_tensors(manifest: Manifest, site_id: str) -> frozenset[str]:
    """Tensors that a site gives back as they came: of modalities that it lacks, or that too few sites have."""
    return frozenset(
        name
        for block in manifest.blocks
        if site_id not in owners_of(manifest, block.modality)
        for name in block.tensors
    )
