"""`fedhealth study privacy`: what a study costs a patient at sites of given sizes, and what its noise does.

Imports torch with `build`, and where the study's training method does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Final

from fedhealth.cli.noise_hints import Alternative, ModelSize, alternatives, model_sizes
from fedhealth.cli.output import table
from fedhealth.cli.site_level_plan import (
    SiteLevelRun,
    SiteLevelStudy,
    site_level_runs,
    site_level_study,
)
from fedhealth.cli.sums_plan import SumsForecast, sums_forecast
from fedhealth.config.privacy import PatientPrivacy
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.errors import PrivacyError, UsageError
from fedhealth.privacy.accounting.accountants import Spend, compose
from fedhealth.privacy.accounting.calibration import check_target
from fedhealth.privacy.accounting.events import Event
from fedhealth.privacy.accounting.metrics import METRIC_BOUNDS
from fedhealth.privacy.accounting.plan import SitePlan, plan_site
from fedhealth.privacy.policy import check_plan

EXAMPLE_SIZES: Final = (50, 100, 200, 400, 1000)
CURVE_POINTS: Final = 20
"""A composition takes about 0.1 s: the spend over rounds is worked out at so many of them, first and last included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSpend:
    """What is spent once a round is done; the closing evaluation counts with the run's last round."""

    run: str
    round: int
    epsilon: float
    epsilon_rdp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteForecast:
    """One site's share of the study. `refusal` is what its policy says; None: accepted, or no policy given."""

    site_id: str | None
    declared_train_size: int
    plan: SitePlan
    spend: Spend
    after_rounds: tuple[RoundSpend, ...]
    refusal: PrivacyError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The whole answer; `sites` is empty for a study without patient-level privacy."""

    study: Study
    are_examples: bool
    sites: tuple[SiteForecast, ...]
    unprotected_refusals: tuple[tuple[str, PrivacyError | None], ...]
    alternatives: tuple[Alternative, ...]
    models: tuple[ModelSize, ...]
    site_level: tuple[SiteLevelRun, ...]
    site_level_study: SiteLevelStudy | None
    sums: SumsForecast | None


def with_target(study: Study, target_epsilon: float | None) -> Study:
    """The study, planned for another epsilon.

    Raises:
        PrivacyError: FH-PRIVACY-015 to 018 that epsilon is none.
    """
    if target_epsilon is None:
        return study
    check_target(target_epsilon)
    base = study.privacy or PatientPrivacy(target_epsilon=1.0)
    noises = {"noise_multiplier": None, "metrics_noise_multiplier": None}
    changed = base.model_copy(update={"target_epsilon": target_epsilon, **noises})
    return study.model_copy(update={"privacy": changed})


def forecast(
    study: Study, *, sizes: Sequence[int], configs: Sequence[SiteConfig], build: bool
) -> Forecast:
    """Plan every site; without sizes and configurations, sites of example sizes.

    Raises:
        UsageError: FH-PRIVACY-042 a size below 1.
        PrivacyError: the target cannot be met, or delta does not fit a size.
        ConfigError: with `build`, a model cannot be made.
    """
    if any(size < 1 for size in sizes):
        raise UsageError(
            "FH-PRIVACY-042", "--sites wants sizes of at least 1.", fix="Give patients per site."
        )
    are_examples = not sizes and not configs
    asked: list[tuple[int, SiteConfig | None]] = [(c.declared_train_size, c) for c in configs]
    asked += [(size, None) for size in (EXAMPLE_SIZES if are_examples else sizes)]
    sites = tuple(site for size, config in asked if (site := _site(study, size, config)))
    smallest = min((site.declared_train_size for site in sites), default=None)
    site_level = site_level_runs(study)
    return Forecast(
        study=study,
        are_examples=are_examples,
        sites=sites,
        unprotected_refusals=() if study.privacy else tuple(map(_unprotected, configs)),
        alternatives=alternatives(study, smallest) if smallest else (),
        models=model_sizes(study) if build and study.privacy else (),
        site_level=site_level,
        site_level_study=site_level_study(study, site_level),
        sums=sums_forecast(study),
    )


def _site(study: Study, size: int, config: SiteConfig | None) -> SiteForecast | None:
    plan = plan_site(study, size)
    if plan is None:
        return None
    return SiteForecast(
        site_id=config.site_id if config else None,
        declared_train_size=size,
        plan=plan,
        spend=compose(plan.planned_events(), delta=plan.delta),
        after_rounds=tuple(_curve(study, plan)),
        refusal=_refusal(config, plan) if config else None,
    )


def _refusal(config: SiteConfig, plan: SitePlan | None) -> PrivacyError | None:
    try:
        check_plan(config.privacy, plan, declared_train_size=config.declared_train_size)
    except PrivacyError as error:
        return error
    return None


def _unprotected(config: SiteConfig) -> tuple[str, PrivacyError | None]:
    return config.site_id, _refusal(config, None)


def _curve(study: Study, plan: SitePlan) -> Iterator[RoundSpend]:
    """Spend after rounds, in the order of the runs; spare rounds are not in it."""
    rounds = [(run, number) for run in study.runs for number in range(1, run.num_rounds + 1)]
    last = len(rounds) - 1
    chosen = {round(i * last / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)}
    says = study.privacy.release_metrics if study.privacy else "never"
    events: list[Event] = []
    for index, (run, number) in enumerate(rounds):
        events.append(plan.train_event(run.name))
        if says == "every_round":
            events.append(plan.metrics_event())
        if says != "never" and number == run.num_rounds:
            events.append(plan.metrics_event())
        if index in chosen:
            spend = compose(events, delta=plan.delta)
            yield RoundSpend(
                run=run.name,
                round=number,
                epsilon=spend.epsilon,
                epsilon_rdp=spend.epsilon_rdp,
            )


def payload(result: Forecast) -> dict[str, object]:
    """The command's JSON object. All numbers are finite."""
    study = result.study
    return {
        "study": study.id,
        "privacy": study.privacy.model_dump(mode="json") if study.privacy else None,
        "sums": None if result.sums is None else result.sums.payload(),
        "are_examples": result.are_examples and bool(result.sites),
        "sites": [_site_payload(site, study) for site in result.sites],
        "unprotected": [
            {"site_id": name, **_verdict(refusal)} for name, refusal in result.unprotected_refusals
        ],
        "alternatives": [asdict(item) for item in result.alternatives],
        "models": [asdict(item) for item in result.models],
        "site_level_runs": [run.payload() for run in result.site_level],
        "site_level_study": result.site_level_study and result.site_level_study.payload(),
    }


def _site_payload(site: SiteForecast, study: Study) -> dict[str, object]:
    plan = site.plan
    values: dict[str, object] = {
        "site_id": site.site_id,
        "declared_train_size": site.declared_train_size,
        "sampling_rate": plan.sampling_rate,
        "expected_batch_size": plan.expected_batch_size,
        "noise_multiplier": plan.noise_multiplier,
        "clipping_norm": plan.clipping_norm,
        "steps_per_round": dict(plan.steps_per_round),
        "planned_steps": plan.planned_steps,
        "spare_rounds": plan.spare_rounds,
        "split_id": plan.split_id,
        "noise_per_coordinate": noise_per_coordinate(plan),
        "metrics": _metrics_payload(plan, study),
        "spend": asdict(site.spend),
        "sampler": "poisson",
        "after_rounds": [asdict(spend) for spend in site.after_rounds],
    }
    return values | (_verdict(site.refusal) if site.site_id else {"accepted": None})


def _verdict(refusal: PrivacyError | None) -> dict[str, object]:
    if refusal is None:
        return {"accepted": True}
    return {"accepted": False, "refusal": {"code": refusal.code, "what": refusal.what}}


def _metrics_payload(plan: SitePlan, study: Study) -> dict[str, object] | None:
    if plan.metrics_noise_multiplier is None:
        return None
    return {
        "noise_multiplier": plan.metrics_noise_multiplier,
        "releases": plan.metrics_releases,
        "declared_validation_size": plan.declared_validation_size,
        "noise_std": _metric_stds(plan, study),
    }


def _metric_stds(plan: SitePlan, study: Study) -> dict[str, float]:
    """Standard deviation of the noise on every released mean, before it is brought back into its range."""
    names = [name for name in study.release.metrics if name in METRIC_BOUNDS]
    share = (plan.metrics_noise_multiplier or 0.0) * math.sqrt(len(names))
    return {name: METRIC_BOUNDS[name] * share / plan.declared_validation_size for name in names}


def noise_per_coordinate(plan: SitePlan) -> float:
    """Standard deviation of a step's noise on every coordinate of the mean gradient."""
    return plan.noise_multiplier * plan.clipping_norm / plan.expected_batch_size


def text(result: Forecast) -> Iterator[str]:
    """Lines for people."""
    if result.sums is not None:
        yield result.sums.line()
    elif result.study.privacy is None:
        yield (
            f"{result.study.id} has no patient-level privacy: nothing bounds what its models and metrics "
            "tell about a patient. Write `privacy: {target_epsilon: 8}` into the study to bound it."
        )
        for name, refusal in result.unprotected_refusals:
            yield f"{name}: {_says(refusal)}"
    else:
        yield from _protected(result)
    for run in result.site_level:
        yield (
            f"Run {run.name} ({run.strategy}) protects whole sites, which is another unit and is kept apart. "
            f"{run.statement.sentence}"
        )
    if result.site_level_study is not None:
        yield result.site_level_study.line()


def _protected(result: Forecast) -> Iterator[str]:
    if result.are_examples:
        yield "No site was named: these sizes are examples (--sites SIZE, or --site-config site.yaml)."
    yield table(_HEADERS, [_row(site) for site in result.sites])
    spend = result.sites[0].spend
    yield (
        "Epsilon is for one patient over the whole study, all runs and spare rounds, with its delta. Unit: patient. "
        f"Adjacency: add or remove one. Sampler: Poisson. Accountant: {spend.accountant} "
        f"{spend.accountant_version}; RDP is the looser bound on the same."
    )
    for site in result.sites:
        if site.site_id:
            yield f"{site.site_id}: {_says(site.refusal)}"
        yield from _site_hints(site, result.study)
    yield from _model_hints(result)
    yield from _alternative_hints(result)


_HEADERS: Final = (
    "declared size",
    "rate",
    "steps a round",
    "steps in all",
    "noise multiplier",
    "epsilon",
    "epsilon RDP",
    "delta",
)


def _row(site: SiteForecast) -> tuple[object, ...]:
    plan = site.plan
    return (
        site.declared_train_size,
        f"{plan.sampling_rate:.4f}",
        max(plan.steps_per_round.values()),
        plan.planned_steps,
        f"{plan.noise_multiplier:.4g}",
        _decimals_up(site.spend.epsilon),
        _decimals_up(site.spend.epsilon_rdp),
        _delta(plan.delta),
    )


def _says(refusal: PrivacyError | None) -> str:
    if refusal is None:
        return "its policy accepts the study."
    return f"its policy refuses the study. {refusal}"


def _site_hints(site: SiteForecast, study: Study) -> Iterator[str]:
    plan = site.plan
    yield (
        f"{site.declared_train_size} patients: a step adds noise of {noise_per_coordinate(plan):.3g} to every "
        f"coordinate of a mean gradient whose length is at most about {plan.clipping_norm:g}."
    )
    if plan.sampling_rate == 1:
        yield (
            f"{site.declared_train_size} patients: batch_size is no smaller than the site, so all patients are in "
            "every step, and chance hides nobody."
        )
    for name, std in _metric_stds(plan, study).items() if plan.metrics_noise_multiplier else ():
        yield (
            f"{site.declared_train_size} patients: {name} (0 to {METRIC_BOUNDS[name]:g}) leaves with noise of "
            f"standard deviation {std:.3g}."
        )


def _model_hints(result: Forecast) -> Iterator[str]:
    for model in result.models:
        for site in result.sites:
            ratio = math.sqrt(model.num_parameters) * noise_per_coordinate(site.plan)
            yield (
                f"{model.name}, {site.declared_train_size} patients: {model.num_parameters} trained numbers, so a "
                f"step's noise has length {ratio:.3g}, against a mean gradient of at most about "
                f"{site.plan.clipping_norm:g}."
            )


def _alternative_hints(result: Forecast) -> Iterator[str]:
    smallest = min(site.declared_train_size for site in result.sites)
    for item in result.alternatives:
        yield (
            f"{smallest} patients, {item.what}: noise multiplier {item.noise_multiplier:.4g}, noise per coordinate "
            f"{item.noise_per_coordinate:.3g}, {item.planned_steps} steps, epsilon {_up(item.epsilon, 4):.4g} at "
            f"delta {_delta(item.delta)}."
        )


def _delta(value: float) -> str:
    return f"{_up(value, 3):.2e}"


def _up(value: float, digits: int) -> float:
    """So many significant digits, never rounded down: a bound that is shown lower than it is would be none."""
    context = Context(prec=digits, rounding=ROUND_CEILING)
    return float(context.create_decimal(Decimal(repr(value))))


def _decimals_up(epsilon: float) -> float:
    """The three decimals of a table, never rounded down."""
    return float(Decimal(repr(epsilon)).quantize(Decimal("0.001"), rounding=ROUND_CEILING))
