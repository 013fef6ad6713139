"""The ledger's errors, each with its code. Called by the other modules of this room."""

import errno
from typing import Final

from fedhealth.errors import PrivacyError

REPLAY: Final = "FH-LEDGER-006"
FULL: Final = "FH-LEDGER-007"
_FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_RESTORE: Final = (
    "Keep the folder as it is for your data protection officer, and restore the newest good copy "
    "(docs/how-to/back-up-and-restore-the-ledger.md)."
)


def is_full_disk(error: OSError) -> bool:
    """Did the disk, a quota or a file size limit refuse more bytes?"""
    return error.errno in _FULL_DISK


def broken(line: int, what: str) -> PrivacyError:
    """A line that does not fit."""
    return PrivacyError(
        "FH-LEDGER-001",
        f"the privacy ledger is broken at line {line}: {what}.",
        why="What was spent can no longer be added up; guessing could only be too low.",
        fix=_RESTORE,
    )


def unknown(line: int, where: str) -> PrivacyError:
    """An unbroken line that this version cannot read."""
    return PrivacyError(
        "FH-LEDGER-002",
        f"line {line} of the privacy ledger is not one that this version knows (at {where}).",
        why="What cannot be accounted for cannot be added up.",
        fix="Use the version of fedhealth that wrote it, or a newer one.",
    )


def other_dataset(found: str, expected: str) -> PrivacyError:
    """The folder is another dataset's."""
    return PrivacyError(
        "FH-LEDGER-003",
        f"this privacy ledger is of dataset {found!r}, not of {expected!r}.",
        why="Spend is counted for each dataset; a new name would begin again at zero.",
        fix="Set privacy.dataset in site.yaml to the old name, or privacy.ledger_dir to the right folder.",
    )


def replaced() -> PrivacyError:
    """The file under us is another one, or shorter, or no longer what was read."""
    return PrivacyError(
        "FH-LEDGER-004",
        "the privacy ledger was removed, replaced or cut while it was in use.",
        why="An older copy knows less than was spent.",
        fix="Stop every process on this data, put the newest copy back, then start again.",
    )


def busy(timeout_s: float) -> PrivacyError:
    """Nobody gives the lock back."""
    return PrivacyError(
        "FH-LEDGER-005",
        f"another process held the privacy ledger for more than {timeout_s:g} s.",
        why="Two writers at once would break its chain.",
        fix="Look for a stopped or hanging fedhealth process on this data.",
    )


def replay(what: str) -> PrivacyError:
    """The manifest was answered, or comes before one that was."""
    return PrivacyError(
        REPLAY,
        f"{what}.",
        why="Each manifest is answered once; a second answer would cost the patients a second time.",
        fix="The server opens a new attempt for a round that it needs again.",
    )


def disk(error: OSError) -> PrivacyError:
    """The disk did not take what must be durable."""
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    if is_full_disk(error):
        return PrivacyError(
            FULL,
            f"the disk of the privacy ledger takes no more ({name}).",
            why="Nothing may be computed or sent before its cost is durable.",
            fix="Free space, or raise the quota or file size limit; then start again.",
        )
    return PrivacyError(
        "FH-LEDGER-008",
        f"the disk of the privacy ledger failed ({name}).",
        why="Nothing may be computed or sent before its cost is durable.",
        fix="Check the disk and the folder's permissions; then start again.",
    )


def poisoned() -> PrivacyError:
    """A write failed before: the page cache may differ from the disk."""
    return PrivacyError(
        "FH-LEDGER-009",
        "the privacy ledger is closed since its disk failed.",
        why="After a failed write nobody knows what is on the disk.",
        fix="Check the disk, then start again: the ledger is read anew and made durable first.",
    )


def wrong_state(what: str) -> PrivacyError:
    """Out of the order reserve, seal, commit."""
    return PrivacyError(
        "FH-LEDGER-010",
        f"{what}.",
        why="An answer is reserved, sealed and sent once, in this order.",
        fix="This is a bug: report it with the code.",
    )


def damaged_answer(what: str) -> PrivacyError:
    """A sealed answer that cannot be sent again."""
    return PrivacyError(
        "FH-LEDGER-011",
        f"a sealed answer {what}.",
        why="Only the very bytes that were sealed may be sent again; what they cost stays spent.",
        fix="The server opens a new attempt. Check the disk if this repeats.",
    )


def other_key() -> PrivacyError:
    """The file is intact, but the key does not open it."""
    return PrivacyError(
        "FH-LEDGER-012",
        "a sealed answer was encrypted with another key.",
        why="It cannot be sent again; what it cost stays spent.",
        fix="Restore the key that this site sealed with; or let the server open a new attempt.",
    )


def absent() -> PrivacyError:
    """A reader found no ledger."""
    return PrivacyError(
        "FH-LEDGER-013",
        "there is no privacy ledger here.",
        why="No ledger does not mean that nothing was spent.",
        fix="Check privacy.dataset and privacy.ledger_dir in site.yaml; it is made when a site first starts.",
    )


def unusable_here(what: str) -> PrivacyError:
    """Used where its lock does not hold."""
    return PrivacyError(
        "FH-LEDGER-014",
        f"the privacy ledger was used {what}.",
        why="Its lock would not hold.",
        fix="This is a bug: report it with the code.",
    )


def bad_request(what: str) -> PrivacyError:
    """The caller gave something that cannot be written down."""
    return PrivacyError(
        "FH-LEDGER-015",
        f"the privacy ledger cannot take this: {what}.",
        why="What it holds must be readable for ever.",
        fix="This is a bug: report it with the code.",
    )


def lost() -> PrivacyError:
    """Sealed answers without the ledger that names them."""
    return PrivacyError(
        "FH-LEDGER-016",
        "the privacy ledger is empty, but sealed answers lie beside it.",
        why="It was emptied or removed; a new one would begin again at zero.",
        fix=_RESTORE,
    )


def too_large(size_bytes: int) -> PrivacyError:
    """More than one authenticated encryption takes."""
    return PrivacyError(
        "FH-LEDGER-017",
        f"an answer of {size_bytes} bytes cannot be sealed; the most is 2 GiB.",
        why="An answer that is not sealed may not be sent.",
        fix="Share fewer tensors.",
    )
