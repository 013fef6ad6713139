"""The site contract, run on the shipped packages and on one freshly made from the template."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from fedhealth_site_heart import HeartSite
from fedhealth_site_synthetic import SyntheticSite

from fedhealth.config.site import SiteConfig
from fedhealth.config.study import Study
from fedhealth.contracts.cohort import SitePackage
from fedhealth.contracts.data import DataContract, MultiLabel
from fedhealth.errors import UsageError
from fedhealth.site.new_package import create_site_package
from fedhealth.testing.example_data import write_example_folder
from fedhealth.testing.site_contract import SiteContract

ROOT = Path(__file__).parents[2]


def study(path: Path) -> Study:
    return Study.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def contract_of(path: Path) -> DataContract:
    loaded = study(path)
    return loaded.data.to_contract(seed=loaded.seed)


class TestSynthetic(SiteContract):
    package = SyntheticSite
    options: ClassVar = {"site_index": 2, "num_patients": 30, "size": 16}

    def contract(self) -> DataContract:
        return contract_of(ROOT / "configs/synthetic/study-tests.yaml")


class TestSyntheticWithoutImaging(TestSynthetic):
    options: ClassVar = {"num_patients": 20, "size": 16, "imaging": False}


class TestSyntheticSurvival(SiteContract):
    package = SyntheticSite
    options: ClassVar = {"num_patients": 20, "imaging": False, "outcomes": True}

    def contract(self) -> DataContract:
        return contract_of(ROOT / "configs/survival/study.yaml")


class TestSyntheticSegmentation(SiteContract):
    package = SyntheticSite
    options: ClassVar = {"num_patients": 12, "size": 32, "lesion_masks": True}

    def contract(self) -> DataContract:
        return contract_of(ROOT / "configs/segmentation/study.yaml")


class TestHeartSwitzerland(SiteContract):
    package = HeartSite
    options: ClassVar = {"hospital": "switzerland"}

    def contract(self) -> DataContract:
        return contract_of(ROOT / "configs/heart/study.yaml")


class TestHeartVa(TestHeartSwitzerland):
    options: ClassVar = {"hospital": "va"}


class TestNewPackage(SiteContract):
    """A package as `fedhealth site new st-mary` writes it."""

    @pytest.fixture(autouse=True)
    def _new_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = create_site_package("st-mary", tmp_path / "new")
        monkeypatch.syspath_prepend(folder)
        for name in ("fedhealth_site_st_mary", "fedhealth_site_st_mary.site"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module("fedhealth_site_st_mary")
        monkeypatch.setattr(type(self), "package", module.StMarySite, raising=False)

    def contract(self) -> DataContract:
        return contract_of(ROOT / "sites/template/tests/study.yaml.template")

    def fill_data_dir(self, data_dir: Path) -> None:
        write_example_folder(data_dir, self.contract())


class TestFolderOfLabels(TestNewPackage):
    """The generic reader, on made-up patients with several yes-or-no labels."""

    def contract(self) -> DataContract:
        label = MultiLabel(columns=("fever", "cough"))
        return replace(super().contract(), label_column="", label_codes=(), target=label)


def test_the_tests_of_a_new_package_pass_as_they_are(tmp_path: Path) -> None:
    folder = create_site_package("north-clinic-2", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    ran = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stdout[-2000:]


def test_a_new_package_has_no_placeholder_left_and_a_valid_site_file(tmp_path: Path) -> None:
    folder = create_site_package("st-mary", tmp_path)
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()]
    assert len(texts) == 8
    assert not any("@@" in text for text in texts)
    config = yaml.safe_load((folder / "site.yaml").read_text(encoding="utf-8"))
    assert SiteConfig.model_validate(config).package.name == "st-mary"


@pytest.mark.parametrize(
    "name", ["", "St-Mary", "1ward", "a--b", "a-", "-a", "a/b", "../a", "a b", "x" * 41, "ä"]
)
def test_a_name_that_cannot_be_a_package_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="FH-SITE-070"):
        create_site_package(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FH-SITE-071"):
        create_site_package("heart", tmp_path)


def test_a_new_package_never_overwrites_a_folder(tmp_path: Path) -> None:
    folder = create_site_package("st-mary", tmp_path)
    (folder / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="FH-SITE-072"):
        create_site_package("st-mary", tmp_path)
    assert (folder / "README.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*/site-*.yaml")), ids=lambda p: p.stem
)
def test_ready_site_files_load_with_the_study_beside_them(path: Path, tmp_path: Path) -> None:
    config = SiteConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    packages: dict[str, type[SitePackage]] = {"heart": HeartSite, "synthetic": SyntheticSite}
    site = packages[config.package.name](
        data_dir=tmp_path / "data", options=config.package.options, cache_dir=tmp_path / "cache"
    )
    cohort = site.load_cohort(contract_of(path.parent / "study.yaml"))
    assert len(cohort.patients) > config.declared_train_size


def test_flambys_heart_table_is_reproduced_within_one_point() -> None:
    """Pooled, four local and six federated rows, with FLamby's settings; the script exits 1 when a row is off."""
    command = [sys.executable, str(ROOT / "benchmarks/heart_flamby.py"), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert ran.returncode == 0, ran.stderr[-2000:]
    record = json.loads(ran.stdout)
    assert len(record["rows"]) == 11
    assert all(abs(row["difference"]) <= 0.01 for row in record["rows"])
