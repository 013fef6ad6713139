"""Every strategy by name, one run each, over the same real sites: the study's `runs` in order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fedhealth.durable import read_json
from fedhealth.server.checkpoint import read_last_checkpoint

from .conftest import Federation, factory, study_content

STEPS, WEIGHTS = np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0])
WEIGHTED, UNIFORM, MEDIAN = 140 / 60, 2.0, 2.0
RUNS: list[dict[str, Any]] = [
    {"name": "uniform", "strategy": {"name": "fedavg", "options": {"weighting": "uniform"}}},
    {"name": "fedprox", "strategy": {"name": "fedprox", "options": {"proximal_mu": 0.1}}},
    {"name": "stock-fedavg", "strategy": {"name": "flower-fedavg"}},
    {"name": "stock-fedmedian", "strategy": {"name": "flower-fedmedian"}},
    {"name": "stock-fedadam", "strategy": {"name": "flower-fedadam"}, "num_rounds": 2},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    content = study_content({})
    content["runs"] = [{"num_rounds": 1} | run for run in RUNS]
    for make in factory(tmp_path_factory.mktemp("strategies")):
        federation = make(content)
        assert federation.run_to_the_end(240) == 0, federation.output("server")
        yield federation


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("uniform", UNIFORM),
        ("fedprox", WEIGHTED),
        ("stock-fedavg", WEIGHTED),
        ("stock-fedmedian", MEDIAN),
    ],
)
def test_a_strategy_by_name_gives_its_own_mean(
    finished: Federation, run: str, expected: float
) -> None:
    model = read_last_checkpoint(finished.server.run(run)).vector
    np.testing.assert_allclose(model, expected, rtol=1e-6)


def test_fedadam_keeps_float32_and_checkpoints_its_moments(finished: Federation) -> None:
    checkpoint = read_last_checkpoint(finished.server.run("stock-fedadam"))
    assert checkpoint.vector.dtype == np.float32
    assert np.isfinite(checkpoint.vector).all()
    assert any("m_t" in name for name in checkpoint.strategy_state)
    assert any("v_t" in name for name in checkpoint.strategy_state)


def test_only_allowed_settings_of_a_strategy_reach_the_manifest(finished: Federation) -> None:
    assert finished.records("fedprox")[0].strategy_config == {"proximal_mu": 0.1}
    assert finished.records("stock-fedadam")[0].strategy_config == {}


def test_every_run_is_complete_and_named_by_its_strategy(finished: Federation) -> None:
    for run in RUNS:
        folder = finished.server.run(run["name"])
        assert read_json(folder.outcome)["state"] == "completed"
        assert {r.strategy for r in finished.records(run["name"])} == {run["strategy"]["name"]}


def test_metrics_of_all_sites_are_in_the_record_rounded(finished: Federation) -> None:
    for site in finished.records("stock-fedavg")[0].sites:
        assert site.evaluate_metrics == {
            "auc": pytest.approx(0.5 + 0.01 * int(site.site_id[-1])),
            "log_loss": 0.69,
        }
        assert site.train_metrics == {"train_loss": 0.5}
