"""Where a site keeps what is its own, and what that is called. No torch: `fedhealth model list` reads it too."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedhealth.config.personalisation import KEEPS_MODEL, KEEPS_TENSORS

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan


def state_folder(state_dir: Path, run: "RunPlan") -> Path:
    """Folder of a run's personal state. Private heads and blocks have a folder of their own name, as ever."""
    is_older = run.personalisation in {"private_head", "private_blocks"}
    return state_dir / ("private_heads" if is_older else "personal") / run.name


def control_folder(state_dir: Path, run: "RunPlan") -> Path:
    """Folder of a run's own control variates (SCAFFOLD)."""
    return state_dir / "control_variates" / run.name


def held_by(run: "RunPlan") -> str:
    """What the run's method keeps at a site, in two words; empty for none of its own."""
    if run.personalisation in KEEPS_MODEL:
        return "own model"
    if run.personalisation not in KEEPS_TENSORS:
        return ""
    named = {"private_head": "private head", "private_blocks": "private blocks"}
    return named.get(run.personalisation, "own tensors")
