"""The verdict: what counts as a bug, what as blindness."""

from typing import Any

from fedhealth.privacy.audit.membership import Estimate, MembershipResult
from fedhealth.privacy.audit.one_run import Guesses
from fedhealth.training.audit.findings import AuditFindings, CanaryRow, MembershipRow
from fedhealth.training.audit.step_meters import Measured


def row(**changes: Any) -> CanaryRow:
    facts: dict[str, Any] = {
        "attack": "canaries",
        "with_privacy": True,
        "noise_multiplier": 1.0,
        "num_steps": 10,
        "guesses": Guesses(num_canaries=100, num_guesses=30, num_correct=20),
        "delta": 1e-5,
        "epsilon_claimed": 2.0,
        "epsilon_shown": 0.5,
        "epsilon_ceiling": 2.5,
    }
    return CanaryRow(**(facts | changes))


def findings(**changes: Any) -> AuditFindings:
    facts: dict[str, Any] = {
        "measured": (),
        "canaries": (row(),),
        "control": row(epsilon_claimed=None, epsilon_shown=2.5, with_privacy=False),
        "membership": (),
        "rebuilt": (),
        "num_training_patients": 60,
        "num_steps_audited": 10,
        "num_steps_planned": 20,
    }
    return AuditFindings(**(facts | changes))


def test_nothing_above_its_claim_is_no_bug() -> None:
    assert findings().bugs == ()
    assert not findings().is_blind
    assert findings().notes == ()


def test_a_bound_above_the_claim_is_a_bug() -> None:
    (bug,) = findings(canaries=(row(epsilon_shown=2.1),)).bugs
    assert "2.10" in bug and "2.00" in bug  # noqa: PT018 - one sentence


def test_a_row_without_a_claim_is_never_a_bug() -> None:
    assert findings(canaries=(row(epsilon_claimed=None, epsilon_shown=9.0),)).bugs == ()


def test_a_weak_measurement_is_a_bug() -> None:
    weak = Measured(what="noise", value=0.5, promised=1.0, is_too_weak=True)
    assert findings(measured=(weak,)).bugs == ("noise: 0.5, promised 1",)


def test_a_control_that_does_not_exceed_the_claim_makes_the_audit_blind() -> None:
    assert findings(control=row(epsilon_shown=2.0)).is_blind
    assert findings(control=row(epsilon_shown=float("nan"))).is_blind
    assert not findings(control=None).is_blind  # no private step was attacked, and none is claimed


def test_a_claim_above_the_ceiling_is_noted() -> None:
    (note,) = findings(canaries=(row(epsilon_claimed=8.0),)).notes
    assert "8.00" in note
    assert "2.50" in note


def test_a_membership_control_that_guesses_is_noted() -> None:
    half = Estimate(value=0.55, low=0.45, high=0.65)
    result = MembershipResult(auc=half, true_positive_rate=half, num_models=8, num_patients=60)
    guesses = {"training": "by heart", "with_privacy": False, "result": result}
    control = MembershipRow(is_control=True, **guesses)
    assert len(findings(membership=(control,)).notes) == 1
    other = MembershipRow(is_control=False, **guesses)
    assert findings(membership=(other,)).notes == ()
