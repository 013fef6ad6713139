"""The signed statements of secure aggregation beside manifest and contribution, as closed schemas."""

from typing import Annotated, Literal

from pydantic import Field

from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Hex64, RunName, SiteId, Statement

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
    public_key: str = Field(max_length=64)


class ShareCommitment(Statement):
    """From a site, shown to all others: this masked vector and these sealed shares are mine, for this manifest.

    `share_sha256` are the digests of the sealed shares, one for each site of the cohort, in its order.
    """

    manifest_sha256: Hex64
    site_id: SiteId
    vector_sha256: Hex64
    share_sha256: Annotated[tuple[Hex64, ...], Field(min_length=1, max_length=1000)]


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
