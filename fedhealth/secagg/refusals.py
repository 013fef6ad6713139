"""How secure aggregation says no: an error with a code for people, and a drop code for the other party."""

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import AggregationError, GateRefusedError


class MaskingError(AggregationError):
    """Masks cannot be made or removed; the round gives no sum."""


class MaskingRefusedError(GateRefusedError):
    """A site refuses what the server asks of it; `drop_code` is what the server is told."""

    def __init__(self, drop_code: DropCode, what: str) -> None:
        super().__init__(
            "FH-SECAGG-010",
            f"a step of secure aggregation was refused: {what}.",
            why="Carrying it out could show the server one hospital's update.",
            fix="Ask the coordinator; nothing was sent but the code.",
        )
        self.drop_code = drop_code

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.drop_code, self.what))
