"""How a round is masked, from the study and the manifest alone: server and site work out the same."""

import hashlib
from functools import lru_cache
from typing import Final, Literal

from fedhealth.config.secure_aggregation import DistributedPrivacy, SecureAggregation
from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.aggregation import SiteLevelRelease
from fedhealth.evidence.statements import DistributedNoise, Manifest, RoundMasking
from fedhealth.privacy.accounting.metrics import told_metrics
from fedhealth.privacy.accounting.site_level import default_delta
from fedhealth.privacy.distributed.plan import (
    DistributedPlan,
    least_distributed_noise,
    plan_distributed,
)
from fedhealth.secagg.coordinates import kept_coordinates
from fedhealth.secagg.layout import MaskedLayout, TailLayout
from fedhealth.secagg.quorum import least_threshold
from fedhealth.secagg.refusals import MaskingError

MOST_SITES: Final = 150
"""Of a masked round: the statement with all commitments then still fits into an envelope."""
TRAIN_METRICS: Final = frozenset({"train_loss"})
"""Said of training patients; all others are of validation patients."""


def round_masking(
    study: Study, run: RunPlan, *, num_sites: int, num_elements: int
) -> RoundMasking | None:
    """What the manifest of a round with that many sites says about masks; None without them.

    Args:
        study: as pinned.
        run: of the round.
        num_sites: of the cohort.
        num_elements: of the model.

    Raises:
        MaskingError: FH-SECAGG-014 more sites than `MOST_SITES`, FH-SECAGG-015 more than the noise is planned for.
        PrivacyError: no noise and grid fit the study's distributed privacy.
    """
    masks = study.secure_aggregation
    if masks is None:
        return None
    if num_sites > MOST_SITES:
        raise MaskingError(
            "FH-SECAGG-014",
            f"{num_sites} sites are in the round; masks are for at most {MOST_SITES}.",
            why="What each site has to be shown of the others would not fit into one signed statement.",
            fix="Admit fewer sites, or take `secure_aggregation` out of the study.",
        )
    noise = None
    if masks.distributed_privacy is not None:
        most = masks.distributed_privacy.num_sites
        if num_sites > most:
            raise MaskingError(
                "FH-SECAGG-015",
                f"{num_sites} sites are in the round, distributed_privacy.num_sites is {most}.",
                why="The mean is divided by num_sites, and the sum has room for so many only.",
                fix="Set it to the number of sites that the consortium admits.",
            )
        plan = _plan(study, masks, masks.distributed_privacy, num_elements)
        noise = DistributedNoise(
            unit=plan.unit,
            clipping_norm=plan.clipping_norm,
            noise_multiplier=plan.noise_multiplier,
            modulus_bits=plan.modulus_bits,
            num_sites=plan.num_sites,
            num_honest=plan.num_honest,
        )
    return RoundMasking(
        threshold=min(num_sites, least_threshold(num_sites, masks.colluding)),
        min_survivors=least_survivors(study, masks),
        bits=masks.bits,
        value_range=masks.value_range,
        max_weight=masks.max_train_size if weighs_by_size(study, run) else 1,
        kept_share=masks.kept_share,
        distributed=noise,
    )


def least_survivors(study: Study, masks: SecureAggregation) -> int:
    """Fewest sites in a sum: the study's floor, or its minimum cohort where that is larger."""
    return max(masks.min_survivors, study.federation.min_cohort)


def weighs_by_size(study: Study, run: RunPlan) -> bool:
    """Whether a site counts by its declared size: unless the strategy says otherwise, or noise needs equal weights."""
    masks = study.secure_aggregation
    has_noise = masks is not None and masks.distributed_privacy is not None
    return not has_noise and run.strategy.options.get("weighting", "size") == "size"


def distributed_plan(study: Study, num_elements: int) -> DistributedPlan | None:
    """Grid, noise share and event of the study's distributed privacy; None without it.

    Raises:
        PrivacyError: as `round_masking`.
    """
    masks = study.secure_aggregation
    if masks is None or masks.distributed_privacy is None:
        return None
    return _plan(study, masks, masks.distributed_privacy, num_elements)


def sum_release(study: Study, num_elements: int) -> SiteLevelRelease | None:
    """What one round's sum tells about a whole site, with noise of unit site; None else.

    `num_replies` is the public denominator here; a round puts in how many sites its sum is about.

    Raises:
        PrivacyError: as `round_masking`.
    """
    plan = distributed_plan(study, num_elements)
    if plan is None or plan.unit == "patient":
        return None
    return SiteLevelRelease(
        mechanism="distributed-skellam",
        noise_multiplier=plan.noise_multiplier,
        noise_std=plan.noise_std / plan.num_sites,
        clipping_norm=plan.clipping_norm,
        denominator=plan.num_sites,
        num_replies=plan.num_sites,
        quantile_multiplier=None,
        generator=plan.generator,
        skellam=plan.share,
    )


def round_layout(manifest: Manifest, manifest_sha256: str, study: Study) -> MaskedLayout | None:
    """What lies in the masked vectors of a round; None where nothing is masked.

    Nothing is masked without masks in the manifest, and in an evaluation that releases no metric.

    Raises:
        MaskingError: FH-SECAGG-005 the sum would not fit.
    """
    masking = manifest.masking
    if masking is None:
        return None
    if masking.distributed is not None:
        return _noised_layout(manifest, study)
    names = tuple(sorted(told_metrics(study, manifest.kind)))
    is_training = manifest.kind == "train"
    if not is_training and not names:
        return None
    num_values = manifest.spec.num_elements if is_training else 0
    if (
        is_training
        and (kept := kept_coordinates(manifest_sha256, num_values, masking.kept_share)) is not None
    ):
        num_values = kept.size
    return MaskedLayout(
        num_sites=len(manifest.cohort),
        num_values=num_values,
        levels=2 ** (masking.bits - 1) - 1,
        value_range=masking.value_range,
        max_weight=masking.max_weight,
        tail=TailLayout(
            train_metrics=tuple(n for n in names if is_training and n in TRAIN_METRICS),
            evaluate_metrics=tuple(n for n in names if n not in TRAIN_METRICS),
            num_blocks=len(manifest.blocks),
        ),
    )


def _noised_layout(manifest: Manifest, study: Study) -> MaskedLayout | None:
    """Nothing but the noised vector: a size or a metric beside it would be without noise."""
    plan = distributed_plan(study, manifest.spec.num_elements)
    if plan is None or manifest.kind == "evaluate":
        return None
    return MaskedLayout(
        num_sites=len(manifest.cohort),
        num_values=plan.padded_dimension,
        levels=1,
        value_range=1.0,
        max_weight=1,
        tail=None,
        fixed_modulus_bits=plan.modulus_bits,
    )


def _plan(
    study: Study, masks: SecureAggregation, noise: DistributedPrivacy, num_elements: int
) -> DistributedPlan:
    honest = least_survivors(study, masks) - masks.colluding
    most = noise.num_sites if noise.unit == "site" else noise.num_sites * masks.max_train_size
    return _cached_plan(noise, num_elements, honest, most, planned_sums(study, noise))


def planned_sums(study: Study, noise: DistributedPrivacy) -> int:
    """Every round of every run, and the spare rounds."""
    return sum(run.num_rounds for run in study.runs) + noise.spare_rounds


@lru_cache(maxsize=64)
def _cached_plan(
    noise: DistributedPrivacy, num_elements: int, honest: int, most: int, rounds: int
) -> DistributedPlan:
    unit: Literal["site", "patient"] = noise.unit
    multiplier = noise.noise_multiplier
    if multiplier is None:
        multiplier = least_distributed_noise(
            target_epsilon=noise.target_epsilon or 0.0,
            delta=default_delta(noise.num_sites) if noise.delta is None else noise.delta,
            steps=rounds,
            unit=unit,
            dimension=num_elements,
            clipping_norm=noise.clipping_norm,
            num_sites=noise.num_sites,
            num_honest=honest,
            modulus_bits=noise.modulus_bits,
            max_contributions=most,
        )
    return plan_distributed(
        unit=unit,
        dimension=num_elements,
        clipping_norm=noise.clipping_norm,
        noise_multiplier=multiplier,
        num_sites=noise.num_sites,
        num_honest=honest,
        modulus_bits=noise.modulus_bits,
        max_contributions=most,
    )


def rotation_seed(manifest_sha256: str) -> bytes:
    """32 public bytes for the rotation of a round: the same at all sites, different in every round."""
    return hashlib.sha256(f"fedhealth/secagg/rotation/1|{manifest_sha256}".encode()).digest()
