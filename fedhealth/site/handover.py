"""How the worker tells its supervisor why it ended: the same error, with the same exit code."""

from pathlib import Path

from fedhealth import errors
from fedhealth.durable import read_json
from fedhealth.errors import ExitCode, FedHealthError

_BY_EXIT_CODE = {
    ExitCode.CONFIG: errors.ConfigError,
    ExitCode.SITE_DATA: errors.SiteDataError,
    ExitCode.PRIVACY_BUDGET: errors.PrivacyError,
    ExitCode.GATE_REFUSED: errors.GateRefusedError,
    ExitCode.TRANSPORT_OR_IDENTITY: errors.IdentityError,
    ExitCode.EVIDENCE_NOT_VERIFIED: errors.EvidenceError,
    ExitCode.USAGE: errors.UsageError,
}


def read_failure(path: Path, log_path: Path) -> FedHealthError:
    """The error that a worker wrote before it ended, or a bug when it wrote none."""
    said = read_json(path)
    if not said:
        return FedHealthError(
            "FH-SITE-002",
            "the worker ended without saying why.",
            why="This is a bug in fedhealth or in the site package.",
            fix=f"Look at {log_path}.",
        )
    kind = _BY_EXIT_CODE.get(ExitCode(said["exit_code"]), FedHealthError)
    return kind(said["code"], said["what"], why=said["why"], fix=said["fix"])
