"""Levels of diagnostics. Apart from `base`, so that `fedhealth --help` need not import pydantic."""

from typing import Literal

LogLevel = Literal["debug", "info", "warning", "error"]
