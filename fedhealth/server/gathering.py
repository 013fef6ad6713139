"""Which sites a round asks: those that are online, without those whose patients' privacy budget is spent."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from fedhealth.config.federation import FederationConfig
from fedhealth.contracts.codes import DropCode
from fedhealth.errors import QuorumError
from fedhealth.server.roster import RosterLine

COHORT_POLL_S: Final = 0.2
FINAL_CODES: Final = frozenset({DropCode.PRIVACY_BUDGET, DropCode.PRIVACY_POLICY})
"""A site that says so will say it again in every round of the run: it is not asked to train any more."""


class Presence(Protocol):
    """Who could take part."""

    def connected(self) -> set[str]:
        """Admitted sites that are online now."""
        ...

    def roster(self) -> Sequence[RosterLine]:
        """Admitted sites, in roster order."""
        ...


@dataclass(slots=True, kw_only=True)
class Gathering:
    """The cohort of each round of one run. `waiting` is told how many of how many are there."""

    rules: FederationConfig
    presence: Presence
    waiting: Callable[[int, int], None]
    _has_gathered: bool = field(init=False, default=False)
    _left: set[str] = field(init=False, default_factory=set)

    def leave(self, site_id: str, code: DropCode | None) -> None:
        """Take note of a site's answer: one whose budget is spent is not asked to train again."""
        if code in FINAL_CODES:
            self._left.add(site_id)

    def gather(self, kind: Literal["train", "evaluate"]) -> list[RosterLine]:
        """The cohort: all that are online, at least the minimum, in roster order.

        A site that left still gets the final model (`kind` evaluate).

        Raises:
            QuorumError: FH-QUORUM-001 the minimum cohort did not come in time, FH-QUORUM-003 too many sites
                have spent their patients' budget, so that it cannot come.
        """
        begin = time.monotonic()
        while True:
            online, roster = self.presence.connected(), self.presence.roster()
            wanted = [
                line
                for line in roster
                if kind == "evaluate" or line.entry.site_id not in self._left
            ]
            if len(wanted) < self.rules.min_cohort <= len(roster):
                raise _budgets_spent(len(wanted), self.rules.min_cohort)
            cohort = [line for line in wanted if line.entry.site_id in online]
            waited = time.monotonic() - begin
            is_late = self._has_gathered or waited >= self.rules.gather_s
            if len(cohort) >= self.rules.min_cohort and (len(cohort) == len(wanted) or is_late):
                self._has_gathered = True
                return cohort
            if waited >= self.rules.cohort_wait_s:
                raise _no_quorum(len(cohort), self.rules.min_cohort, self.rules.cohort_wait_s)
            self.waiting(len(cohort), len(wanted))
            time.sleep(COHORT_POLL_S)


def _no_quorum(present: int, wanted: int, waited_s: float) -> QuorumError:
    return QuorumError(
        "FH-QUORUM-001",
        f"{present} of at least {wanted} sites were there after {waited_s:.0f} s.",
        why="A round with fewer sites would not be a federation; nothing was trained.",
        fix="Check `fedhealth server status` for missing sites, then run `fedhealth server run` again: it "
        "goes on from the last checkpoint.",
    )


def _budgets_spent(present: int, wanted: int) -> QuorumError:
    return QuorumError(
        "FH-QUORUM-003",
        f"{present} sites can still train, the study needs {wanted}: the others' privacy budget or policy "
        "does not allow another round.",
        why="A spent budget does not come back; the model is the one of the last complete round.",
        fix="Stop here, or agree on a study with more noise, fewer rounds or more sites.",
    )


def no_mask_keys(present: int, wanted: int) -> QuorumError:
    """Sites are there, and too few gave a key for their masks."""
    return QuorumError(
        "FH-QUORUM-004",
        f"{present} of at least {wanted} sites gave a key for secure aggregation.",
        why="Without a key a site cannot mask its update; nothing was trained.",
        fix="Run `fedhealth server roster` and let every site pin it (`fedhealth site pin`): a site that is not on it "
        "is not asked. logs/serverapp.log has the codes of the others.",
    )


def too_few_owners(
    present: Sequence[RosterLine], modalities: Sequence[str], floor: int
) -> tuple[str, int] | None:
    """A modality that some of these sites declared, but fewer than the floor, with how many; None if there is none."""
    for modality in modalities:
        num = sum(modality in line.entry.modalities for line in present)
        if 0 < num < floor:
            return modality, num
    return None


def few_have_it(modality: str, num: int, floor: int) -> QuorumError:
    """A masked sum over all sites would show an encoder of too few."""
    return QuorumError(
        "FH-QUORUM-007",
        f"{num} of the sites declared modality {modality}, a sum has to be about {floor}.",
        why="Sites without it add nothing to its encoder, so the sum would show the encoder of those few.",
        fix="Wait until more of them are there, or publish a study with `federation.average_encoders_over: "
        "sites_with_modality`, which leaves such an encoder as it is.",
    )


def opened_before() -> QuorumError:
    """A round's sum was to be opened for some sites, and one of them is gone."""
    return QuorumError(
        "FH-QUORUM-005",
        "a sum of this round, or of its model, was to be opened for a list of sites, and one of them is not there.",
        why="Some sites have given shares for that list, and give none for another: two sums of one model would show "
        "the site in between.",
        fix="Bring that site back (`fedhealth server status`), then run `fedhealth server run` again. If it is gone "
        "for good, publish the study under a new id and with another seed: its runs begin with another model.",
    )
