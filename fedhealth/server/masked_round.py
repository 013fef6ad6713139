"""The server's trips of secure aggregation: keys once a run, then one or two trips that take the masks off a sum.

Called by `round_loop`. What a failed trip leaves is a void round: no part of a sum is ever used.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedhealth.config.load import study_digest
from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.local_training import Vector
from fedhealth.durable import read_json, write_json
from fedhealth.errors import EvidenceError, IdentityError
from fedhealth.evidence.signing import Envelope, SigningKey, VerifyKey
from fedhealth.evidence.statements import Manifest, is_canonical, open_statement
from fedhealth.privacy.distributed.encode import decode as decode_noised
from fedhealth.secagg import fixed_point
from fedhealth.secagg.coordinates import exact_share, kept_coordinates
from fedhealth.secagg.guard import public_key_of
from fedhealth.secagg.layout import MaskedLayout
from fedhealth.secagg.mask_keys import public_bytes
from fedhealth.secagg.mask_stream import Words
from fedhealth.secagg.refusals import MaskingError, MaskingRefusedError
from fedhealth.secagg.round_settings import (
    distributed_plan,
    least_survivors,
    rotation_seed,
    round_layout,
)
from fedhealth.secagg.server_side import MaskedSum
from fedhealth.secagg.statements import KeyRequest, MaskKey
from fedhealth.server.block_means import block_means
from fedhealth.server.home import RunFolder
from fedhealth.server.messages import RoundTransport
from fedhealth.server.roster import RosterLine

log = logging.getLogger("fedhealth.server")
TRIP_S: Final = 120.0
"""Longest wait for an unmasking trip: a site has little to do in it, and those that are gone are not needed."""
AWAY: Final = frozenset(
    {
        DropCode.NODE_UNAVAILABLE,
        DropCode.DEADLINE,
        DropCode.NO_REPLY,
        DropCode.WORKER_UNREACHABLE,
        DropCode.PROTOCOL,
    }
)
"""Codes that do not say whether the site gave shares."""
KEY_STATEMENT_BYTES: Final = 2048
UNMASK_TRIES: Final = 2
GRACE_S: Final = 0.5
"""Once a threshold of sites answered, how long the others may still do so: more shares are held against each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedTotal:
    """What a masked round gave.

    Attributes:
        vector: the mean model of the survivors, float32; None in an evaluation.
        weight: of all survivors together; 1 where all count the same and noise hides how many.
        train_metrics: weighted means.
        evaluate_metrics: likewise.
        num_cut: values beyond the range, over all survivors; None where noise covers the sum.
    """

    vector: Vector | None = field(repr=False)
    weight: float
    train_metrics: dict[str, float]
    evaluate_metrics: dict[str, float]
    num_cut: int | None


@dataclass(slots=True, kw_only=True)
class MaskedRound:
    """What is said of a masked round in its record, whatever came of it."""

    layout: MaskedLayout
    total: MaskedSum
    unmask_trips: int = 0
    agreed: int = 0


@dataclass(slots=True, kw_only=True)
class Masking:
    """Secure aggregation of one run at the server."""

    study: Study
    run: RunPlan
    folder: RunFolder
    signing_key: SigningKey = field(repr=False)
    transport: RoundTransport
    issued: frozenset[str]
    """Sites of the roster that was last issued for all to pin."""
    _keys: dict[str, Envelope] = field(init=False)

    def __post_init__(self) -> None:
        self._keys = {
            site_id: Envelope.model_validate(envelope)
            for site_id, envelope in read_json(self.folder.mask_keys).items()
        }

    def with_keys(self, online: Sequence[RosterLine]) -> list[RosterLine]:
        """The sites of a cohort whose key of this run is known; those without one are asked first.

        A site that is not on the roster that was issued is not asked: the others have not pinned it.
        """
        cohort = [line for line in online if line.entry.site_id in self.issued]
        missing = [line for line in cohort if not self._has_key(line)]
        if missing:
            request = KeyRequest(
                study_id=self.study.id,
                study_sha256=study_digest(self.study),
                run_name=self.run.name,
            )
            lines = {line.entry.site_id: line for line in missing}
            for reply in self.transport.exchange(
                list(lines), request.sign(self.signing_key), b"", ttl_s=TRIP_S, kind="masking"
            ):
                line = lines.get(reply.site_id)
                if line is not None and reply.envelope is not None:
                    self._keys[reply.site_id] = reply.envelope
                    if not self._has_key(line):
                        del self._keys[reply.site_id]
                else:
                    log.warning("no mask key site=%s code=%s", reply.site_id, reply.code)
            write_json(
                self.folder.mask_keys, {site: key.model_dump() for site, key in self._keys.items()}
            )
        return [line for line in cohort if self._has_key(line)]

    def only_opened(
        self, cohort: Sequence[RosterLine], *, round_key: list[str | int], model_sha256: str
    ) -> list[RosterLine] | None:
        """The cohort of a round of which a sum was to be opened before, or that begins with such a sum's model.

        It is the very sites of that sum; None when one of them is not there: the others would refuse any other list.
        """
        kept = list(cohort)
        for entry in self._opened():
            if entry["round"] == round_key or entry["model_sha256"] == model_sha256:
                kept = [line for line in kept if line.entry.site_id in entry["survivors"]]
                if len(kept) != len(entry["survivors"]):
                    return None
        return kept

    def _opened(self) -> list[dict[str, Any]]:
        return list(read_json(self.folder.opened_sums).get("sums", []))

    @property
    def floor(self) -> int:
        """Fewest sites that a sum may be about."""
        masks = self.study.secure_aggregation
        return 0 if masks is None else least_survivors(self.study, masks)

    def key_of(self, site_id: str) -> Envelope:
        """A site's signed key. Raises KeyError when it is not known."""
        return self._keys[site_id]

    def forget(self, site_id: str, code: DropCode | None) -> None:
        """A site that does not know its key in the manifest lost it: it is asked for a new one."""
        if code is DropCode.MASK_KEY_INVALID:
            self._keys.pop(site_id, None)

    def open(
        self, manifest: Manifest, manifest_sha256: str, cohort: Iterable[RosterLine]
    ) -> MaskedRound | None:
        """The sum of a round; None where nothing of it is masked."""
        layout = round_layout(manifest, manifest_sha256, self.study)
        if layout is None:
            return None
        keys = {
            line.entry.site_id: VerifyKey.from_base64(line.entry.signing_key) for line in cohort
        }
        return MaskedRound(layout=layout, total=MaskedSum(manifest, manifest_sha256, layout, keys))

    def unmask(
        self, masked: MaskedRound, manifest: Manifest, manifest_sha256: str, origin: Vector
    ) -> MaskedTotal | None:
        """Take the masks off; None when too few sites helped, or what they gave does not fit.

        Two trips in a round when all of the cohort is in the sum; else the survivors agree to their list first.
        """
        total = masked.total
        try:
            if not total.is_whole:
                masked.unmask_trips += 1
                self._trip(total, "agree", total.take_agreement, lambda: total.has_agreement)
                masked.agreed = total.num_agreements
                if not total.has_agreement:
                    log.warning("masks stay on: %d sites agreed", masked.agreed)
                    return None
            self._unmask_trips(masked, manifest)
            words = total.remove_masks()
            fixed_point.check_sum(words, masked.layout, len(total.survivors))
            return self._total(
                words, masked.layout, total.survivors, manifest, manifest_sha256, origin
            )
        except MaskingError as error:
            log.warning("no usable sum: %s", error.code)
            return None

    def _unmask_trips(self, masked: MaskedRound, manifest: Manifest) -> None:
        """Ask for shares; the same list again where too few came: sites answer it as before."""
        total, before = masked.total, self._opened()
        entry = {
            "round": [manifest.run_name, manifest.kind, manifest.round_number],
            "model_sha256": manifest.model_sha256,
            "survivors": list(total.survivors),
        }
        if entry not in before:
            write_json(self.folder.opened_sums, {"sums": [*before, entry]})
        for _ in range(UNMASK_TRIES):
            masked.unmask_trips += 1
            refusals = self._trip(
                total, "unmask", None, lambda: total.has_shares, shares=total.take_shares
            )
            if total.has_shares:
                return
            if refusals == len(total.survivors):
                write_json(self.folder.opened_sums, {"sums": before})  # nobody gave a share
                return

    def _trip(
        self,
        total: MaskedSum,
        step: Literal["agree", "unmask"],
        take: Callable[[str, Envelope], bool] | None,
        is_enough: Callable[[], bool],
        *,
        shares: Callable[[str, Envelope, bytes], bool] | None = None,
    ) -> int:
        """Ask all survivors; stop a little after enough of them answered. How many of them refused."""
        refusals = 0
        sites = total.survivors
        request = total.request(step).sign(self.signing_key)
        patience = _Patience(is_enough)
        replies = self.transport.exchange(
            sites,
            request,
            {site_id: total.payload_for(site_id) for site_id in sites},
            ttl_s=min(TRIP_S, self.study.federation.round_deadline_s),
            kind="masking",
            is_enough=patience.is_over,
        )
        for reply in replies:
            if reply.envelope is None or reply.site_id not in sites:
                log.warning("%s: no answer site=%s code=%s", step, reply.site_id, reply.code)
                refusals += reply.code not in AWAY
                continue
            if shares is not None:
                is_good = shares(reply.site_id, reply.envelope, reply.payload)
            else:
                is_good = take is not None and take(reply.site_id, reply.envelope)
            if not is_good:
                log.warning("%s: answer refused site=%s", step, reply.site_id)
        return refusals

    def _total(  # noqa: PLR0917 - the facts of one sum
        self,
        words: Words,
        layout: MaskedLayout,
        survivors: Sequence[str],
        manifest: Manifest,
        manifest_sha256: str,
        origin: Vector,
    ) -> MaskedTotal:
        plan = distributed_plan(self.study, manifest.spec.num_elements)
        blocks = block_means(manifest, survivors)
        if plan is not None:
            whole = fixed_point.signed(words[: layout.num_values], layout.modulus_bits)
            noised = decode_noised(whole, plan, rotation_seed(manifest_sha256))
            mean = noised / self._denominator()
            for block in blocks:
                # The divisor of a block is the number of its owners, public as they are.
                for part in block.parts:
                    mean[part] *= plan.num_sites / len(block.owners) if block.owners else 0.0
            return MaskedTotal(
                vector=_moved(origin, mean),
                weight=1.0,
                train_metrics={},
                evaluate_metrics={},
                num_cut=None,
            )
        in_sum = [
            fixed_point.SumOfBlock(parts=block.parts, num_owners=len(block.owners))
            for block in blocks
        ]
        said = fixed_point.decode(words, layout, in_sum)
        vector = None
        if manifest.kind == "train" and manifest.masking is not None:
            share = manifest.masking.kept_share
            kept = kept_coordinates(manifest_sha256, origin.size, share)
            vector = said.moved(origin, kept, exact_share(share), in_sum)
        return MaskedTotal(
            vector=vector,
            weight=float(said.weight),
            train_metrics=said.train_metrics,
            evaluate_metrics=said.evaluate_metrics,
            num_cut=said.num_cut,
        )

    def _denominator(self) -> float:
        """Public: it does not say how many sites or patients are in the sum."""
        masks = self.study.secure_aggregation
        noise = None if masks is None else masks.distributed_privacy
        if noise is None:
            raise MaskingError("FH-SECAGG-008", "the study has no distributed noise.")
        if noise.unit == "site":
            return float(noise.num_sites)
        # One global step against the mean gradient, with the study's own learning rate.
        return -(noise.num_patients or 1) / self.study.training.optimizer.learning_rate

    def _has_key(self, line: RosterLine) -> bool:
        """Whether a site's key is what every other site will believe, and is its alone."""
        own = line.entry.site_id
        envelope = self._keys.get(own)
        if envelope is None or len(envelope.payload) > KEY_STATEMENT_BYTES:
            return False
        try:
            said = open_statement(MaskKey, envelope, VerifyKey.from_base64(line.entry.signing_key))
            key = public_bytes(said.public_key)
        except (IdentityError, EvidenceError, MaskingRefusedError):
            return False
        others = (public_key_of(other) for site_id, other in self._keys.items() if site_id < own)
        return (
            (said.study_id, said.study_sha256) == (self.study.id, study_digest(self.study))
            and (said.run_name, said.site_id) == (self.run.name, own)
            and is_canonical(said, envelope)
            and all(public_bytes(other) != key for other in others)
        )


class _Patience:
    """Over a little after there was enough."""

    def __init__(self, is_enough: Callable[[], bool]) -> None:
        self._is_enough = is_enough
        self._since: float | None = None

    def is_over(self) -> bool:
        """Asked again and again."""
        if not self._is_enough():
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since >= GRACE_S


def _moved(origin: Vector, mean: NDArray[np.floating[Any]]) -> Vector:
    moved: Vector = np.add(origin, mean).astype(np.float32)
    if not np.isfinite(moved).all():
        raise MaskingError("FH-SECAGG-007", "the unmasked sum is not finite.")
    return moved
