"""How the gate says no: called by the rest of the gate."""

from fedhealth.errors import GateRefusedError


def refused(code: str, what: str) -> GateRefusedError:
    """The error of something that may not leave."""
    return GateRefusedError(
        code,
        what,
        why="The gate releases only what manifest and study name. Nothing was sent.",
        fix="See the site's log; check the model package with fedhealth.testing.model_contract.",
    )
