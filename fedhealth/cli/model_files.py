"""What a person says of a model as a card's words, and kept models as rows of text. Called by `fedhealth model`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fedhealth.errors import UsageError
from fedhealth.report.model_card import LIMITS, WordsOfCard

if TYPE_CHECKING:
    from fedhealth.site.kept_models import KeptModel

MAX_LICENSE_BYTES = 1 << 20


def words_of(intended_use: str | None, limits: list[str], authors: str | None) -> WordsOfCard:
    """The words of the card; what is left out stays as it is.

    Raises:
        UsageError: FH-USAGE-085 a text is empty, longer than 2000 characters, or holds markup.
    """
    said: dict[str, Any] = {"limits": (*LIMITS, *limits)}
    if intended_use is not None:
        said["intended_use"] = intended_use
    if authors is not None:
        said["authors"] = authors
    try:
        return WordsOfCard.model_validate(said)
    except ValidationError:
        raise UsageError(
            "FH-USAGE-085",
            "--intended-use, --limit and --authors take text of 1 to 2000 characters without < and >.",
            why="It goes into a page and into JSON as it is.",
            fix="Write plain sentences.",
        ) from None


def read_license(path: Path | None) -> str | None:
    """The text of the license file.

    Raises:
        UsageError: FH-USAGE-086 it cannot be read as text of at most 1 MiB.
    """
    if path is None:
        return None
    try:
        payload = path.read_bytes()
        if len(payload) <= MAX_LICENSE_BYTES:
            return payload.decode()
    except (OSError, UnicodeDecodeError):
        pass
    raise UsageError(
        "FH-USAGE-086",
        "the file of --license cannot be read as UTF-8 text of at most 1 MiB.",
        fix="Give a text file.",
    )


def kept_columns() -> list[str]:
    """Headings of `kept_row`."""
    return ["study", "run", "round", "what", "method", "global model", "written", "bytes", "state"]


def kept_row(kept: "KeptModel") -> list[str | int]:
    """One kept model for people: digests short, a missing one as a dash."""
    return [
        kept.study_id,
        kept.run_name,
        "last" if kept.round_number is None else kept.round_number,
        kept.holds,
        kept.method,
        (kept.model_sha256 or "-")[:16],
        kept.written_at,
        kept.size_bytes,
        "readable" if kept.is_readable else "DAMAGED",
    ]
