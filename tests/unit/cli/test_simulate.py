"""`fedhealth simulate`: hospitals from files or from a package, a table at the end, exit codes of the real thing."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhealth.cli.app import run

ROOT = Path(__file__).parents[3]
SYNTHETIC = [
    "--option", "site_index={index}", "--option", "num_sites={num_sites}",
    "--option", "num_patients=20", "--option", "size=16", "--option", "imaging=false",
]  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The shipped study, with two rounds."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "configs/simulation/study.yaml").read_text())
    content["runs"][0]["num_rounds"] = 2
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_generated_hospitals_train_and_the_last_line_says_that_it_was_a_simulation(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["simulate", str(study), "--num-sites", "3", *SYNTHETIC, "--out", str(out)]
    assert run([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert (document["schema"], document["is_simulation"]) == ("fedhealth.simulate", True)
    (only,) = document["runs"]
    assert (only["rounds"], only["void_rounds"], len(only["sites"])) == (2, 0, 3)
    assert Path(only["report"]).exists()
    assert "round 2 of 2 complete" in said.err
    assert "no evidence about a hospital" in said.err
    assert not (out / "sites").exists()
    assert run([*arguments, "--json"]) == 0  # finished: the same result again
    again = json.loads(capsys.readouterr().out)
    assert again["runs"][0]["model_sha256"] == only["model_sha256"]


def test_keep_leaves_the_hospitals_homes(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["simulate", str(study), "--num-sites", "3", *SYNTHETIC, "--out", str(out)]
    assert run([*arguments, "--keep"]) == 0
    assert (out / "sites/hospital-1/site.yaml").exists()


def test_a_seed_makes_another_study(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = []
    for seed in ("1", "2"):
        out = str(tmp_path / seed)
        arguments = ["simulate", str(study), "--num-sites", "3", *SYNTHETIC, "--seed", seed]
        assert run([*arguments, "--out", out, "--json"]) == 0
        models.append(json.loads(capsys.readouterr().out)["runs"][0]["model_sha256"])
    assert models[0] != models[1]


@pytest.mark.parametrize("more", [[], ["--num-sites", "3", "--sites-dir", "configs/heart"]])
def test_hospitals_come_from_exactly_one_place(
    study: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", str(study), *more]) == 2
    assert "FH-USAGE-051" in capsys.readouterr().err


def test_no_quorum_is_exit_9(study: Path, tmp_path: Path) -> None:
    arguments = ["simulate", str(study), "--num-sites", "2", *SYNTHETIC]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 9


def test_a_study_that_cannot_run_is_refused_before_anything_is_made(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = yaml.safe_load(study.read_text())
    content["runs"][0]["strategy"] = {"name": "fedprox", "options": {"proximal_mu": -1.0}}
    study.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    arguments = ["simulate", str(study), "--num-sites", "3", *SYNTHETIC, "--out", str(out)]
    assert run(arguments) == 3
    assert "FH-STRATEGY" in capsys.readouterr().err
    assert not out.exists()
