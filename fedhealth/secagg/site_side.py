"""The site's part of secure aggregation: mask once, agree to one list, give shares for that list only.

Bonawitz et al. 2017 (arXiv 1611.04482), figure 4, in two trips: the masked vector goes up together with the sealed
shares of its masks (trip 1), and a survivor opens what its peers sealed for it when the list is fixed (trip 2).
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import Manifest, parse_statement
from fedhealth.secagg.guard import Floors, Guard, Roster, public_key_of
from fedhealth.secagg.mask_keys import NONCE_BYTES, TAG_BYTES, RunKey
from fedhealth.secagg.mask_stream import Words, add_mask, reduce_words
from fedhealth.secagg.packing import pack
from fedhealth.secagg.refusals import MaskingRefusedError
from fedhealth.secagg.shamir import SEED_BYTES, SHARE_BYTES, split
from fedhealth.secagg.statements import Agreement, ShareCommitment, Shares, UnmaskRequest

__all__ = ["MaskedVector", "MaskingSite", "sealed_size"]

_SIGNS: Final = (1, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedVector:
    """What leaves in trip 1: the packed vector, the sealed shares for each site in cohort order, and the commitment."""

    vector: bytes = field(repr=False)
    sealed: tuple[bytes, ...] = field(repr=False)
    commitment: Envelope

    @property
    def payload(self) -> bytes:
        """Vector and shares, as they travel."""
        return b"".join((self.vector, *self.sealed))


def sealed_size(num_sites: int) -> int:
    """Bytes of one site's sealed shares for one peer: of its self-mask seed and of its n - 1 pairwise seeds."""
    return NONCE_BYTES + num_sites * SHARE_BYTES + TAG_BYTES


class MaskingSite:
    """One site in one round: its keys, what it pinned, and the manifest that it verified.

    Args:
        site_id: its own id.
        signing_key: its enrolled Ed25519 key.
        run_key: its X25519 key of this run.
        roster: what it pinned.
        floors: what it insists on.
        manifest: signed by the pinned server key, and otherwise accepted.
        manifest_sha256: of the manifest's payload.
        modalities: what it declared, where the study averages encoders over the sites that have them; else None.
        guard: the checks.

    Raises:
        MaskingRefusedError: the cohort, its keys, its threshold or its order is not acceptable.
    """

    def __init__(
        self,
        *,
        site_id: str,
        signing_key: SigningKey,
        run_key: RunKey,
        roster: Roster,
        floors: Floors,
        manifest: Manifest,
        manifest_sha256: str,
        modalities: tuple[str, ...] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._guard = Guard() if guard is None else guard
        if manifest.masking is None:
            raise MaskingRefusedError(DropCode.SECAGG_REQUIRED, "the manifest asks for no masks")
        self._guard.check_order(manifest)
        self._guard.check_roster(manifest, roster)
        self._guard.check_floor(manifest, floors)
        self._guard.check_threshold(manifest, floors)
        self._guard.check_presence(manifest, own=site_id, modalities=modalities)
        self._guard.check_keys(manifest, roster, own=site_id, own_key=run_key.public)
        self._threshold = manifest.masking.threshold
        self._site_id, self._signing_key, self._run_key = site_id, signing_key, run_key
        self._roster, self._floors = roster, floors
        self._manifest, self._digest = manifest, manifest_sha256
        self._cohort = [member.site_id for member in manifest.cohort]
        self._keys = {
            member.site_id: public_key_of(member.mask_key)
            for member in manifest.cohort
            if member.mask_key is not None
        }

    def mask(self, words: Words, modulus_bits: int) -> MaskedVector:
        """Mask the words in place, and make what leaves with them. Once for a manifest: twice would show a difference.

        Args:
            words: (n,) this site's part of the sum; overwritten.
            modulus_bits: of the round's layout.
        """
        self_seed = os.urandom(SEED_BYTES)
        add_mask(words, self_seed, 1)
        pair_seeds = {peer: self._pair_seed(peer) for peer in self._cohort if peer != self._site_id}
        for peer, seed in pair_seeds.items():
            add_mask(words, seed, _SIGNS[self._site_id > peer])
        reduce_words(words, modulus_bits)
        vector = pack(words, modulus_bits)
        sealed = self._seal([self_seed, *pair_seeds.values()])
        commitment = ShareCommitment(
            manifest_sha256=self._digest,
            site_id=self._site_id,
            vector_sha256=hashlib.sha256(vector).hexdigest(),
            share_sha256=tuple(hashlib.sha256(part).hexdigest() for part in sealed),
        )
        return MaskedVector(
            vector=vector, sealed=tuple(sealed), commitment=commitment.sign(self._signing_key)
        )

    def agree(
        self, request: UnmaskRequest, payload: bytes, accepted: Sequence[str] | None
    ) -> Agreement:
        """The statement to sign for this list; the caller makes the list durable before it leaves.

        Raises:
            MaskingRefusedError: see `Guard`.
        """
        self._check(request, payload, accepted)
        return Agreement(
            manifest_sha256=self._digest, site_id=self._site_id, survivors=request.survivors
        )

    def shares(
        self, request: UnmaskRequest, payload: bytes, accepted: Sequence[str] | None
    ) -> tuple[Shares, bytes]:
        """Shares of the survivors' self-mask seeds, then of every pairwise seed of a survivor with a dropped site.

        The caller makes the list durable before they leave.

        Raises:
            MaskingRefusedError: see `Guard`; or a peer's sealed shares cannot be opened.
        """
        self._check(request, payload, accepted)
        self._guard.check_agreements(request, self._manifest, self._roster)
        opened = {
            sender: self._open(sender, part)
            for sender, part in zip(request.survivors, self._parts(request, payload), strict=True)
        }
        parts = [opened[sender][:SHARE_BYTES] for sender in request.survivors]
        for sender in request.survivors:
            others = [site for site in self._cohort if site != sender]
            for dropped in request.dropped:
                place = (1 + others.index(dropped)) * SHARE_BYTES
                parts.append(opened[sender][place : place + SHARE_BYTES])
        shares = b"".join(parts)
        said = Shares(
            manifest_sha256=self._digest,
            site_id=self._site_id,
            shares_sha256=hashlib.sha256(shares).hexdigest(),
        )
        return said, shares

    def _check(
        self, request: UnmaskRequest, payload: bytes, accepted: Sequence[str] | None
    ) -> None:
        if request.manifest_sha256 != self._digest:
            raise MaskingRefusedError(
                DropCode.SECAGG_UNKNOWN_ROUND, "it is about another manifest than the last one"
            )
        self._guard.check_lists(request, self._manifest, self._site_id)
        self._guard.check_survivors(request, self._manifest, self._floors)
        self._guard.check_blocks(request, self._manifest, self._floors)
        self._guard.check_first_list(request, accepted)
        self._guard.check_commitments(request, self._manifest, self._roster)
        self._check_parts(request, payload)

    def _check_parts(self, request: UnmaskRequest, payload: bytes) -> None:
        """The sealed shares are those that their senders signed for."""
        own = self._cohort.index(self._site_id)
        parts = self._parts(request, payload)
        for envelope, part in zip(request.commitments, parts, strict=True):
            said = parse_statement(ShareCommitment, envelope.payload)
            if hashlib.sha256(part).hexdigest() != said.share_sha256[own]:
                raise MaskingRefusedError(
                    DropCode.SHARE_COMMITMENT_INVALID,
                    "sealed shares are not those that were signed",
                )

    def _parts(self, request: UnmaskRequest, payload: bytes) -> list[bytes]:
        size = sealed_size(len(self._cohort))
        if len(payload) != size * len(request.survivors):
            raise MaskingRefusedError(
                DropCode.SHARE_COMMITMENT_INVALID, "the sealed shares have another size"
            )
        return [bytes(payload[i : i + size]) for i in range(0, len(payload), size)]

    def _seal(self, seeds: Sequence[bytes]) -> list[bytes]:
        num = len(self._cohort)
        shares = [split(seed, threshold=self._threshold, num_shares=num) for seed in seeds]
        return [
            self._run_key.seal_shares(
                self._keys[peer],
                b"".join(of_seed[index] for of_seed in shares),
                manifest_sha256=self._digest,
                sender=self._site_id,
                receiver=peer,
            )
            for index, peer in enumerate(self._cohort)
        ]

    def _open(self, sender: str, sealed: bytes) -> bytes:
        return self._run_key.open_shares(
            self._keys[sender],
            sealed,
            manifest_sha256=self._digest,
            sender=sender,
            receiver=self._site_id,
        )

    def _pair_seed(self, peer: str) -> bytes:
        first, second = sorted((self._site_id, peer))
        return self._run_key.pair_seed(
            self._keys[peer], manifest_sha256=self._digest, first=first, second=second
        )
