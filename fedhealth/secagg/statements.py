"""The signed statements of secure aggregation beside manifest and contribution, as closed schemas."""

from typing import Annotated, Literal

from pydantic import Field

from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Hex64, RunName, ShareCommitment, SiteId, Statement

__all__ = [
    "Agreement",
    "KeyRequest",
    "MaskKey",
    "ShareCommitment",
    "Shares",
    "UnmaskRequest",
]

Sites = Annotated[tuple[SiteId, ...], Field(max_length=1000)]


class KeyRequest(Statement):
    """From the server: your key of this run, please."""

    study_id: SiteId
    study_sha256: Hex64
    run_name: RunName


class MaskKey(Statement):
    """From a site: its public X25519 key of one run, 32 bytes in base64, under its enrolled signing key."""

    study_id: SiteId
    study_sha256: Hex64
    run_name: RunName
    site_id: SiteId
    public_key: str = Field(pattern=r"^[A-Za-z0-9+/=]{1,64}$")


class UnmaskRequest(Statement):
    """From the server: these sites' vectors are in the sum, those are not; agree to it, or give your shares.

    `commitments` are the survivors' own statements, in order. `agreements` are survivors' signatures over this very
    list; there are none when the list is the manifest's whole cohort.
    """

    manifest_sha256: Hex64
    step: Literal["agree", "unmask"]
    survivors: Sites
    dropped: Sites
    commitments: Annotated[tuple[Envelope, ...], Field(max_length=1000)]
    agreements: Annotated[tuple[Envelope, ...], Field(max_length=1000)] = ()


class Agreement(Statement):
    """From a survivor: this list of survivors, and for this manifest no other, ever."""

    manifest_sha256: Hex64
    site_id: SiteId
    survivors: Sites


class Shares(Statement):
    """From a survivor: the digest of the shares that go with it."""

    manifest_sha256: Hex64
    site_id: SiteId
    shares_sha256: Hex64
