"""The server's part of secure aggregation: sum masked vectors as they come, then take the masks off the sum.

It holds the sum and one reply; no site's own vector is kept. What is here cannot show one site's update: every
vector is uniform noise without shares that the sites give for one list of survivors only.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from fedhealth.errors import EvidenceError, IdentityError
from fedhealth.evidence.presence import block_floor, exposed_blocks
from fedhealth.evidence.signing import Envelope, VerifyKey
from fedhealth.evidence.statements import Manifest, is_canonical, open_statement
from fedhealth.secagg.layout import MaskedLayout
from fedhealth.secagg.mask_stream import Words, add_mask, reduce_words, word_type
from fedhealth.secagg.packing import add_packed
from fedhealth.secagg.refusals import MaskingError
from fedhealth.secagg.shamir import SHARE_BYTES, combine
from fedhealth.secagg.site_side import sealed_size
from fedhealth.secagg.statements import Agreement, ShareCommitment, Shares, UnmaskRequest

_UNREADABLE: Final = (IdentityError, EvidenceError, MaskingError)


@dataclass(slots=True)
class _Survivor:
    """What a site sent beside its vector."""

    commitment: Envelope
    sealed: list[bytes] = field(repr=False)


class MaskedSum:
    """One round's sum. Vectors go in one by one; after the last, masks come off.

    Args:
        manifest: of the round, with masking.
        manifest_sha256: of its payload.
        layout: what its vectors hold.
        keys: enrolled signing keys of the cohort, by site id.
    """

    def __init__(
        self,
        manifest: Manifest,
        manifest_sha256: str,
        layout: MaskedLayout,
        keys: Mapping[str, VerifyKey],
    ) -> None:
        if manifest.masking is None:
            raise MaskingError("FH-SECAGG-008", "the manifest asks for no masks.")
        self._digest, self._layout, self._keys = manifest_sha256, layout, keys
        self._manifest = manifest
        self._threshold = manifest.masking.threshold
        self._floor = max(manifest.masking.min_survivors, self._threshold)
        self._cohort = [member.site_id for member in manifest.cohort]
        self._total: Words = np.zeros(layout.num_words, dtype=word_type(layout.modulus_bits))
        self._in: dict[str, _Survivor] = {}
        self._is_fixed = False
        self._agreements: dict[str, Envelope] = {}
        self._shares: dict[str, bytes] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of one site's payload in trip 1: packed vector, and sealed shares for every site."""
        return self._layout.num_bytes + len(self._cohort) * sealed_size(len(self._cohort))

    @property
    def survivors(self) -> tuple[str, ...]:
        """Sites whose vectors are in the sum, in cohort order."""
        return tuple(site for site in self._cohort if site in self._in)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The rest of the cohort."""
        return tuple(site for site in self._cohort if site not in self._in)

    @property
    def is_whole(self) -> bool:
        """Whether all of the cohort is in: then masks come off in one more trip, else in two."""
        return not self.dropped

    @property
    def has_quorum(self) -> bool:
        """Whether the survivors are enough for the threshold and for the study's floor."""
        return len(self._in) >= self._floor

    @property
    def has_owners(self) -> bool:
        """Whether every part of the model was trained by none of the survivors, or by enough for the floor."""
        floor = block_floor(self._manifest)
        return not exposed_blocks(self._manifest, self.survivors, floor)

    def add(self, site_id: str, commitment: Envelope, payload: bytes) -> bool:
        """Add one site's vector; False when it is not what the site signed, comes twice or comes too late."""
        if self._is_fixed or site_id in self._in or site_id not in self._cohort:
            return False
        if len(payload) != self.num_bytes:
            return False
        view, end = memoryview(payload), self._layout.num_bytes
        size = sealed_size(len(self._cohort))
        sealed = [bytes(view[i : i + size]) for i in range(end, len(payload), size)]
        try:
            said = open_statement(ShareCommitment, commitment, self._keys[site_id])
        except _UNREADABLE:
            return False
        digests = tuple(hashlib.sha256(part).hexdigest() for part in sealed)
        if (
            (said.manifest_sha256, said.site_id) != (self._digest, site_id)
            or said.vector_sha256 != hashlib.sha256(view[:end]).hexdigest()
            or said.share_sha256 != digests
        ):
            return False
        try:
            add_packed(self._total, view[:end], self._layout.modulus_bits)
        except MaskingError:
            return False
        self._in[site_id] = _Survivor(commitment, sealed)
        return True

    def request(self, step: Literal["agree", "unmask"]) -> UnmaskRequest:
        """What all survivors are asked. From the first request on, no vector is added any more."""
        self._is_fixed = True
        return UnmaskRequest(
            manifest_sha256=self._digest,
            step=step,
            survivors=self.survivors,
            dropped=self.dropped,
            commitments=tuple(self._in[site].commitment for site in self.survivors),
            agreements=tuple(self._agreements.values()) if step == "unmask" else (),
        )

    def payload_for(self, site_id: str) -> bytes:
        """What the survivors sealed for that site, in order."""
        place = self._cohort.index(site_id)
        return b"".join(self._in[sender].sealed[place] for sender in self.survivors)

    def take_agreement(self, site_id: str, envelope: Envelope) -> bool:
        """Keep a survivor's signature over this list; False when it is none."""
        try:
            said = open_statement(Agreement, envelope, self._keys[site_id])
        except (*_UNREADABLE, KeyError):
            return False
        expected = (self._digest, site_id, self.survivors)
        is_final = self._is_fixed and site_id in self._in
        if not is_final or (said.manifest_sha256, said.site_id, said.survivors) != expected:
            return False
        if not is_canonical(said, envelope):  # padding would reach every site with the request
            return False
        self._agreements[site_id] = envelope
        return True

    @property
    def num_agreements(self) -> int:
        """Survivors that signed this list."""
        return len(self._agreements)

    @property
    def has_agreement(self) -> bool:
        """Whether a threshold of survivors signed this list."""
        return len(self._agreements) >= self._threshold

    def take_shares(self, site_id: str, envelope: Envelope, payload: bytes) -> bool:
        """Keep a survivor's shares; False when they are not what it signed."""
        try:
            said = open_statement(Shares, envelope, self._keys[site_id])
        except (*_UNREADABLE, KeyError):
            return False
        num = len(self.survivors) * (1 + len(self.dropped))
        if (
            site_id not in self._in
            or (said.manifest_sha256, said.site_id) != (self._digest, site_id)
            or len(payload) != num * SHARE_BYTES
            or said.shares_sha256 != hashlib.sha256(payload).hexdigest()
        ):
            return False
        self._shares[site_id] = bytes(payload)
        return True

    @property
    def has_shares(self) -> bool:
        """Whether a threshold of survivors gave shares."""
        return len(self._shares) >= self._threshold

    @property
    def unmasked_by(self) -> tuple[str, ...]:
        """Sites that gave shares, in cohort order."""
        return tuple(site for site in self._cohort if site in self._shares)

    def remove_masks(self) -> Words:
        """The sum without masks, (num_words,) below 2**modulus_bits. The masked sum is used up, unless this raises.

        Raises:
            MaskingError: FH-SECAGG-002 too few shares, FH-SECAGG-003 they contradict each other, FH-SECAGG-009
                there are fewer survivors than the floor, or fewer that trained a modality's part of the model.
        """
        if not self.has_owners:
            raise MaskingError(
                "FH-SECAGG-009",
                "a modality's part of the model was trained by fewer sites of the sum than its floor.",
                why="A sum of fewer sites says too much about each of them.",
            )
        if not self.has_quorum:
            raise MaskingError(
                "FH-SECAGG-009",
                f"{len(self._in)} sites are in the sum, it takes {self._floor}.",
                why="A sum of fewer sites says too much about each of them.",
            )
        survivors, dropped = self.survivors, self.dropped
        seeds = [self._seed(place) for place in range(len(survivors) * (1 + len(dropped)))]
        for index, site in enumerate(survivors):
            add_mask(self._total, seeds[index], -1)
            for number, gone in enumerate(dropped):
                place = len(survivors) + index * len(dropped) + number
                # The survivor added it when it comes first of the two, and took it away else.
                add_mask(self._total, seeds[place], -1 if site < gone else 1)
        reduce_words(self._total, self._layout.modulus_bits)
        return self._total

    def _seed(self, place: int) -> bytes:
        """The seed whose shares lie at that place of every answer."""
        shares = {
            self._cohort.index(site) + 1: answer[place * SHARE_BYTES : (place + 1) * SHARE_BYTES]
            for site, answer in self._shares.items()
        }
        return combine(shares, threshold=self._threshold)
