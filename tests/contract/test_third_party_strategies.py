"""A Flower user's own Strategy subclass, installed as a package, works by name, with masks where it can."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from fedhealth import plugins
from fedhealth.cli.study_check import check_whole_study
from fedhealth.config.study import Study
from fedhealth.contracts.aggregation import SiteReply
from fedhealth.errors import ConfigError
from fedhealth.flower.strategy_adapter import StrategyAggregator, build_aggregator
from fedhealth.testing.flower_task import flower_task
from fedhealth.testing.strategy_contract import COHORT, SPEC, StrategyContract, model, one_round

SITES = COHORT[:3]
AGE = {"name": "age", "dtype": "float", "minimum": 0, "maximum": 120}


class TestMomentum(StrategyContract):
    strategy = "test-momentum"
    options = {"momentum": 0.5}  # noqa: RUF012 - a ClassVar of the suite
    keeps_agreement = False  # a step from the mean, which rounds otherwise than the mean itself


def study(name: str, *, masks: bool, **options: Any) -> Study:
    content: dict[str, Any] = {
        "schema_version": 1,
        "id": "third-party",
        "title": "Third party",
        "seed": 1,
        "data": {"modalities": [{"kind": "table", "name": "ehr", "columns": [AGE]}]},
        "training": {"local_steps": 1},
        "federation": {"min_cohort": 3},
        "runs": [{"name": "main", "num_rounds": 3, "strategy": {"name": name, "options": options}}],
    }
    return Study.model_validate(content | ({"secure_aggregation": {}} if masks else {}))


def aggregator(made: Study) -> StrategyAggregator:
    return build_aggregator(made.runs[0], SPEC, min_cohort=3, study=made)


def reply(site_id: str, vector: Any, num_sites: int = 1) -> SiteReply:
    return SiteReply(
        site_id=site_id,
        weight=10.0 * num_sites,
        load_vector=lambda: vector,
        train_metrics={},
        evaluate_metrics={},
        num_sites=num_sites,
    )


def rounds(made: StrategyAggregator, *, masks: bool) -> list[Any]:
    """Three rounds in which each site moves by its own constant; under masks the strategy gets the mean."""
    vector, models = model(0), []
    for number in (1, 2, 3):
        made.configure(number, vector, SITES)
        singles = [vector + np.float32(0.25 * (i + 1)) for i in range(3)]
        replies = [reply(site, one) for site, one in zip(SITES, singles, strict=True)]
        mean = np.mean(singles, axis=0, dtype=np.float64).astype(np.float32)
        given = [reply("sum-of-survivors", mean, 3)] if masks else replies
        vector = made.aggregate(number, iter(given)).vector
        models.append(vector)
    return models


@pytest.mark.parametrize("masks", [False, True])
def test_momentum_is_the_same_with_and_without_masks_and_as_by_hand(masks: bool) -> None:
    with flower_task():
        models = rounds(aggregator(study("test-momentum", masks=masks, momentum=0.5)), masks=masks)
    expected, velocity = model(0).astype(np.float64), 0.0
    for made in models:
        velocity = 0.5 * velocity + 0.5  # the mean of 0.25, 0.5 and 0.75
        expected = expected + velocity
        np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6)


def test_its_velocity_survives_a_restart_under_masks() -> None:
    made = study("test-momentum", masks=True, momentum=0.5)
    with flower_task():
        first, second = aggregator(made), aggregator(made)
        models = rounds(first, masks=True)
        half = aggregator(made)
        start = model(0)
        half.configure(1, start, SITES)
        start = half.aggregate(1, iter([reply("sum", models[0], 3)])).vector
        second.load_state_dict({n: a.copy() for n, a in half.state_dict().items()})
        results = []
        for one in (half, second):
            one.configure(2, start, SITES)
            results.append(one.aggregate(2, iter([reply("sum", models[1], 3)])).vector)
    np.testing.assert_array_equal(*results)


def test_one_that_looks_at_single_replies_runs_without_masks_and_is_refused_with_them() -> None:
    with flower_task():
        made = build_aggregator(study("test-first-reply", masks=False).runs[0], SPEC, min_cohort=2)
        result = one_round(made, 1, model(0), [model(1), model(2)])
        np.testing.assert_array_equal(result.vector, model(1))
    with pytest.raises(ConfigError, match="FH-STRATEGY-061"):
        aggregator(study("test-first-reply", masks=True))


def test_study_check_says_so_before_anything_runs() -> None:
    found = check_whole_study(study("test-first-reply", masks=True), build=False)
    assert "FH-STRATEGY-061" in [one.code for one in found if one.level == "error"]
    fine = check_whole_study(study("test-momentum", masks=True, momentum=0.5), build=False)
    assert [one for one in fine if one.level == "error"] == []


def test_the_plug_in_is_flowers_class_and_not_ours() -> None:
    assert issubclass(plugins.load("fedhealth.strategies", "test-momentum"), FedAvg)


def test_the_readme_shows_the_strategy_that_is_tested_here() -> None:
    page = (Path(__file__).parents[2] / "strategies" / "README.md").read_text("utf-8")
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    assert inspect.getsource(plugins.load("fedhealth.strategies", "test-momentum")) in example
    scope: dict[str, Any] = {}
    exec(compile(example, "README", "exec"), scope)  # noqa: S102 - our own page
    assert issubclass(scope["MomentumFedAvg"], FedAvg)
