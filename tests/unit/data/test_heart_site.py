from pathlib import Path

import numpy as np
import pytest
from fedhealth_site_heart import (
    HOSPITALS,
    HeartSite,
    Hospital,
    cohort_csv,
    flamby_pooled_train,
    flamby_split,
)
from fedhealth_site_heart.tables import COLUMNS, read_table

from fedhealth.contracts.data import DataContract
from fedhealth.errors import ConfigError, SiteDataError

FLAMBY_SIZES = {
    "cleveland": (199, 104),
    "hungarian": (172, 89),
    "switzerland": (30, 16),
    "va": (85, 45),
}


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_the_flamby_split_has_the_published_sizes(hospital: Hospital) -> None:
    x_train, y_train, x_test, y_test = flamby_split(hospital)
    assert (len(x_train), len(x_test)) == FLAMBY_SIZES[hospital]
    assert x_train.shape[1] == x_test.shape[1] == 13
    assert set(np.concatenate([y_train, y_test])) == {0, 1}


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_flamby_features_are_z_scored_on_the_training_side(hospital: Hospital) -> None:
    features = flamby_split(hospital)[0].astype(np.float64)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-6)
    spread = features.std(axis=0, ddof=1)
    assert np.all(np.isclose(spread, 1, atol=1e-5) | (spread == 0))


def test_flamby_pools_four_training_sides_on_one_scale() -> None:
    features, labels = flamby_pooled_train()
    assert features.shape == (199 + 172 + 30 + 85, 13)
    assert len(labels) == len(features)
    np.testing.assert_allclose(features.std(axis=0, ddof=1), 1, atol=1e-5)


def test_the_split_never_changes() -> None:
    """Label sums of each side, from a run that reproduced the published table."""
    sums = [tuple(int(flamby_split(h)[i].sum()) for i in (1, 3)) for h in HOSPITALS]
    assert sums == [(91, 48), (65, 33), (30, 15), (66, 35)]


@pytest.mark.parametrize(
    ("hospital", "rows"),
    [("cleveland", 303), ("hungarian", 294), ("switzerland", 123), ("va", 200)],
)
def test_the_shipped_tables_are_complete(hospital: Hospital, rows: int) -> None:
    assert read_table(hospital).shape == (rows, 14)


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_a_cohort_has_the_values_of_the_published_table(
    hospital: Hospital, heart_contract: DataContract, tmp_path: Path
) -> None:
    site = HeartSite(
        data_dir=tmp_path / "data", options={"hospital": hospital}, cache_dir=tmp_path / "cache"
    )
    cohort = site.load_cohort(heart_contract)
    table = read_table(hospital)
    assert [p.label for p in cohort.patients] == (table[:, -1] > 0).astype(int).tolist()
    clinical = np.stack([p.tables["clinical"] for p in cohort.patients])
    expected = table[:, :11].copy()
    for name in ("trestbps", "chol"):
        column = expected[:, COLUMNS.index(name)]
        column[column == 0] = np.nan
    np.testing.assert_array_equal(clinical, expected)


def test_the_imaging_block_is_missing_as_it_was_in_the_hospitals(
    heart_contract: DataContract, tmp_path: Path
) -> None:
    lacking = {}
    for hospital in HOSPITALS:
        folder = tmp_path / hospital
        site = HeartSite(data_dir=folder, options={"hospital": hospital}, cache_dir=tmp_path)
        patients = site.load_cohort(heart_contract).patients
        lacking[hospital] = sum("imaging_derived" not in p.tables for p in patients)
    assert lacking == {"cleveland": 0, "hungarian": 264, "switzerland": 47, "va": 165}


def test_swiss_cholesterol_is_all_missing() -> None:
    rows = [line.split(",") for line in cohort_csv("switzerland").splitlines()]
    position = rows[0].index("chol")
    assert {row[position] for row in rows[1:]} == {""}


def test_a_cohort_of_another_hospital_in_the_folder_is_left_alone(
    heart_contract: DataContract, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    HeartSite(data_dir=folder, options={"hospital": "va"}, cache_dir=tmp_path).load_cohort(
        heart_contract
    )
    other = HeartSite(data_dir=folder, options={"hospital": "cleveland"}, cache_dir=tmp_path)
    with pytest.raises(SiteDataError, match="FH-DATA-051"):
        other.load_cohort(heart_contract)
    assert (folder / "cohort.csv").read_text() == cohort_csv("va")


def test_other_files_in_the_folder_are_left_alone(
    heart_contract: DataContract, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    site = HeartSite(data_dir=tmp_path, options={"hospital": "va"}, cache_dir=tmp_path)
    with pytest.raises(SiteDataError, match="FH-DATA-050"):
        site.load_cohort(heart_contract)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_is_refused(
    heart_contract: DataContract, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    site = HeartSite(
        data_dir=tmp_path / "file" / "d", options={"hospital": "va"}, cache_dir=tmp_path
    )
    with pytest.raises(SiteDataError, match="FH-DATA-052"):
        site.load_cohort(heart_contract)


@pytest.mark.parametrize("options", [{}, {"hospital": "boston"}, {"hospital": "va", "x": 1}])
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="FH-CONFIG-041"):
        HeartSite(data_dir=tmp_path, options=options, cache_dir=tmp_path)
