"""The shipped study of hospitals with models of their own, in small, from the first round to scores of new patients."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from fedhealth.cli import app as cli
from fedhealth.config.load import load_site
from fedhealth.report.model_bundle import CARD_PAGE
from fedhealth.report.write import read_rounds
from fedhealth.simulation import simulate

CONFIGS = Path(__file__).parents[3] / "configs"
BLOCKS = ("encoders.table_ehr.", "absent.", "fusion.")
MASKS = {"secure_aggregation": {"min_survivors": 3, "bits": 16, "value_range": 1.0}}


def small_content(**more: Any) -> dict[str, Any]:
    said: dict[str, Any] = yaml.safe_load((CONFIGS / "client-specific" / "study.yaml").read_text())
    tests = yaml.safe_load((CONFIGS / "synthetic" / "study-tests.yaml").read_text())
    said["data"] = tests["data"]
    said["training"] |= {"local_epochs": 1}
    said["runs"][0]["num_rounds"] = 1
    return said | more


def small_sites(folder: Path) -> list[Any]:
    sites = []
    for path in sorted((CONFIGS / "client-specific").glob("site-*.yaml")):
        site = load_site(path)
        options = site.package.options | {"size": 16, "num_patients": 40}
        package = site.package.model_copy(update={"options": options})
        data = folder / "data" / site.site_id
        changes = {"package": package, "data_dir": data, "declared_train_size": 24}
        sites.append(site.model_copy(update=changes))
    return sites


@pytest.mark.parametrize("more", [{}, MASKS], ids=["plain", "masked"])
def test_hospitals_share_the_blocks_and_use_models_of_their_own(
    as_study: Any, tmp_path: Path, more: dict[str, Any]
) -> None:
    sites, out = small_sites(tmp_path), tmp_path / "out"
    simulate(as_study(small_content(**more)), sites, out)
    reports = out / "server" / "runs" / "own-models" / "reports"
    records = read_rounds(reports)
    assert [(r.kind, r.status) for r in records] == [
        ("train", "complete"),
        ("evaluate", "complete"),
    ]
    assert all(tensor.name.startswith(BLOCKS) for tensor in records[0].tensors)
    weights = []
    for site in sites:
        bundle = tmp_path / "bundles" / site.site_id
        arguments = ["--home", str(out / "sites" / site.site_id), "--out", str(bundle)]
        assert cli.run(["model", "export", *arguments, "--records", str(reports)]) == 0
        weights.append(load_file(bundle / "models" / "model.safetensors"))
        said = json.loads((bundle / "configs" / "model.json").read_bytes())
        has_images = site.package.options.get("imaging", True)
        assert said["unseen_modalities"] == ([] if has_images else ["t1"])
        assert ("Left out" in (bundle / CARD_PAGE).read_text("utf-8")) is not has_images
        card = json.loads((bundle / "docs" / "model_card.json").read_bytes())
        assert card["is_simulation"]
        assert card["personal_tensors_are_private"]
        assert len(card["privacy"]) == len(sites)
    for name in weights[0]:
        if name.startswith(BLOCKS):
            assert all((w[name] == weights[0][name]).all() for w in weights), name
    sizes = [sum(t.size for n, t in w.items() if n.startswith("encoders.volume")) for w in weights]
    assert sizes[0] > sizes[1] > sizes[2]
    scores = tmp_path / "scores.csv"
    home, data = str(out / "sites" / "hospital-3"), str(tmp_path / "data" / "hospital-3")
    assert cli.run(["predict", "--home", home, "--data-dir", data, "--out", str(scores)]) == 0
    rows = list(csv.DictReader(scores.open(encoding="utf-8")))
    assert len(rows) == 40
    assert {row["modalities"] for row in rows} == {"ehr"}
    _check_that_images_do_not_count(out / "sites" / "hospital-3", tmp_path)


def _check_that_images_do_not_count(home: Path, folder: Path) -> None:
    """Hospital 3 has no images and an image encoder of its own: whatever it says of an image is drawn by lot."""
    others, alike = folder / "data" / "hospital-1", []
    with (others / "cohort.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["marker_1"]][:5]
    for name in ("with", "without"):
        data = folder / name
        (data / "t1").mkdir(parents=True)
        with (data / "cohort.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        for row in rows if name == "with" else []:
            path = others / "t1" / f"{row['patient_id']}.nii.gz"
            if path.exists():
                shutil.copy(path, data / "t1" / path.name)
        scores = folder / f"{name}.csv"
        arguments = ["--home", str(home), "--data-dir", str(data), "--out", str(scores)]
        assert cli.run(["predict", *arguments]) == 0
        alike.append(scores.read_bytes())
    assert any((folder / "with" / "t1").iterdir())
    assert alike[0] == alike[1]
