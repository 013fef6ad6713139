"""The hospital's own limits on privacy loss. Called before any training, and at every reservation.

A study proposes; a site accepts or refuses. It never adjusts: other noise or other steps than the study planned would
make its contribution something else than the others expect.
"""

from collections.abc import Iterable

from fedhealth.config.privacy import SitePrivacy
from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.accountants import compose, rdp_bound
from fedhealth.privacy.accounting.events import Event, merge_events
from fedhealth.privacy.accounting.plan import SitePlan, check_delta, default_delta

ROUNDING = 1e-9
"""Relative slack of a comparison with a limit: floats, not privacy."""


def check_plan(policy: SitePrivacy, plan: SitePlan | None, *, declared_train_size: int) -> None:
    """Is what the study plans inside this hospital's limits?

    What all studies may cost is worked out at the delta of the site's size, or at the study's where that is
    smaller: a study that chose a large delta would show a small epsilon.

    Raises:
        PrivacyError: FH-PRIVACY-020 the study has no patient-level privacy and the hospital has limits, 021 the
            whole study costs more than a study may, 022 more than all studies may, 023 too little noise, 024
            too large a clipping norm, 025 and 026 delta.
    """
    if plan is None:
        _check_unprotected(policy)
        return
    check_delta(plan.delta, declared_train_size)
    _check_noise(policy, plan.noise_multiplier, plan.clipping_norm)
    data_delta = min(plan.delta, default_delta(declared_train_size))
    limits = (
        ("021", policy.max_epsilon_per_study, "max_epsilon_per_study", plan.delta),
        ("022", policy.max_epsilon_per_dataset, "max_epsilon_per_dataset", data_delta),
    )
    events = plan.planned_events()
    for number, limit, key, delta in limits:
        if limit is not None and not _is_inside(events, limit, delta):
            raise _too_expensive(number, key, events, limit, delta)


def check_sums(
    policy: SitePrivacy,
    planned: tuple[Event, ...],
    *,
    delta: float,
    noise_multiplier: float,
    clipping_norm: float,
) -> None:
    """Are sums with distributed noise, over the whole study, inside this hospital's limits?

    Args:
        policy: the hospital's limits.
        planned: all sums of the study, as they cost one patient.
        delta: of the account.
        noise_multiplier: of the honest sites' noise together.
        clipping_norm: of a site's update or of a patient's gradient.

    Raises:
        PrivacyError: FH-PRIVACY-021 to 024 as `check_plan`.
    """
    _check_noise(policy, noise_multiplier, clipping_norm)
    for number, limit, key in (
        ("021", policy.max_epsilon_per_study, "max_epsilon_per_study"),
        ("022", policy.max_epsilon_per_dataset, "max_epsilon_per_dataset"),
    ):
        if limit is not None and not _is_inside(planned, limit, delta):
            raise _too_expensive(number, key, planned, limit, delta)


def check_patients(policy: SitePrivacy, num_training_patients: int) -> None:
    """Has this site enough training patients to take part?

    Raises:
        PrivacyError: FH-PRIVACY-027 it has not.
    """
    if num_training_patients < policy.min_patients:
        raise PrivacyError(
            "FH-PRIVACY-027",
            f"this site has fewer than {policy.min_patients} training patients (privacy.min_patients).",
            why="The fewer patients, the more of a model is about each of them.",
            fix="Take part when there are more, or lower the limit in site.yaml.",
        )


def check_budget(
    policy: SitePrivacy,
    *,
    study_events: Iterable[Event],
    dataset_events: Iterable[Event],
    new_events: Iterable[Event],
    delta: float,
    dataset_delta: float | None = None,
    target_epsilon: float | None = None,
) -> None:
    """Is there budget for `new_events` after what was reserved before? Without new events: yes, nothing is spent.

    Args:
        policy: the hospital's limits.
        study_events: reserved for this study so far.
        dataset_events: reserved on this data by all studies so far, this one included.
        new_events: what is asked for now.
        delta: of the study's plan at this site.
        dataset_delta: at which all studies together are held to their limit; one that no study chooses, so that
            none can make the others' spending look small. Left out: `delta`.
        target_epsilon: what the study promises its patients over all its runs, if it promises an epsilon.

    Raises:
        PrivacyError: FH-PRIVACY-030 more than a study may cost, 031 more than all studies may, 032 more than the
            study promised.
    """
    new = tuple(new_events)
    if not new:
        return
    data_delta = delta if dataset_delta is None else dataset_delta
    in_study = merge_events((*study_events, *new))
    on_data = merge_events((*dataset_events, *new))
    of_study, of_data = (
        ("this study", in_study, delta),
        ("all studies on this data", on_data, data_delta),
    )
    limits = (
        ("030", of_study, policy.max_epsilon_per_study, "privacy.max_epsilon_per_study"),
        ("031", of_data, policy.max_epsilon_per_dataset, "privacy.max_epsilon_per_dataset"),
        ("032", of_study, target_epsilon, "target_epsilon in study.yaml"),
    )
    for number, (whose, events, at), limit, key in limits:
        if limit is not None and not _is_inside(events, limit, at):
            raise PrivacyError(
                f"FH-PRIVACY-{number}",
                f"with this round, {whose} would cost a patient more than epsilon {limit:g} at delta {at:.3g} "
                f"({key}).",
                why="What was spent cannot be taken back, and repeated rounds cost again.",
                fix="This site is done with it: `fedhealth site budget` shows what was spent on what.",
            )


def _check_unprotected(policy: SitePrivacy) -> None:
    limits = (
        "max_epsilon_per_study",
        "max_epsilon_per_dataset",
        "min_noise_multiplier",
        "max_clipping_norm",
    )
    broken = [name for name in limits if getattr(policy, name) is not None]
    if broken:
        raise PrivacyError(
            "FH-PRIVACY-020",
            f"the study has no patient-level privacy; this site asks for it (privacy.{broken[0]}).",
            why="Without noise no epsilon bounds what a model tells about a patient.",
            fix="Ask the coordinator for a study with `privacy`, or take the limit out of site.yaml.",
        )


def _too_expensive(
    number: str, key: str, events: tuple[Event, ...], limit: float, delta: float
) -> PrivacyError:
    epsilon = compose(events, delta=delta).epsilon
    return PrivacyError(
        f"FH-PRIVACY-{number}",
        f"the study would cost a patient epsilon {epsilon:.4g} (delta {delta:.3g}); this site "
        f"allows {limit:g} (privacy.{key}).",
        why="The whole study is planned, spare rounds included: it would have to stop on the way.",
        fix="Ask the coordinator for a lower target_epsilon, or raise the limit in site.yaml.",
    )


def _check_noise(policy: SitePrivacy, noise_multiplier: float, clipping_norm: float) -> None:
    least, largest = policy.min_noise_multiplier, policy.max_clipping_norm
    if least is not None and noise_multiplier < least:
        raise PrivacyError(
            "FH-PRIVACY-023",
            f"the study's noise multiplier here is {noise_multiplier:g}; this site asks for {least:g} "
            "(privacy.min_noise_multiplier).",
            why="Less noise tells more about single patients in every step.",
            fix="Ask the coordinator for a lower target_epsilon, or lower the limit in site.yaml.",
        )
    if largest is not None and clipping_norm > largest:
        raise PrivacyError(
            "FH-PRIVACY-024",
            f"the study's clipping norm is {clipping_norm:g}; this site allows {largest:g} "
            "(privacy.max_clipping_norm).",
            why="It is the most that one patient's gradient counts in a step.",
            fix="Ask the coordinator for a lower clipping_norm, or raise the limit in site.yaml.",
        )


def _is_inside(events: tuple[Event, ...], limit: float, delta: float) -> bool:
    """PLD decides; RDP is never lower, and quicker when it is inside already."""
    allowed = limit * (1 + ROUNDING)
    return rdp_bound(events, delta=delta) <= allowed or (
        compose(events, delta=delta).epsilon <= allowed
    )
