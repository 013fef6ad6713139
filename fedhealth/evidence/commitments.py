"""What a site of a masked round signs for the other sites to see: which vector and which shares are its own."""

from typing import Annotated

from pydantic import Field

from fedhealth.evidence.signing import Envelope, canonical_json
from fedhealth.evidence.statement import Hex64, SiteId, Statement, parse_statement


class ShareCommitment(Statement):
    """From a site, shown to all others: this masked vector and these sealed shares are mine, for this manifest.

    `share_sha256` are the digests of the sealed shares, one for each site of the cohort, in its order.
    """

    manifest_sha256: Hex64
    site_id: SiteId
    vector_sha256: Hex64
    share_sha256: Annotated[tuple[Hex64, ...], Field(min_length=1, max_length=1000)]


class SignedShareCommitment(Statement):
    """A commitment with its site's signature, field by field: as an envelope it would be one free string."""

    said: ShareCommitment
    key_id: Hex64
    signature: str = Field(pattern=r"^[A-Za-z0-9+/=]{1,128}$")

    @classmethod
    def of(cls, envelope: Envelope) -> "SignedShareCommitment":
        """From the envelope that the site signed. Raises EvidenceError FH-EVIDENCE-002."""
        said = parse_statement(ShareCommitment, envelope.payload)
        return cls(said=said, key_id=envelope.key_id, signature=envelope.signature)

    @property
    def envelope(self) -> Envelope:
        """The envelope again: a statement is signed over its canonical JSON."""
        return Envelope(
            payload_type=ShareCommitment.payload_type(),
            payload=canonical_json(self.said.model_dump(mode="json")).decode(),
            key_id=self.key_id,
            signature=self.signature,
        )
