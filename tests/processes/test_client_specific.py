"""Three hospitals with three models, as real processes: what they share is averaged, what they have is theirs."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from fedhealth.cli import app as cli

CONFIGS = Path(__file__).parents[2] / "configs"
BLOCKS = ("encoders.table_ehr.", "absent.", "fusion.")


def content() -> dict[str, Any]:
    """The shipped study, with the data contract of the small generated hospitals and one round."""
    said: dict[str, Any] = yaml.safe_load((CONFIGS / "client-specific" / "study.yaml").read_text())
    small = yaml.safe_load((CONFIGS / "synthetic" / "study-tests.yaml").read_text())
    said["data"] = small["data"]
    said["training"] |= {"local_epochs": 1}
    said["runs"][0]["num_rounds"] = 1
    del said["privacy"]
    return said


@pytest.mark.slow
def test_hospitals_with_different_models_finish_a_run_and_use_their_own(
    make_federation: Any, tmp_path: Path
) -> None:
    federation = make_federation(
        content(),
        sizes=(24, 24, 24),
        package_options=lambda index: {
            "site_index": index,
            "num_sites": 3,
            "num_patients": 40,
            "size": 16,
            "imaging": index < 2,
        },
        modalities={3: ("ehr",)},
        variants={1: "wide", 3: "records_only"},
    )
    assert federation.run_to_the_end() == 0, federation.output("server")
    records = federation.records("own-models")
    assert [(r.kind, r.status) for r in records] == [
        ("train", "complete"),
        ("evaluate", "complete"),
    ]
    assert all(t.name.startswith(BLOCKS) for t in records[0].tensors)
    assert records[0].personalisation == "private_blocks"
    weights = []
    for site_id, home in federation.sites.items():
        bundle = tmp_path / "bundles" / site_id
        arguments = ["--home", str(home.root), "--out", str(bundle), "--allow-unprotected"]
        assert cli.run(["model", "export", *arguments]) == 0
        weights.append(load_file(bundle / "models" / "model.safetensors"))
    for name in weights[0]:
        if name.startswith(BLOCKS):
            assert all((w[name] == weights[0][name]).all() for w in weights), name
    sizes = [sum(t.size for n, t in w.items() if n.startswith("encoders.volume")) for w in weights]
    assert sizes[0] > sizes[1] > sizes[2]
    new = tmp_path / "new"
    new.mkdir()
    data = federation.sites["hospital-3"].root / "data" / "cohort.csv"
    (new / "cohort.csv").write_text(data.read_text())
    out = tmp_path / "scores.csv"
    arguments = ["--home", str(federation.sites["hospital-3"].root), "--data-dir", str(new)]
    assert cli.run(["predict", *arguments, "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 40
    assert {row["modalities"] for row in rows} == {"ehr"}
