"""A simulation gives the model of the real federation: the same study, the same seed, another transport."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedhealth.config.load import load_site, load_study
from fedhealth.config.site import SiteConfig
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.simulation import Simulation, simulate

from .conftest import Federation, MakeFederation

ROOT = Path(__file__).parents[2]
MASKS = {"min_survivors": 3, "value_range": 1.0}
GRID = 1.0 / (2**15 - 1)


def records_study(**more: Any) -> dict[str, Any]:
    """The shipped tabular study, two rounds: every bit of a trained network depends on the order of sums."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "configs/simulation/study.yaml").read_text())
    content["federation"] |= {"gather_s": 60, "cohort_wait_s": 90, "round_deadline_s": 60}
    content["runs"] = [
        {"name": "main", "num_rounds": 2, "personalisation": "private_head", "strategy": {"name": "fedper"}},
        {"name": "stock", "num_rounds": 1, "strategy": {"name": "flower-fedadam"}},
    ]  # fmt: skip
    return content | more


def options(index: int) -> dict[str, object]:
    return {
        "site_index": index,
        "num_sites": 3,
        "num_patients": 40,
        "size": 16,
        "imaging": False,
    }


def both(
    make_federation: MakeFederation, tmp_path: Path, content: dict[str, Any]
) -> tuple[Federation, Simulation]:
    real = make_federation(content, package_options=options)
    assert real.run_to_the_end() == 0, real.output("server")
    sites: list[SiteConfig] = [
        load_site(home.config_path).model_copy(update={"data_dir": tmp_path / "data" / name})
        for name, home in real.sites.items()
    ]
    return real, simulate(load_study(real.root / "study.yaml"), sites, tmp_path / "simulated")


def test_without_random_numbers_models_and_metrics_are_the_same_bits(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    real, simulated = both(make_federation, tmp_path, records_study())
    for run in ("main", "stock"):
        pairs = zip(real.records(run), simulated.runs[run].records, strict=True)
        for ours, theirs in pairs:
            assert ours.model_out_sha256 == theirs.model_out_sha256
            assert ours.aggregate_evaluate_metrics == theirs.aggregate_evaluate_metrics
            assert (ours.is_simulation, theirs.is_simulation) == (False, True)


def test_under_masks_models_differ_by_their_random_rounding_only(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    content = records_study(secure_aggregation=MASKS)
    content["runs"] = [{"name": "main", "num_rounds": 1}]
    real, simulated = both(make_federation, tmp_path, content)
    model = read_last_checkpoint(real.server.run("main")).vector
    np.testing.assert_allclose(simulated.runs["main"].vector, model, rtol=0, atol=2 * GRID)
    for records in (real.records(), simulated.runs["main"].records):
        assert [record.masking.survivors for record in records if record.masking] == [
            ("hospital-1", "hospital-2", "hospital-3")
        ] * 2
