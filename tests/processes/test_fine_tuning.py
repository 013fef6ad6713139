"""A federation of real processes that fine-tunes pinned weights: every party has its own copy of the file."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedhealth.config.template import template_path
from fedhealth.errors import ExitCode
from fedhealth.models.pretrained import WEIGHTS_FILE
from fedhealth.models.weight_files import weights_in
from fedhealth.server.checkpoint import read_last_checkpoint

from .conftest import MakeFederation

FILE = "phantom.safetensors"


def _content() -> dict[str, Any]:
    """Low-rank changes of pinned weights, one run of one round, without privacy and masks."""
    content: dict[str, Any] = yaml.safe_load(
        template_path("synthetic").with_name("study-tests.yaml").read_text()
    )
    options = {
        "image_weights": "file",
        "image_weights_file": FILE,
        "image_weights_sha256": hashlib.sha256(WEIGHTS_FILE.read_bytes()).hexdigest(),
        "fusion": "cross_attention",
        "trainable": "lora",
        "lora_rank": 2,
    }
    content["model"] = {"name": "multimodal", "options": options}
    content["runs"] = [{"name": "main", "num_rounds": 1}]
    for key in ("privacy", "secure_aggregation"):
        content.pop(key, None)
    return content


def _place(home: Path) -> None:
    (home / "weights").mkdir(parents=True)
    shutil.copy(WEIGHTS_FILE, home / "weights" / FILE)


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-m", "fedhealth", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_sites_fine_tune_weights_that_each_has_in_its_home(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    _place(tmp_path / "coordinator")
    content = _content()

    def options(index: int) -> dict[str, object]:
        return {"site_index": index, "num_sites": 3, "num_patients": 24, "size": 16, "seed": 7}

    with weights_in(tmp_path / "coordinator"):
        federation = make_federation(content, package_options=options)
    homes = [home.root for home in federation.sites.values()]
    missing = _command("site", "check", "--home", str(homes[0]))
    assert missing.returncode == ExitCode.CONFIG
    assert "FH-MODEL-032" in missing.stderr
    for home in homes:
        _place(home)
    assert federation.run_to_the_end() == ExitCode.OK, federation.output("server")
    sites = federation.records()[-1].sites
    assert [site.status for site in sites] == ["contributed"] * 3
    checkpoint = read_last_checkpoint(federation.server.run("main"))
    trained = checkpoint.spec.unflatten(checkpoint.vector)
    names = {name for name in trained if name.startswith("encoders.volume_t1.blocks.")}
    assert names == {f"encoders.volume_t1.blocks.{i}.conv.lora_b.weight" for i in range(3)}
    assert all(np.abs(trained[name]).sum() > 0 for name in names)
    evaluated = _command("site", "evaluate", "--home", str(homes[0]), "--json")
    assert evaluated.returncode == ExitCode.OK, evaluated.stderr
