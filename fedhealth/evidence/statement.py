"""What all signed statements have in common: a closed schema, and how one is opened. Called through `statements`."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedhealth.errors import EvidenceError
from fedhealth.evidence.signing import Envelope, SigningKey, VerifyKey, canonical_json

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SiteId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,39}$")]
RunName = SiteId
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]
DecimalId = Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]  # uint64 does not fit in JSON numbers
UtcTime = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]
ModalityName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Metrics = dict[Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")], float]


class Statement(BaseModel):
    """Base: closed, frozen, finite numbers only, bound to one payload type."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def payload_type(cls) -> str:
        """The DSSE payload type of this statement."""
        return f"application/vnd.fedhealth.{cls.__name__.lower()}.v1+json"

    def sign(self, key: SigningKey) -> Envelope:
        """Sign this statement."""
        return key.sign(self.payload_type(), self.model_dump(mode="json"))


S = TypeVar("S", bound=Statement)


def open_statement(model: type[S], envelope: Envelope, key: VerifyKey) -> S:
    """The statement in an envelope, after signature and schema.

    Raises:
        IdentityError: the signature or the kind is wrong.
        EvidenceError: FH-EVIDENCE-002 signed, but not in the agreed schema.
    """
    payload = key.open(envelope, model.payload_type())
    return parse_statement(model, payload)


def parse_statement(model: type[S], payload: bytes | str) -> S:
    """Parse without believing: for reading the key that the statement itself names.

    Raises:
        EvidenceError: FH-EVIDENCE-002 not in the agreed schema.
    """
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])[:80]
        raise EvidenceError(
            "FH-EVIDENCE-002",
            f"a {model.__name__.lower()} does not keep its schema (at {where or 'the top'}).",
            why="The other party may run another version.",
            fix="Compare `fedhealth --version` on both sides.",
        ) from None


def is_canonical(said: Statement, envelope: Envelope) -> bool:
    """Whether an envelope holds the statement's canonical JSON and not a byte more: a signature covers any bytes."""
    return envelope.payload == canonical_json(said.model_dump(mode="json")).decode()
