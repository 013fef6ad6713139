"""The main job: `fedhealth demo`, on the generated cohort and on the four real hospitals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedhealth.report.record import RoundRecord

from .conftest import processes_of


def demo(out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "fedhealth", "demo", "--out", str(out), "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def check(result: dict[str, Any], out: Path, *, num_sites: int, num_rounds: int) -> None:
    assert [len(site["rows"]) for site in result["sites"]] == [4] * num_sites
    for site in result["sites"]:
        assert [row["model"].split(" (")[0] for row in site["rows"]] == [
            "trained alone",
            "trained alone",
            "federated",
            "federated, private head",
        ]
        for row in site["rows"]:
            assert row["auc"] is None or 0 <= row["auc_low"] <= row["auc"] <= row["auc_high"] <= 1
        assert [found["minus"] for found in site["differences"]] == [
            "trained alone (tuned, no noise)"
        ] * 2
    for spent in result["privacy"]:
        assert 0 < spent["epsilon"] <= spent["limit"] == 8
        assert spent["unit"] == "patient"
    for report in result["reports"]:
        folder = Path(report).parent
        records = [
            RoundRecord.model_validate_json(path.read_bytes())
            for path in sorted(folder.glob("round-*.json"))
        ]
        assert [r.status for r in records] == ["complete"] * (num_rounds + 1)
        assert len(list(folder.glob("round-*.html"))) == num_rounds + 1
    assert processes_of(out) == {}


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_four_real_hospitals_federate_with_reports_and_a_table(tmp_path: Path) -> None:
    result, text = demo(tmp_path / "heart", "--study", "heart", "--rounds", "2")
    check(result, tmp_path / "heart", num_sites=4, num_rounds=2)
    assert [site["site_id"] for site in result["sites"]] == [
        "cleveland",
        "hungarian",
        "switzerland",
        "va",
    ]
    assert "AUC on each hospital's held-out patients" in text
    assert "Each run minus the hospital's own tuned model without noise" in text
    assert "(the site allows 8); unit patient, adjacency add or remove one" in text


@pytest.mark.timeout(300)
def test_generated_hospitals_federate_and_the_private_head_never_leaves(tmp_path: Path) -> None:
    out = tmp_path / "synthetic"
    result, _ = demo(out, "--size", "tests", "--rounds", "1", "--sites", "2")
    check(result, out, num_sites=2, num_rounds=1)
    (record,) = (out / "server/runs/private-head/reports").glob("round-0001.json")
    names = [t.name for t in RoundRecord.model_validate_json(record.read_bytes()).tensors]
    assert names
    assert not [name for name in names if name.startswith("head.")]
    heads = list(out.glob("sites/*/studies/*/state/private-head/**/head_*.safetensors"))
    assert {path.relative_to(out).parts[1] for path in heads} == {"hospital-1", "hospital-2"}
    assert not list((out / "server").rglob("head_*"))


def test_a_demo_refuses_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    done = subprocess.run(
        [sys.executable, "-I", "-m", "fedhealth", "demo", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "FH-USAGE-041" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "keep"
