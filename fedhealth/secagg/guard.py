"""What a site checks before it masks, agrees or unmasks. Anything unexpected is refused, each with its own code.

One method is one check, so that a test can take a single check away in a subclass and show that the attack which it
stops then works. The product makes `Guard()` and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import EvidenceError, IdentityError
from fedhealth.evidence.presence import block_floor, exposed_blocks
from fedhealth.evidence.signing import Envelope, VerifyKey
from fedhealth.evidence.statements import Manifest, RoundMasking, open_statement, parse_statement
from fedhealth.secagg.mask_keys import public_bytes
from fedhealth.secagg.quorum import check_floor, check_lists, check_threshold
from fedhealth.secagg.refusals import MaskingRefusedError
from fedhealth.secagg.statements import Agreement, MaskKey, ShareCommitment, UnmaskRequest

_UNREADABLE: Final = (IdentityError, EvidenceError)
Roster = Mapping[str, VerifyKey]
"""Signing keys of the sites that this site pinned, its own among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """What this hospital insists on: fewest sites in a sum, and how many of them may collude with the server."""

    min_survivors: int
    colluding: int

    @property
    def least_survivors(self) -> int:
        """Of a sum with one honest site the colluding ones see that site's update: there must be two."""
        return max(self.min_survivors, self.colluding + 2)


class Guard:
    """The checks, in the order in which they are called."""

    def check_settings(self, manifest: Manifest, expected: RoundMasking) -> None:
        """The manifest masks as the pinned study says."""
        if manifest.masking != expected:
            raise MaskingRefusedError(
                DropCode.SECAGG_SETTINGS, "it masks otherwise than the study that this site joined"
            )

    def check_order(self, manifest: Manifest) -> None:
        """Masks have a sign by the order of the cohort, so the order is nobody's choice."""
        names = [member.site_id for member in manifest.cohort]
        if names != sorted(names):
            raise MaskingRefusedError(
                DropCode.SECAGG_COHORT_ORDER, "the cohort is not in the order of site ids"
            )

    def check_roster(self, manifest: Manifest, roster: Roster) -> None:
        """Only sites that this site pinned: the server cannot bring its own."""
        for member in manifest.cohort:
            key = roster.get(member.site_id)
            if key is None or key.key_id != member.key_id:
                raise MaskingRefusedError(
                    DropCode.SECAGG_STRANGER,
                    "the cohort names a site that is not on the pinned roster",
                )

    def check_floor(self, manifest: Manifest, floors: Floors) -> None:
        """Enough sites, now and after drop-outs."""
        check_floor(len(manifest.cohort), floor=floors.least_survivors, what="the cohort")
        promised = 0 if manifest.masking is None else manifest.masking.min_survivors
        check_floor(promised, floor=floors.least_survivors, what="the least list of survivors")

    def check_threshold(self, manifest: Manifest, floors: Floors) -> None:
        """No two lists of survivors can be unmasked."""
        threshold = 0 if manifest.masking is None else manifest.masking.threshold
        check_threshold(threshold, num_sites=len(manifest.cohort), colluding=floors.colluding)

    def check_presence(
        self, manifest: Manifest, *, own: str, modalities: tuple[str, ...] | None
    ) -> None:
        """This site has the modalities that it declared: it would else stand for an owner, and add nothing.

        Every survivor signed for this manifest, so each of them found its own declaration in it.
        """
        said = next((m.modalities for m in manifest.cohort if m.site_id == own), None)
        if said != modalities:
            raise MaskingRefusedError(
                DropCode.PRESENCE_MISMATCH, "it gives this site other modalities than it declared"
            )

    def check_keys(self, manifest: Manifest, roster: Roster, *, own: str, own_key: str) -> None:
        """Every key is signed by its site, for this run, no two are the same, and this site's is its own."""
        keys: dict[str, bytes] = {}
        for member in manifest.cohort:
            signer = roster.get(member.site_id)
            if member.mask_key is None or signer is None:
                raise _bad_key("a site of the cohort has none")
            try:
                said = open_statement(MaskKey, member.mask_key, signer)
            except _UNREADABLE:
                raise _bad_key("a key is not signed by its site") from None
            if (said.study_sha256, said.run_name, said.site_id) != (
                manifest.study_sha256,
                manifest.run_name,
                member.site_id,
            ):
                raise _bad_key("a key is of another study, run or site")
            keys[member.site_id] = public_bytes(said.public_key)
        if len(set(keys.values())) != len(keys) or keys.get(own) != public_bytes(own_key):
            raise _bad_key("two sites have one key, or this site's key is not its own")

    def check_lists(self, request: UnmaskRequest, manifest: Manifest, own: str) -> None:
        """No site on both lists, none unknown, none left out."""
        cohort = [member.site_id for member in manifest.cohort]
        check_lists(cohort, request.survivors, request.dropped, own)

    def check_survivors(self, request: UnmaskRequest, manifest: Manifest, floors: Floors) -> None:
        """Enough of them for this site, for the study and for the threshold."""
        masking = manifest.masking
        promised = 0 if masking is None else max(masking.min_survivors, masking.threshold)
        floor = max(floors.least_survivors, promised)
        check_floor(len(request.survivors), floor=floor, what="the list of survivors")

    def check_blocks(self, request: UnmaskRequest, manifest: Manifest, floors: Floors) -> None:
        """The sum of every part of the model is about none of its owners, or about enough of them."""
        floor = max(floors.least_survivors, block_floor(manifest))
        if exposed_blocks(manifest, request.survivors, floor):
            raise MaskingRefusedError(
                DropCode.SECAGG_BLOCK_FLOOR,
                f"fewer than {floor} survivors trained a modality's part of the model",
            )

    def check_first_list(self, request: UnmaskRequest, accepted: Sequence[str] | None) -> None:
        """One list for a manifest, for ever: two lists would show the difference of two sums."""
        if accepted is not None and list(accepted) != list(request.survivors):
            raise MaskingRefusedError(
                DropCode.SECAGG_SECOND_LIST, "another list of survivors was accepted before"
            )

    def check_commitments(self, request: UnmaskRequest, manifest: Manifest, roster: Roster) -> None:
        """Every survivor signed for this very manifest."""
        if len(request.commitments) != len(request.survivors):
            raise _bad_commitment("their number is not that of the survivors")
        for site_id, envelope in zip(request.survivors, request.commitments, strict=True):
            try:
                said = open_statement(ShareCommitment, envelope, roster[site_id])
            except _UNREADABLE:
                raise _bad_commitment("one is not signed by its site") from None
            of_this = (said.manifest_sha256, said.site_id) == (request.manifest_sha256, site_id)
            if not of_this or len(said.share_sha256) != len(manifest.cohort):
                raise _bad_commitment("one is of another manifest or site")

    def check_agreements(self, request: UnmaskRequest, manifest: Manifest, roster: Roster) -> None:
        """Unless the list is the whole cohort, a threshold of survivors signed it before anybody unmasks."""
        if not request.dropped:
            return
        signed = set()
        for envelope in request.agreements:
            try:
                claimed = parse_statement(Agreement, envelope.payload)
                said = open_statement(Agreement, envelope, roster[claimed.site_id])
            except (*_UNREADABLE, KeyError):
                continue
            if (said.manifest_sha256, said.survivors) == (
                request.manifest_sha256,
                request.survivors,
            ) and said.site_id in request.survivors:
                signed.add(said.site_id)
        threshold = len(manifest.cohort) if manifest.masking is None else manifest.masking.threshold
        if len(signed) < threshold:
            raise MaskingRefusedError(
                DropCode.SECAGG_NO_AGREEMENT,
                f"{len(signed)} survivors signed this list, it takes {threshold}",
            )


def public_key_of(envelope: Envelope) -> str:
    """The public key in a statement that `Guard.check_keys` believed.

    Raises:
        EvidenceError: not in the agreed schema.
    """
    return parse_statement(MaskKey, envelope.payload).public_key


def _bad_key(reason: str) -> MaskingRefusedError:
    return MaskingRefusedError(DropCode.MASK_KEY_INVALID, f"of the keys for masks, {reason}")


def _bad_commitment(reason: str) -> MaskingRefusedError:
    return MaskingRefusedError(
        DropCode.SHARE_COMMITMENT_INVALID, f"of the survivors' commitments, {reason}"
    )
