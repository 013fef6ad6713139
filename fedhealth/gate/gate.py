"""The one door out of a hospital. It releases what the manifest and the study name, and refuses the rest.

Reading guide for a security officer: `clear_update` and `clear_metrics` are the whole path of data out of the
site; what they clear leaves as it is (`release`) or under a mask (`release_masked`). A refusal is a code; no exception
text, path, name or count of patients can pass, because no type in `gate.outbound` has a field that could hold one.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.local_training import NoiseGenerator, PatientMechanism
from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.contracts.tensors import TensorSpec, vector_bytes
from fedhealth.errors import GateRefusedError
from fedhealth.gate.frozen import Frozen
from fedhealth.gate.outbound import (
    _GATE_TOKEN,
    Cleared,
    ClearedSum,
    OutboundAgreement,
    OutboundCode,
    OutboundKeys,
    OutboundMasked,
    OutboundMetrics,
    OutboundShares,
    OutboundStatus,
    OutboundUpdate,
)
from fedhealth.gate.refusal import refused
from fedhealth.gate.rounding import Rounding, in_8_bits
from fedhealth.privacy.distributed.encode import add_noise, encode
from fedhealth.privacy.distributed.plan import DistributedPlan
from fedhealth.privacy.randomness import Randomness
from fedhealth.privacy.update_clipping import clip_update

PROTOCOL_VERSION: Final = 1
ELEMENT_BYTES: Final = 4  # float32


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateClip:
    """Site-level privacy: the released vector is at most `norm` (L2) away from `origin`, the incoming one."""

    origin: NDArray[np.float32] = field(repr=False)
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseTerms:
    """What may leave in this round, fixed before training: tensors, metrics and their rounding, and the noise.

    Attributes:
        spec: the manifest's tensors.
        metrics: names of metrics that may leave: the study's, or under patient-level privacy those that the
            ledger was charged for.
        metric_digits: significant digits after rounding.
        mechanism: DP-SGD that the ledger was charged for; None without patient-level privacy.
        generator: where its randomness must have come from.
        clip: bound on the whole update; None without site-level privacy.
        frozen: of modalities that this site, or too few sites, declared; None where every tensor is trained.
        is_masked: the study's updates and metrics leave under masks only.
        rounding: updates leave in 8 bits a value; None: in float32, or under masks.
    """

    spec: TensorSpec
    metrics: Collection[str]
    metric_digits: int
    mechanism: PatientMechanism | None = None
    generator: NoiseGenerator = "chacha20"
    clip: UpdateClip | None = None
    frozen: Frozen | None = None
    is_masked: bool = False
    rounding: Rounding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """What a mask made of something cleared: bytes, and how many words are in their vector."""

    payload: bytes = field(repr=False)
    num_words: int


def clear_update(
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    train_metrics: Mapping[str, float],
    evaluate_metrics: Mapping[str, float],
    terms: ReleaseTerms,
    carried_out: PatientMechanism | None = None,
    generator: NoiseGenerator | None = None,
) -> Cleared:
    """Check that these are exactly the tensors of the spec, finite, noised as reserved; as one vector.

    Raises:
        GateRefusedError: FH-GATE-001 names, FH-GATE-002 shape or dtype, FH-GATE-003 not finite,
            FH-GATE-004 a metric that is not listed, FH-GATE-005 a metric out of its range, FH-GATE-006 a metric
            that the privacy ledger was not charged for, FH-GATE-007 training did not carry out the mechanism
            that the ledger was charged for, FH-GATE-013 a frozen tensor has moved, FH-GATE-014 it cannot be rounded
            inside its clipping norm.
    """
    _check_mechanism(carried_out, generator, terms)
    if set(tensors) != set(terms.spec.names()):
        missing = len(set(terms.spec.names()) - set(tensors))
        extra = len(set(tensors) - set(terms.spec.names()))
        raise refused("FH-GATE-001", f"{missing} tensors are missing and {extra} are not named.")
    vector = np.empty(terms.spec.num_elements, dtype="<f4")
    for index, entry in enumerate(terms.spec.entries):
        tensor = tensors[entry.name]
        if tuple(tensor.shape) != entry.shape or tensor.dtype != np.float32:
            raise refused("FH-GATE-002", f"tensor {index} has another shape or dtype.")
        released = vector[entry.offset : entry.offset + entry.num_elements]
        released[:] = tensor.ravel()
        if not np.isfinite(released).all():  # the copy that leaves, not the plug-in's array
            raise refused("FH-GATE-003", f"tensor {index} holds a value that is not finite.")
    if terms.frozen is not None and not terms.frozen.is_kept_by(vector):
        raise refused("FH-GATE-013", "a tensor moved that this round does not train here.")
    if terms.clip is not None:
        vector, _ = clip_update(terms.clip.origin, vector, terms.clip.norm)
        if terms.frozen is not None:
            terms.frozen.put_back(vector)  # a scaled change of zero loses the sign of a zero
    rounded = None
    if terms.rounding is not None:
        norm = None if terms.clip is None else terms.clip.norm
        rounded, vector = in_8_bits(vector, terms.spec, terms.rounding, norm=norm)
    return Cleared(
        vector=vector,
        in_8_bits=rounded,
        train_metrics=_released(train_metrics, terms),
        evaluate_metrics=_released(evaluate_metrics, terms),
        is_masked=terms.is_masked,
        token=_GATE_TOKEN,
    )


def clear_metrics(evaluate_metrics: Mapping[str, float], *, terms: ReleaseTerms) -> Cleared:
    """Check the metrics of an evaluate-only trip. Raises as `clear_update`."""
    return Cleared(
        vector=None,
        train_metrics={},
        evaluate_metrics=_released(evaluate_metrics, terms),
        is_masked=terms.is_masked,
        token=_GATE_TOKEN,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseTerms:
    """Distributed noise of one round, fixed before training.

    Attributes:
        plan: clipping norm, grid, and this site's share of the noise.
        rotation_seed: 32 public bytes, the same at all sites.
        most_patients: the largest size that a site may have in this study.
        randomness: of rounding and noise.
    """

    plan: DistributedPlan
    rotation_seed: bytes
    most_patients: int
    randomness: Randomness = field(repr=False)


def noise_update(cleared: Cleared, origin: NDArray[np.float32], terms: NoiseTerms) -> ClearedSum:
    """The whole change of this site, clipped, rounded to the grid, with this site's share of the noise.

    Args:
        cleared: of `clear_update`.
        origin: (n,) float32, the incoming model.
        terms: unit site.

    Raises:
        GateRefusedError: FH-GATE-011 it is no update, or the plan is for patients.
        PrivacyError: FH-PRIVACY-101 to 111, see `privacy.distributed.encode`.
    """
    if cleared.vector is None or terms.plan.unit != "site":
        raise refused("FH-GATE-011", "there is no update that this noise is for.")
    change = np.subtract(cleared.vector, origin, dtype=np.float32)
    return _noised(encode(change, terms.plan, terms.rotation_seed, terms.randomness), terms)


def noise_patient_sum(gradients: Iterable[NDArray[np.float32]], terms: NoiseTerms) -> ClearedSum:
    """The sum of patients' gradients, each clipped and rounded by itself, with this site's share of the noise.

    A gradient that is not finite counts as zero: leaving the round would tell that such a patient is there.

    Args:
        gradients: (n,) float32 for each patient.
        terms: unit patient.

    Raises:
        GateRefusedError: FH-GATE-011 the plan is for sites, FH-GATE-012 more patients than the sum has room for.
        PrivacyError: FH-PRIVACY-101 to 111, see `privacy.distributed.encode`.
    """
    if terms.plan.unit != "patient":
        raise refused("FH-GATE-011", "this noise is not for single patients.")
    total = np.zeros(terms.plan.padded_dimension, dtype=np.int64)
    for number, gradient in enumerate(gradients):
        if number >= terms.most_patients:
            raise refused("FH-GATE-012", "this site has more patients than the study's sums allow.")
        if np.isfinite(gradient).all():
            total += encode(gradient, terms.plan, terms.rotation_seed, terms.randomness)
    return _noised(total, terms)


def _noised(total: NDArray[np.int64], terms: NoiseTerms) -> ClearedSum:
    return ClearedSum(whole=add_noise(total, terms.plan, terms.randomness), token=_GATE_TOKEN)


def release(cleared: Cleared) -> OutboundUpdate | OutboundMetrics:
    """Let it leave in the clear: for studies without masks, and for answers that say nothing.

    Raises:
        GateRefusedError: FH-GATE-010 the study masks it.
    """
    if cleared.is_masked and (cleared.vector is not None or cleared.evaluate_metrics):
        raise refused("FH-GATE-010", "this study's updates and metrics leave under masks only.")
    if cleared.vector is None:
        return OutboundMetrics(
            kind="metrics", evaluate_metrics=cleared.evaluate_metrics, token=_GATE_TOKEN
        )
    rounded = cleared.in_8_bits
    return OutboundUpdate(
        kind="update",
        payload=vector_bytes(cleared.vector) if rounded is None else rounded,
        num_elements=cleared.vector.size,
        encoding="float32" if rounded is None else "int8",
        train_metrics=cleared.train_metrics,
        evaluate_metrics=cleared.evaluate_metrics,
        token=_GATE_TOKEN,
    )


def release_masked(
    cleared: Cleared | ClearedSum,
    *,
    mask: Callable[[Cleared | ClearedSum], Masked],
    num_bytes: int,
) -> OutboundMasked:
    """Let it leave under a mask only: whatever `mask` is given was cleared here, and nothing leaves beside it.

    Args:
        cleared: of `clear_update`, `clear_metrics`, `noise_update` or `noise_patient_sum`.
        mask: makes the masked vector and the sealed shares.
        num_bytes: of every site's payload in this round; its size tells nothing then.

    Raises:
        GateRefusedError: FH-GATE-009 another size.
    """
    masked = mask(cleared)
    if len(masked.payload) != num_bytes:
        raise refused("FH-GATE-009", "a masked vector has another size than the round's.")
    return OutboundMasked(
        kind="masked", payload=masked.payload, num_words=masked.num_words, token=_GATE_TOKEN
    )


def release_update(
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    train_metrics: Mapping[str, float],
    evaluate_metrics: Mapping[str, float],
    terms: ReleaseTerms,
    carried_out: PatientMechanism | None = None,
    generator: NoiseGenerator | None = None,
) -> OutboundUpdate:
    """`clear_update` and `release` in one. Raises as `clear_update`."""
    released = release(
        clear_update(
            tensors,
            train_metrics=train_metrics,
            evaluate_metrics=evaluate_metrics,
            terms=terms,
            carried_out=carried_out,
            generator=generator,
        )
    )
    assert isinstance(released, OutboundUpdate)  # noqa: S101 - an update has a vector
    return released


def release_metrics(
    evaluate_metrics: Mapping[str, float], *, terms: ReleaseTerms
) -> OutboundMetrics:
    """`clear_metrics` and `release` in one. Raises as `clear_update`."""
    released = release(clear_metrics(evaluate_metrics, terms=terms))
    assert isinstance(released, OutboundMetrics)  # noqa: S101 - there is no vector
    return released


def release_again(
    payload: bytes,
    update_sha256: str | None,
    train_metrics: Mapping[str, float],
    evaluate_metrics: Mapping[str, float],
    *,
    num_words: int | None = None,
    num_rounded: int | None = None,
) -> OutboundUpdate | OutboundMetrics | OutboundMasked:
    """Release an answer that was released and sealed before: the very same bytes, or nothing.

    `num_words` is set where it is a masked vector, `num_rounded` where it is an update of so many values in 8 bits.

    Raises:
        GateRefusedError: FH-GATE-008 the bytes are not those that were signed.
    """
    if update_sha256 is None:
        if payload:
            raise refused("FH-GATE-008", "a sealed answer holds bytes that it does not sign.")
        return OutboundMetrics(
            kind="metrics", evaluate_metrics=dict(evaluate_metrics), token=_GATE_TOKEN
        )
    if hashlib.sha256(payload).hexdigest() != update_sha256:
        raise refused("FH-GATE-008", "a sealed answer is not the one that was signed.")
    if num_words is not None:
        return OutboundMasked(
            kind="masked", payload=payload, num_words=num_words, token=_GATE_TOKEN
        )
    return OutboundUpdate(
        kind="update",
        payload=payload,
        num_elements=len(payload) // ELEMENT_BYTES if num_rounded is None else num_rounded,
        encoding="float32" if num_rounded is None else "int8",
        train_metrics=dict(train_metrics),
        evaluate_metrics=dict(evaluate_metrics),
        token=_GATE_TOKEN,
    )


def release_code(code: DropCode) -> OutboundCode:
    """Release the code of a failure."""
    return OutboundCode(kind="code", code=DropCode(code), token=_GATE_TOKEN)


def release_agreement() -> OutboundAgreement:
    """Release the signed agreement to a list of survivors: names of sites, nothing else."""
    return OutboundAgreement(kind="agreement", token=_GATE_TOKEN)


def release_shares(shares: bytes) -> OutboundShares:
    """Release shares of mask seeds, which are uniform numbers."""
    return OutboundShares(kind="shares", payload=shares, token=_GATE_TOKEN)


def release_keys(request: bytes) -> OutboundKeys:
    """Release a signed join request: public keys, declared size, modality names."""
    return OutboundKeys(kind="keys", payload=request, token=_GATE_TOKEN)


def release_status() -> OutboundStatus:
    """Release the sign of life."""
    return OutboundStatus(kind="status", payload=b"%d" % PROTOCOL_VERSION, token=_GATE_TOKEN)


def refusal_code(error: GateRefusedError) -> DropCode:
    """The code that the server gets for a refusal."""
    if error.code == "FH-GATE-003":
        return DropCode.NON_FINITE
    if error.code in {"FH-GATE-001", "FH-GATE-002"}:
        return DropCode.WRONG_SPEC
    return DropCode.REFUSED_BY_GATE


def _check_mechanism(
    carried_out: PatientMechanism | None, generator: NoiseGenerator | None, terms: ReleaseTerms
) -> None:
    if carried_out != terms.mechanism:
        raise refused("FH-GATE-007", "training did not carry out the mechanism that was reserved.")
    if terms.mechanism is not None and generator != terms.generator:
        raise refused("FH-GATE-007", "the noise does not come from the generator in the ledger.")


def _released(metrics: Mapping[str, float], terms: ReleaseTerms) -> dict[str, float]:
    """Listed metrics, rounded: a float64 could otherwise carry eight bytes of anything."""
    released = {}
    for name, value in metrics.items():
        if name not in METRIC_RANGES:
            raise refused("FH-GATE-004", "a metric is not on the closed list.")
        if name not in terms.metrics:
            if terms.mechanism is not None:
                raise refused("FH-GATE-006", f"the ledger was not charged for metric {name}.")
            continue  # the study did not ask for it
        low, high = METRIC_RANGES[name]
        if not math.isfinite(value) or not low <= value <= high:
            raise refused("FH-GATE-005", f"metric {name} is outside {low} to {high}.")
        released[name] = float(f"{value:.{terms.metric_digits}g}")
    return released
