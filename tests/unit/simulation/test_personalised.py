"""The shipped study of personalisation: methods in its comments can run, and hospitals keep what they should."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from fedhealth.cli.study_check import check_whole_study
from fedhealth.config.load import load_site
from fedhealth.config.personalisation import PersonalisationName
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.report.write import read_rounds
from fedhealth.simulation import simulate
from fedhealth.site.budget import read_budget
from fedhealth.site.home import SiteHome

FOLDER = Path(__file__).parents[3] / "configs" / "personalised"
TEXT = (FOLDER / "study.yaml").read_text("utf-8")
CONTENT: dict[str, Any] = yaml.safe_load(TEXT)


def alternatives() -> list[dict[str, Any]]:
    """What stands in comments in place of the last run's method."""
    _, _, below = TEXT.partition("# In its place")
    comment = below.partition("\nrelease:")[0].split("\n  #\n")[1:]
    blocks = [re.sub(r"(?m)^\s*#   ", "", block) for block in comment]
    return [yaml.safe_load(block) for block in blocks]


def with_run(changes: dict[str, Any]) -> dict[str, Any]:
    run = {**CONTENT["runs"][-1], "personalisation_options": {}, **changes}
    return {**CONTENT, "runs": [CONTENT["runs"][0], run]}


def test_comments_offer_every_method_that_needs_neither_blocks_nor_images() -> None:
    offered = {block["personalisation"] for block in alternatives()}
    used = {run["personalisation"] for run in CONTENT["runs"]}
    assert offered | used == set(get_args(PersonalisationName)) - {"private_blocks", "local_norm"}
    assert not offered & used


@pytest.mark.parametrize("block", alternatives(), ids=lambda block: block["personalisation"])
def test_every_alternative_in_the_comments_can_run(block: dict[str, Any]) -> None:
    findings = check_whole_study(Study.model_validate(with_run(block)), build=True)
    assert [finding for finding in findings if finding.level == "error"] == []


def small_sites(tmp_path: Path) -> list[SiteConfig]:
    sites = []
    for path in sorted(FOLDER.glob("site-*.yaml")):
        site = load_site(path)
        package = site.package.model_copy(
            update={"options": site.package.options | {"num_patients": 60}}
        )
        data = tmp_path / "data" / site.site_id
        changes = {"package": package, "data_dir": data, "declared_train_size": 36}
        sites.append(site.model_copy(update=changes))
    return sites


def test_the_shipped_study_runs_in_small_and_each_hospital_keeps_its_model(
    as_study: Any, tmp_path: Path
) -> None:
    said = {**CONTENT, "runs": [CONTENT["runs"][1] | {"num_rounds": 1}]}
    sites = small_sites(tmp_path)
    done = simulate(as_study(said), sites, tmp_path / "out")
    records = read_rounds(tmp_path / "out" / "server" / "runs" / "own-models" / "reports")
    assert [(r.kind, r.status, r.personalisation) for r in records] == [
        ("train", "complete", "mr_mtl"),
        ("evaluate", "complete", "mr_mtl"),
    ]
    assert len(sites) == 4
    for site in sites:
        state = done.context(site.site_id, "own-models").state_dir
        assert list((state / "personal" / "own-models").glob("*.safetensors"))


def test_the_ledger_of_a_ditto_study_has_the_epsilon_of_twice_the_steps(
    as_study: Any, tmp_path: Path
) -> None:
    noise, batch_size, declared, num_rounds, delta = 1.5, 9, 36, 2, 0.001
    num_steps = CONTENT["training"]["local_steps"]
    said = {
        **CONTENT,
        "runs": [CONTENT["runs"][1] | {"num_rounds": num_rounds, "personalisation": "ditto"}],
        "training": CONTENT["training"] | {"batch_size": batch_size},
        "federation": CONTENT["federation"] | {"min_cohort": 2},
        "release": {"metrics": []},
        "privacy": {"noise_multiplier": noise, "clipping_norm": 1.0},
    }
    del said["secure_aggregation"]
    sites = small_sites(tmp_path)[:2]
    simulate(as_study(said), sites, tmp_path / "out")
    for site in sites:
        account = read_budget(SiteHome(tmp_path / "out" / "sites" / site.site_id))
        (spent,) = account["studies"]
        ditto, plain = (
            PLDAccountant()
            .compose(
                SelfComposedDpEvent(
                    PoissonSampledDpEvent(batch_size / declared, GaussianDpEvent(noise)),
                    trainings * num_steps * num_rounds,
                )
            )
            .get_epsilon(delta)
            for trainings in (2, 1)
        )
        assert spent["delta"] == delta
        assert spent["epsilon"] == pytest.approx(ditto, rel=1e-3)
        assert spent["epsilon"] > 1.2 * plain
