"""Make a strategy from its name and options in the study; refuse unknown, wrong and missing ones."""

import inspect
import typing
from collections.abc import Mapping
from typing import Any, Final

from flwr.serverapp.strategy import Strategy
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from fedhealth import plugins
from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.aggregation import SiteLevelRelease
from fedhealth.errors import ConfigError
from fedhealth.flower.strategy_state import StrategyState

WRAPPER: Final = "secure-aggregation"
"""Entry point of what gives a strategy sums; it is no strategy that a study can name."""


def make_strategy(run: RunPlan, *, min_cohort: int) -> Strategy:
    """The run's strategy.

    Stock strategies sample nodes and wait for them: unless the study says otherwise, they are told to take
    the whole cohort and to be content with the minimum.

    Raises:
        ConfigError: FH-CONFIG-010 to 012 not installed, FH-STRATEGY-012 not a Flower strategy,
            FH-STRATEGY-013 unknown option, FH-STRATEGY-014 wrong value, FH-STRATEGY-015 the run's
            personalisation is not the strategy's, FH-STRATEGY-019 its control variates are not,
            FH-STRATEGY-018 a required option is missing; whatever the
            strategy's own `check_run` raises; FH-STRATEGY-062 the wrapper of secure aggregation.
    """
    name = run.strategy.name
    if name == WRAPPER:
        raise ConfigError(
            "FH-STRATEGY-062",
            f"{name!r} is no strategy by itself.",
            why="It wraps the strategy of every run of a study with masks.",
            fix="Write a section `secure_aggregation` into the study, and the strategy's own name here.",
        )
    kind = plugins.load("fedhealth.strategies", name)
    if not (inspect.isclass(kind) and issubclass(kind, Strategy)):
        raise ConfigError(
            "FH-STRATEGY-012",
            f"{name!r} is not a subclass of flwr.serverapp.strategy.Strategy.",
            fix="Point its entry point at the strategy class (strategies/README.md).",
        )
    parameters = _parameters(kind)
    options = dict(run.strategy.options)
    _check_options(name, options, parameters)
    defaults = {key: value for key, value in _takes_all(min_cohort).items() if key in parameters}
    _check_complete(kind, name, defaults | options)
    strategy = _construct(kind, name, defaults | options)
    _check_personalisation(strategy, run)
    _check_control_variates(strategy, run)
    check_run = getattr(strategy, "check_run", None)
    if check_run is not None:
        check_run(num_rounds=run.num_rounds, min_cohort=min_cohort)
    return strategy


def make_run_strategy(
    study: Study, run: RunPlan, *, noise: SiteLevelRelease | None = None
) -> Strategy:
    """The run's strategy, behind the wrapper that gives it sums where the study masks updates.

    Args:
        study: the study.
        run: one of its runs.
        noise: what one sum tells about a site, with distributed privacy of unit site.

    Raises:
        ConfigError: as `make_strategy`; FH-STRATEGY-061 it needs each site's own update; FH-STRATEGY-063 it is no
            mean, and the study averages encoders over the sites that have their modality; whatever the strategy's own
            `check_study` raises.
    """
    inner = make_strategy(run, min_cohort=study.federation.min_cohort)
    check_study = getattr(inner, "check_study", None)
    if check_study is not None:
        check_study(study, run)
    if study.secure_aggregation is None:
        if study.averages_by_modality:
            _check_takes_the_mean(inner)
        return inner
    wrapper = plugins.load("fedhealth.strategies", WRAPPER)
    made: Strategy = wrapper(inner, StrategyState(inner), noise)
    return made


def _check_takes_the_mean(strategy: Strategy) -> None:
    """Updates are rescaled so that their weighted mean is each block's own: only a mean may look at them."""
    reason = plugins.load("fedhealth.strategies", WRAPPER).why_more_than_the_mean(strategy)
    if reason is not None:
        raise ConfigError(
            "FH-STRATEGY-063",
            f"{type(strategy).__name__} does not go with federation.average_encoders_over: sites_with_modality.",
            why="Updates are rescaled before the strategy sees them, so that their weighted mean is the owners' mean "
            "of every encoder; a strategy that does more than average would see other updates than were sent. "
            f"{reason}",
            fix="Choose a strategy that averages, such as fedavg, or average encoders over all_sites.",
        )


def _takes_all(min_cohort: int) -> dict[str, float]:
    counts = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
    return {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        **dict.fromkeys(counts, min_cohort),
    }


def _named_parameters(kind: type[Strategy]) -> list[inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in inspect.signature(kind).parameters.values() if p.kind in named]


def _parameters(kind: type[Strategy]) -> dict[str, Any]:
    """Constructor parameters by name, with their annotation."""
    try:
        hints = typing.get_type_hints(kind.__init__)
    except (
        NameError
    ):  # an annotation that exists for type checkers only: its value goes unchecked here
        hints = {}
    return {p.name: hints.get(p.name, Any) for p in _named_parameters(kind)}


def _check_options(name: str, options: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    # A function cannot be written in YAML: such parameters are not options.
    known = [key for key, annotation in parameters.items() if "Callable" not in str(annotation)]
    for key, value in options.items():
        if key not in known:
            raise ConfigError(
                "FH-STRATEGY-013",
                f"strategy {name!r} has no option {key!r}.",
                why=f"Its options are: {', '.join(known) or 'none'}.",
                fix="Correct the spelling in the study, or remove the option.",
            )
        try:
            TypeAdapter(parameters[key]).validate_python(value, strict=True)
        except PydanticSchemaGenerationError:
            continue  # a type of the author's own; the constructor checks it
        except ValidationError as error:
            raise _wrong_value(name, key, error.errors()[0]["msg"]) from None


def _check_complete(kind: type[Strategy], name: str, options: Mapping[str, Any]) -> None:
    missing = [
        p.name
        for p in _named_parameters(kind)
        if p.default is inspect.Parameter.empty and p.name not in options
    ]
    if missing:
        *others, last = missing
        listed = f"{', '.join(others)} and {last}" if others else last
        raise ConfigError(
            "FH-STRATEGY-018",
            f"strategy {name!r} needs the option{'s' if others else ''} {listed}.",
            why="The strategy has no default for what the consortium must decide.",
            fix=f"Write {'them' if others else 'it'} into the run's strategy options in the study.",
        )


def _construct(kind: type[Strategy], name: str, options: Mapping[str, Any]) -> Strategy:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        given = ", ".join(sorted(options)) or "none"
        raise _wrong_value(name, given, str(error)) from error


def _wrong_value(name: str, key: str, message: str) -> ConfigError:
    return ConfigError(
        "FH-STRATEGY-014",
        f"strategy {name!r} does not take this value of {key!r}: {message}.",
        fix="Correct the value in the study's strategy options.",
    )


def _check_personalisation(strategy: Strategy, run: RunPlan) -> None:
    wanted = getattr(strategy, "personalisation", run.personalisation)
    if wanted != run.personalisation:
        raise ConfigError(
            "FH-STRATEGY-015",
            f"strategy {run.strategy.name!r} is for `personalisation: {wanted}`, "
            f"run {run.name!r} says `{run.personalisation}`.",
            fix=f"Set `personalisation: {wanted}` on the run, or choose another strategy.",
        )


def _check_control_variates(strategy: Strategy, run: RunPlan) -> None:
    """A strategy that does not know them would average them like weights, which is not SCAFFOLD."""
    wanted = bool(getattr(strategy, "control_variates", False))
    if wanted != run.control_variates:
        raise ConfigError(
            "FH-STRATEGY-019",
            f"strategy {run.strategy.name!r} {'needs' if wanted else 'does not know'} control variates, and run "
            f"{run.name!r} says `control_variates: {str(run.control_variates).lower()}`.",
            why="The server's step and the sites' steps belong together.",
            fix=f"Set `control_variates: {str(wanted).lower()}` on the run, or choose another strategy.",
        )
