"""The worker's log: events, codes and source lines; never an exception's text, which may hold a patient."""

import logging
import sys
import traceback


def configure_worker_log(level: str) -> None:
    """One line an event on stderr, which the supervisor keeps in a rotating file at the site."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger("fedhealth")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False


def log_frames(log: logging.Logger, error: BaseException) -> None:
    """Where an unexpected error came from: its type, and file, line and function of each frame."""
    frames = " < ".join(
        f"{frame.filename}:{frame.lineno}:{frame.name}"
        for frame in reversed(traceback.extract_tb(error.__traceback__))
    )
    log.error("unexpected %s at %s", type(error).__name__, frames)
