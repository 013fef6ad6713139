"""What an audit found, as records: nothing in them is about one patient. Made by `whole`, written by `site audit`."""

from dataclasses import dataclass
from typing import Final

from fedhealth.privacy.audit.membership import MembershipResult
from fedhealth.privacy.audit.one_run import Guesses
from fedhealth.training.audit.inversion import Recovered
from fedhealth.training.audit.step_meters import Measured

AUDIT_EPSILON: Final = 2.0
"""Claimed in the check's own setting: inside what a few hundred canaries can show."""
AUDIT_DELTA: Final = 1e-5
"""Of the same: the bound loses 2 m delta, which at a study's delta of 0.001 takes a third of what it can show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRow:
    """One one-run audit: what was claimed for it, what was shown, and what could be shown at most."""

    attack: str
    with_privacy: bool
    noise_multiplier: float
    num_steps: int
    guesses: Guesses
    delta: float
    epsilon_claimed: float | None
    epsilon_shown: float
    epsilon_ceiling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipRow:
    """One membership attack; a control must tell members apart, or the attack is too weak to mean anything."""

    training: str
    with_privacy: bool
    is_control: bool
    result: MembershipResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuiltRow:
    """One attack on a step's gradient."""

    with_privacy: bool
    result: Recovered


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFindings:
    """Everything that was found. `canaries` and `control` are empty where there was nothing to attack.

    `num_steps_planned` are the study's private steps, `num_steps_audited` the first of them, that were attacked.
    """

    measured: tuple[Measured, ...]
    canaries: tuple[CanaryRow, ...]
    control: CanaryRow | None
    membership: tuple[MembershipRow, ...]
    rebuilt: tuple[RebuiltRow, ...]
    num_training_patients: int
    num_steps_audited: int
    num_steps_planned: int

    @property
    def bugs(self) -> tuple[str, ...]:
        """In words: what was measured weaker than promised, and bounds above what was claimed."""
        weak = [
            f"{m.what}: {m.value:.4g}, promised {m.promised:.4g}"
            for m in self.measured
            if m.is_too_weak
        ]
        shown = [
            f"{row.attack}: epsilon is at least {row.epsilon_shown:.2f}, claimed {row.epsilon_claimed:.2f}"
            for row in self.canaries
            if row.epsilon_claimed is not None and row.epsilon_shown > row.epsilon_claimed
        ]
        return (*weak, *shown)

    @property
    def is_blind(self) -> bool:
        """Whether steps without any noise would have passed too. False where no private step was audited."""
        return self.control is not None and not self.control.epsilon_shown > AUDIT_EPSILON

    @property
    def notes(self) -> tuple[str, ...]:
        """What this audit cannot tell, at its size and on this model."""
        too_small = [
            f"{row.attack}: the claim of {row.epsilon_claimed:.2f} is above the ceiling of {row.epsilon_ceiling:.2f}, "
            "so no number of right guesses would show a bug."
            for row in self.canaries
            if row.epsilon_claimed is not None and row.epsilon_claimed >= row.epsilon_ceiling
        ]
        weak = [
            f"{row.training}: does not tell members apart (AUC {row.result.auc.value:.2f}), so the other rows of "
            "membership inference say little."
            for row in self.membership
            if row.is_control and row.result.auc.low <= 0.5  # noqa: PLR2004 - guessing
        ]
        return (*too_small, *weak)
