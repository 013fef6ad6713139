"""What a worker hands to its door: something that the gate made, under this site's signature."""

from dataclasses import dataclass, field

from fedhealth.evidence.signing import Envelope
from fedhealth.gate.outbound import Outbound


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAnswer:
    """What goes to the door: something the gate made, and the site's signature over its digest."""

    outbound: Outbound
    contribution: Envelope = field(repr=False)
    sealed_for: str | None = None
    """SHA-256 of the manifest that it is sealed for; None for what costs nothing."""
