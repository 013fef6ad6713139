"""A simulation gives the model of the real federation: the same study, the same seed, another transport."""

import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedhealth.config.load import load_site, load_study
from fedhealth.config.site import SiteConfig
from fedhealth.report.write import read_rounds
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.simulation import Simulation, simulate

from .conftest import Federation, MakeFederation, study_content, wait_until

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


@pytest.mark.slow  # each side against the known mean: test_secure_aggregation.py, tests/unit/simulation
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


def test_a_killed_simulation_goes_on_from_its_last_round(tmp_path: Path) -> None:
    """SIGKILL leaves whatever was written so far: no fsync is needed for that, the kernel has it."""
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(study_content({"step": 0.5, "wait_s": 0.1}, num_rounds=6)))
    out = tmp_path / "out"
    argv = [
        sys.executable, "-I", "-m", "fedhealth", "simulate", str(study), "--num-sites", "3",
        "--train-size", "10", "--out", str(out), "--keep",
    ]  # fmt: skip
    reports = out / "server/runs/main/reports"
    with (tmp_path / "killed.txt").open("w") as file:
        first = subprocess.Popen(argv, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        try:
            wait_until((reports / "round-0002.json").exists, 120, "two rounds were done")
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    records = read_rounds(reports)
    complete = [r for r in records if r.status == "complete"]
    assert [(r.round_number, r.kind) for r in complete] == [
        *((number, "train") for number in range(1, 7)),
        (7, "evaluate"),
    ]
    for before, after in itertools.pairwise(complete):
        assert after.model_in_sha256 == before.model_out_sha256
