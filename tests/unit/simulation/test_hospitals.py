"""Hospitals of a simulation: from site.yaml files, or several of one package with its options filled in."""

from pathlib import Path
from typing import Any

import pytest

from fedhealth.config.load import load_site, load_study
from fedhealth.contracts.data import SplitName
from fedhealth.data.split import split_patients
from fedhealth.errors import UsageError
from fedhealth.simulation.hospitals import generated_sites, parse_options, read_sites
from fedhealth.site.home import SiteHome
from fedhealth.site.sessions import site_package

ROOT = Path(__file__).parents[3]
OPTIONS = {
    "site_index": "{index}",
    "num_sites": "{num_sites}",
    "num_patients": 20,
    "size": 16,
    "imaging": False,
}


def test_a_folder_gives_every_site_file_in_it() -> None:
    configs = read_sites([], ROOT / "configs/heart")
    assert [c.site_id for c in configs] == ["cleveland", "hungarian", "switzerland", "va"]
    assert configs[-1] == load_site(ROOT / "configs/heart/site-va.yaml")


def test_the_same_file_twice_is_refused() -> None:
    path = ROOT / "configs/heart/site-va.yaml"
    with pytest.raises(UsageError, match="FH-USAGE-052"):
        read_sites([path], path.parent)


def test_a_folder_without_site_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FH-USAGE-052"):
        read_sites([], tmp_path)


def test_options_are_read_as_plain_yaml_and_places_are_left() -> None:
    said = parse_options(["a=1", "b=true", "c=0.5", "d=text", "e={index}", "f=x-{num_sites}"])
    assert said == {"a": 1, "b": True, "c": 0.5, "d": "text", "e": "{index}", "f": "x-{num_sites}"}


@pytest.mark.parametrize("text", ["a", "=1", "a b=1", "a=[1, 2]", "a=", "a=: :"])
def test_what_is_no_plain_pair_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="FH-USAGE-053"):
        parse_options([text])


def test_generated_hospitals_differ_by_index_and_declare_their_training_patients(
    tmp_path: Path,
) -> None:
    study = load_study(ROOT / "configs/simulation/study.yaml")
    sites = generated_sites(
        study, tmp_path, package="synthetic", num_sites=2, options={**OPTIONS, "seed": 3}
    )
    assert [c.package.options["site_index"] for c in sites] == [0, 1]
    assert [c.package.options["num_sites"] for c in sites] == [2, 2]
    for config in sites:
        made: Any = site_package(
            SiteHome(tmp_path / "home"), "synthetic", dict(config.package.options), config.data_dir
        )
        cohort = made.load_cohort(study.data.to_contract(seed=study.seed))
        assert config.declared_train_size == len(split_patients(cohort)[SplitName.TRAIN])


def test_a_given_size_is_declared_and_no_cohort_is_read(tmp_path: Path) -> None:
    study = load_study(ROOT / "configs/simulation/study.yaml")
    sites = generated_sites(
        study, tmp_path, package="synthetic", num_sites=2, options={}, train_size=30
    )
    assert [c.declared_train_size for c in sites] == [30, 30]
    assert not (tmp_path / "generated-data").exists()
