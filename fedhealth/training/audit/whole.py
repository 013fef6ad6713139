"""The whole audit of one site in one study: measurements and three attacks, with and without privacy.

Called by `fedhealth.site.audit` and by the benchmark. It looks for bugs; what it does not find may still be there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import PatientMechanism, SiteContext
from fedhealth.data.split import split_patients
from fedhealth.errors import UsageError
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.calibration import least_noise
from fedhealth.privacy.accounting.events import PoissonSubsampledGaussian
from fedhealth.privacy.accounting.plan import SitePlan
from fedhealth.privacy.audit.one_run import Guesses, epsilon_ceiling, epsilon_lower_bound
from fedhealth.training.audit.bench import Bench, PrivateSteps, bench_study
from fedhealth.training.audit.findings import (
    AUDIT_DELTA,
    AUDIT_EPSILON,
    AuditFindings,
    CanaryRow,
    MembershipRow,
    RebuiltRow,
)
from fedhealth.training.audit.gradient_canaries import (
    attack_gradients,
    attack_without_noise,
    num_guesses,
)
from fedhealth.training.audit.inversion import (
    attack_dense_model,
    attack_study_model,
    inversion_study,
)
from fedhealth.training.audit.patient_canaries import attack_losses
from fedhealth.training.audit.shadow_heads import ShadowPlan, attack_members, learning_by_heart
from fedhealth.training.audit.step_meters import (
    measure_clipping,
    measure_noise,
    measure_sampling,
)
from fedhealth.training.private_steps import run_private_steps

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSize:
    """How much work the audit is.

    Attributes:
        num_canaries: of the gradient attack; a third as many made-up patients are tried from outside.
        max_steps: most training steps that are attacked, from the study's first round on.
        num_models: shadow heads.
        num_rebuilt: patients rebuilt from a gradient, for each model.
    """

    num_canaries: int = 300
    max_steps: int = 600
    num_models: int = 32
    num_rebuilt: int = 4


_LEAST_DRAWS: Final = 12
"""Expected: one canary in 160,000 is then never drawn."""
QUICK: Final = AuditSize(num_canaries=150, max_steps=60, num_models=16, num_rebuilt=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is audited. `steps` is the product's own, except in tests of the audit itself."""

    study: "Study"
    plan: SitePlan | None
    site: SiteContext
    steps: PrivateSteps = run_private_steps

    @property
    def run(self) -> "RunPlan":
        """The study's first run: weights, data and steps are the same in all."""
        return self.study.runs[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A subject with its patients, and the tools of all attacks."""

    subject: Subject
    size: AuditSize
    patients: tuple[Patient, ...] = field(repr=False)
    rng: np.random.Generator = field(repr=False)
    say: Callable[[str], None]


def audit(
    subject: Subject,
    size: AuditSize,
    *,
    rng: np.random.Generator,
    say: Callable[[str], None],
) -> AuditFindings:
    """Run everything; without privacy in the study, only the attacks' side without it.

    Args:
        subject: study, plan and site.
        size: how much work.
        rng: of coins, halves and made-up patients: nothing of the audit is released.
        say: told what is done now.

    Raises:
        UsageError: FH-AUDIT-004 too few canaries to see anything, FH-AUDIT-003 too few patients, FH-AUDIT-002 a
            training diverged.
        ConfigError, PrivacyError, SiteDataError, TrainingError: as the product's training.
    """
    work = _begin(subject, size, rng, say)
    mechanisms = _study_mechanisms(subject)
    audited = _first_steps(mechanisms, size.max_steps)
    found = _audit_steps(work, mechanisms)
    return replace(
        found,
        canaries=(*found.canaries, *_from_outside(work, audited)),
        membership=_membership(work, audited),
        rebuilt=_rebuild(work, mechanisms[0] if mechanisms else None),
    )


def audit_steps(
    subject: Subject,
    size: AuditSize,
    *,
    rng: np.random.Generator,
    say: Callable[[str], None],
) -> AuditFindings:
    """Only what looks for bugs in the private steps: measurements and gradient canaries. Raises as `audit`."""
    return _audit_steps(_begin(subject, size, rng, say), _study_mechanisms(subject))


def check_size(size: AuditSize) -> None:
    """Refuse an audit that could not see steps without any noise.

    Raises:
        UsageError: FH-AUDIT-004 its ceiling is not above what it claims.
    """
    ceiling = _ceiling(size.num_canaries, AUDIT_DELTA)
    if ceiling <= AUDIT_EPSILON:
        raise UsageError(
            "FH-AUDIT-004",
            f"{size.num_canaries} canaries can show an epsilon of {ceiling:.2f} at most.",
            why=f"The check claims {AUDIT_EPSILON:g}: steps without any noise would pass it.",
            fix="Give --canaries 100 or more.",
        )


def _begin(
    subject: Subject, size: AuditSize, rng: np.random.Generator, say: Callable[[str], None]
) -> _Work:
    check_size(size)
    torch.set_num_threads(subject.site.num_threads)
    cohort = subject.site.load_cohort()
    patients = split_patients(cohort)[SplitName.TRAIN]
    site = replace(subject.site, load_cohort=lambda: cohort)
    return _Work(
        subject=replace(subject, site=site), size=size, patients=patients, rng=rng, say=say
    )


def _audit_steps(work: _Work, mechanisms: list[PatientMechanism]) -> AuditFindings:
    """Measurements, gradient canaries at the study's noise and at the check's own, and the control."""
    audited = _first_steps(mechanisms, work.size.max_steps)
    findings = AuditFindings(
        measured=(),
        canaries=(),
        control=None,
        membership=(),
        rebuilt=(),
        num_training_patients=len({patient.patient_id for patient in work.patients}),
        num_steps_audited=sum(mechanism.num_steps for mechanism in audited),
        num_steps_planned=sum(mechanism.num_steps for mechanism in mechanisms),
    )
    plan = work.subject.plan
    if plan is None:
        return findings
    bench = Bench(
        study=bench_study(work.subject.study),
        run=work.subject.run,
        patients=work.patients,
        device=work.subject.site.device,
        rng=work.rng,
        steps=work.subject.steps,
    )
    work.say("measuring noise and clipping of a step")
    measured = (*measure_noise(bench, audited[0]), measure_clipping(bench, audited[0]))
    own = _own_setting(plan, audited)
    work.say("gradient canaries without noise (positive control)")
    control = attack_without_noise(bench, own, work.size.num_canaries)
    return replace(
        findings,
        measured=(*measured, *measure_sampling(control, own)),
        canaries=_gradient_rows(work, bench, own, audited, plan),
        control=_row("gradient canaries, no noise", own, control.guesses, AUDIT_DELTA, noise=0.0),
    )


def _gradient_rows(
    work: _Work,
    bench: Bench,
    own: list[PatientMechanism],
    audited: list[PatientMechanism],
    plan: SitePlan,
) -> tuple[CanaryRow, ...]:
    rows = []
    for title, mechanisms, delta in (
        ("gradient canaries, noise for this check", own, AUDIT_DELTA),
        ("gradient canaries, the study's noise", audited, plan.delta),
    ):
        work.say(title)
        guesses = attack_gradients(bench, mechanisms, work.size.num_canaries).guesses
        rows.append(_row(title, mechanisms, guesses, delta))
    return tuple(rows)


def _from_outside(work: _Work, audited: list[PatientMechanism]) -> list[CanaryRow]:
    rows = []
    subject, num_canaries = work.subject, max(4, work.size.num_canaries // 3)
    rounds: dict[bool, list[PatientMechanism | None]] = {False: _plain_rounds(subject)}
    if subject.plan is not None:
        rounds[True] = list(audited)
    for with_privacy, mechanisms in rounds.items():
        title = "made-up patients, from outside" + ("" if with_privacy else ", no privacy")
        work.say(title)
        guesses = attack_losses(
            subject.study,
            subject.run,
            subject.site,
            mechanisms,
            num_canaries=num_canaries,
            rng=work.rng,
        )
        delta = subject.plan.delta if subject.plan is not None else AUDIT_DELTA
        rows.append(_row(title, audited if with_privacy else [], guesses, delta))
    return rows


def _membership(work: _Work, audited: list[PatientMechanism]) -> tuple[MembershipRow, ...]:
    subject = work.subject
    plain = ShadowPlan(
        study=subject.study,
        run=subject.run,
        patients=work.patients,
        rounds=_plain_rounds(subject),
        num_models=work.size.num_models,
        device=subject.site.device,
        rng=work.rng,
    )
    by_heart = learning_by_heart(plain)
    plans = [
        ("as the study, no privacy", plain),
        ("learnt by heart, no privacy (control)", by_heart),
    ]
    if audited:
        plans += [
            ("the study's noise", replace(plain, rounds=audited)),
            ("the study's noise, the control's head", replace(by_heart, rounds=audited)),
        ]
    rows = []
    for title, shadow_plan in plans:
        work.say(f"{work.size.num_models} shadow heads: {title}")
        row = MembershipRow(
            training=title,
            with_privacy=None not in shadow_plan.rounds,
            is_control=shadow_plan is by_heart,
            result=attack_members(shadow_plan),
        )
        rows.append(row)
    return tuple(rows)


def _rebuild(work: _Work, mechanism: PatientMechanism | None) -> tuple[RebuiltRow, ...]:
    study = inversion_study(work.subject.study)
    rows = []
    for with_privacy in (False, True) if mechanism is not None else (False,):
        for attack in (attack_study_model, attack_dense_model):
            work.say("rebuilding made-up patients from a gradient")
            found = attack(
                study,
                work.subject.run,
                mechanism if with_privacy else None,
                num_patients=work.size.num_rebuilt,
                rng=work.rng,
            )
            rows += [RebuiltRow(with_privacy=with_privacy, result=result) for result in found]
    return tuple(rows)


def _study_mechanisms(subject: Subject) -> list[PatientMechanism]:
    """One for each planned round, spare rounds included; none without privacy."""
    plan = subject.plan
    if plan is None:
        return []
    rounds = [name for name, count in plan.num_rounds.items() for _ in range(count)]
    longest = max(plan.num_rounds, key=lambda name: plan.steps_per_round[name])
    return [plan.mechanism(name) for name in [*rounds, *[longest] * plan.spare_rounds]]


def _plain_rounds(subject: Subject) -> list[PatientMechanism | None]:
    return [None] * subject.run.num_rounds


def _first_steps(mechanisms: list[PatientMechanism], limit: int) -> list[PatientMechanism]:
    """The first rounds, up to `limit` steps in all; the last may be cut short."""
    kept, left = [], limit
    for mechanism in mechanisms:
        if left > 0:
            kept.append(replace(mechanism, num_steps=min(mechanism.num_steps, left)))
            left -= mechanism.num_steps
    return kept


def _own_setting(plan: SitePlan, audited: list[PatientMechanism]) -> list[PatientMechanism]:
    """The audited rounds with the noise at which they cost `AUDIT_EPSILON`.

    Where the study samples rarely, this check samples more often: a canary that is never drawn is one that nobody
    can find, with noise or without.
    """
    num_steps = sum(mechanism.num_steps for mechanism in audited)
    rate = min(1.0, max(plan.sampling_rate, _LEAST_DRAWS / num_steps))
    noise = least_noise(
        lambda noise: (_event(rate, noise, num_steps),),
        target_epsilon=AUDIT_EPSILON,
        delta=AUDIT_DELTA,
    )
    return [replace(m, noise_multiplier=noise, sampling_rate=rate) for m in audited]


def _row(
    attack: str,
    mechanisms: list[PatientMechanism],
    guesses: Guesses,
    delta: float,
    *,
    noise: float | None = None,
) -> CanaryRow:
    """With the claim that accountants make for these rounds; no claim without noise."""
    has_noise = bool(mechanisms) and noise is None
    num_steps = sum(mechanism.num_steps for mechanism in mechanisms)
    claimed = None
    if has_noise:
        first = mechanisms[0]
        event = _event(first.sampling_rate, first.noise_multiplier, num_steps)
        claimed = compose((event,), delta=delta).epsilon
    return CanaryRow(
        attack=attack,
        with_privacy=has_noise,
        noise_multiplier=mechanisms[0].noise_multiplier if has_noise else 0.0,
        num_steps=num_steps,
        guesses=guesses,
        delta=delta,
        epsilon_claimed=claimed,
        epsilon_shown=epsilon_lower_bound(guesses, delta=delta),
        epsilon_ceiling=_ceiling(guesses.num_canaries, delta),
    )


def _event(rate: float, noise: float, num_steps: int) -> PoissonSubsampledGaussian:
    return PoissonSubsampledGaussian(
        sampling_rate=rate, noise_multiplier=noise, steps=num_steps, split_id="audit"
    )


def _ceiling(num_canaries: int, delta: float) -> float:
    return epsilon_ceiling(num_guesses(num_canaries), num_canaries=num_canaries, delta=delta)
