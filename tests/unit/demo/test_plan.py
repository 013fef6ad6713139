"""What a demo runs: the shipped study with its privacy, hospitals with their policies."""

from pathlib import Path

import pytest
import yaml

from fedhealth.config.load import load_site, load_study
from fedhealth.demo.plan import DemoPlan, StudyName, make_plan, write_site, write_study
from fedhealth.errors import UsageError
from fedhealth.privacy.accounting.plan import plan_site
from fedhealth.privacy.policy import check_plan


def plan(
    study: StudyName = "synthetic", *, has_privacy: bool = True, is_small: bool = False
) -> DemoPlan:
    return make_plan(
        study,
        num_sites=None,
        num_rounds=None,
        seed=None,
        is_small=is_small,
        has_privacy=has_privacy,
    )


@pytest.mark.parametrize(
    ("study", "is_small"), [("synthetic", False), ("synthetic", True), ("heart", False)]
)
def test_every_hospital_of_a_demo_allows_what_the_study_asks_for(
    tmp_path: Path, study: StudyName, is_small: bool
) -> None:
    made = plan(study, is_small=is_small)
    loaded = load_study(write_study(made, tmp_path))
    assert loaded.privacy is not None
    assert loaded.privacy.target_epsilon == 8
    for site in made.sites:
        write_site(site, tmp_path / site.site_id)
        config = load_site(tmp_path / site.site_id / "site.yaml")
        assert config.privacy.max_epsilon_per_study == 8
        assert config.privacy.min_patients == 20
        assert config.data_dir == tmp_path / site.site_id / "data"
    # One plan a study: the noise of each takes a second to work out.
    size = min(site.train_size for site in made.sites)
    check_plan(config.privacy, plan_site(loaded, size), declared_train_size=size)


def test_no_privacy_takes_it_out_of_study_and_sites(tmp_path: Path) -> None:
    made = plan(has_privacy=False)
    loaded = load_study(write_study(made, tmp_path))
    assert loaded.privacy is None
    for site in made.sites:
        write_site(site, tmp_path / site.site_id)
        config = load_site(tmp_path / site.site_id / "site.yaml")
        assert config.privacy.max_epsilon_per_study is None
        check_plan(
            config.privacy, plan_site(loaded, 100), declared_train_size=config.declared_train_size
        )


def test_the_demo_is_the_shipped_federation() -> None:
    folder = Path(__file__).parents[3] / "configs/synthetic"
    shipped = [yaml.safe_load(p.read_text()) for p in sorted(folder.glob("site-*.yaml"))]
    for site, content in zip(plan().sites, shipped, strict=True):
        assert (site.site_id, site.train_size) == (
            content["site_id"],
            content["declared_train_size"],
        )
        assert dict(site.options) == content["package"]["options"]
        assert dict(site.privacy) == content["privacy"]


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="FH-USAGE-040"):
        make_plan("heart", num_sites=3, num_rounds=None, seed=None, is_small=False)
    with pytest.raises(UsageError, match="FH-USAGE-040"):
        make_plan("synthetic", num_sites=5, num_rounds=None, seed=None, is_small=False)
