"""Every error that fedhealth raises on purpose: one root, a code, what failed, why it matters, what to do.

`cli/app.py` catches the root once, prints the three parts and exits with `exit_code`. Nothing here may hold
a patient value, a path inside a site's data folder or a name: messages are written for people at the place
where they are raised, and only `code` ever crosses to another party.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes. They are API: never reused, never renumbered."""

    OK = 0
    BUG = 1
    USAGE = 2
    CONFIG = 3
    SITE_DATA = 4
    PRIVACY_BUDGET = 5
    GATE_REFUSED = 6
    TRANSPORT_OR_IDENTITY = 7
    EVIDENCE_NOT_VERIFIED = 8
    NO_QUORUM = 9
    INTERRUPTED = 130


class FedHealthError(Exception):
    """Root of the family.

    Args:
        code: stable identifier such as ``FH-CONFIG-002``; API, never reused.
        what: what failed, with the value where it is safe to show.
        why: why it matters to the person who reads it.
        fix: what to do now.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, code: str, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        parts = [f"{self.code} {self.what}"]
        parts += [text for text in (self.why, self.fix) if text]
        return " ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.code, self.what, self.why, self.fix))


def _rebuild(
    kind: type["FedHealthError"], code: str, what: str, why: str, fix: str
) -> "FedHealthError":
    return kind(code, what, why=why, fix=fix)


class UsageError(FedHealthError):
    """The command line asks for something that does not fit together."""

    exit_code = ExitCode.USAGE


class ConfigError(FedHealthError):
    """A study, site or server file is wrong, or names a plug-in that is not installed."""

    exit_code = ExitCode.CONFIG


class SiteDataError(FedHealthError):
    """The cohort on disk does not keep the study's data contract."""

    exit_code = ExitCode.SITE_DATA


class GateRefusedError(FedHealthError):
    """The gate refused to let something out."""

    exit_code = ExitCode.GATE_REFUSED


class PrivacyError(FedHealthError):
    """A privacy parameter, the site's privacy policy or its budget ledger forbids what was asked for."""

    exit_code = ExitCode.PRIVACY_BUDGET


class TransportError(FedHealthError):
    """A connection, a frame, a port or a process between the two zones failed."""

    exit_code = ExitCode.TRANSPORT_OR_IDENTITY


class IdentityError(FedHealthError):
    """A key, a signature or an admission is missing, wrong or revoked."""

    exit_code = ExitCode.TRANSPORT_OR_IDENTITY


class AggregationError(FedHealthError):
    """Replies of a round cannot be aggregated."""

    exit_code = ExitCode.BUG


class EvidenceError(FedHealthError):
    """A record, a statement or a digest does not verify."""

    exit_code = ExitCode.EVIDENCE_NOT_VERIFIED


class QuorumError(FedHealthError):
    """Fewer sites than the minimum cohort took part."""

    exit_code = ExitCode.NO_QUORUM


class TrainingError(FedHealthError):
    """Local training cannot go on with this cohort, this model or these settings."""

    exit_code = ExitCode.SITE_DATA


class CancelledTrainingError(FedHealthError):
    """The round's deadline passed or the site is stopping; the work of the round is dropped."""

    exit_code = ExitCode.INTERRUPTED
