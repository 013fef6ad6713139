"""The suite that a site package runs on itself.

In the package's tests::

    from fedhealth.testing.site_contract import SiteContract

    class TestMySite(SiteContract):
        package = MySite
        options = {"ward": "b2"}

        def contract(self):
            return study.data.to_contract(seed=study.seed)

        def fill_data_dir(self, data_dir):
            ...  # made-up patients in the layout that the package reads

Every test states a rule that federated training, or the people at the hospital, rely on.
"""

# ruff: noqa: D102 - the names of the tests are the rules

import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.contracts.cohort import UNKNOWN_LABEL, Cohort, LazyMask, SitePackage
from fedhealth.contracts.data import (
    Column,
    DataContract,
    MaskLabel,
    MultiLabel,
    SplitName,
    SurvivalLabel,
    TableModality,
)
from fedhealth.data.check import check_cohort
from fedhealth.data.split import split_patients
from fedhealth.errors import ConfigError, SiteDataError


class SiteContract:
    """Inherit, set `package` and `options`, and write `contract` and, where it needs one, `fill_data_dir`."""

    package: ClassVar[type[SitePackage]]
    options: ClassVar[Mapping[str, object]] = {}

    def contract(self) -> DataContract:
        """The data contract of a study that the package can serve."""
        raise NotImplementedError("a site package's suite needs a data contract")

    def fill_data_dir(self, data_dir: Path) -> None:
        """Put made-up patients where the package reads them. Packages that bring their own data leave this."""

    @pytest.fixture
    def data_dir(self, tmp_path: Path) -> Path:
        """A data folder as the hospital would have it before the first load."""
        folder = tmp_path / "data"
        folder.mkdir()
        self.fill_data_dir(folder)
        return folder

    @pytest.fixture
    def cache_dir(self, tmp_path: Path) -> Path:
        """Where a cache may be made; it is not there yet."""
        return tmp_path / "cache"

    def load(self, data_dir: Path, cache_dir: Path, contract: DataContract | None = None) -> Cohort:
        """What a worker does: a new package object, one load."""
        site = self.package(data_dir=data_dir, options=dict(self.options), cache_dir=cache_dir)
        return site.load_cohort(contract or self.contract())

    def test_the_cohort_keeps_the_contract(self, data_dir: Path, cache_dir: Path) -> None:
        summary = check_cohort(self.load(data_dir, cache_dir))
        assert summary.num_patients > 0

    def test_the_cohort_carries_the_contract_that_it_was_asked_for(
        self, data_dir: Path, cache_dir: Path
    ) -> None:
        assert self.load(data_dir, cache_dir).contract == self.contract()

    def test_every_volume_is_finite_float32_on_the_grid(
        self, data_dir: Path, cache_dir: Path
    ) -> None:
        cohort = self.load(data_dir, cache_dir)
        shapes = {modality.name: modality.shape for modality in cohort.contract.volumes}
        for patient in cohort.patients:
            for name, volume in patient.volumes.items():
                voxels = volume.load()
                assert voxels.shape == shapes[name]
                assert voxels.dtype == np.float32
                assert np.isfinite(voxels).all()

    def test_two_loads_give_the_same_cohort(self, data_dir: Path, cache_dir: Path) -> None:
        first, second = self.load(data_dir, cache_dir), self.load(data_dir, cache_dir)
        assert_same_cohort(first, second)

    def test_a_lost_cache_changes_nothing(self, data_dir: Path, cache_dir: Path) -> None:
        first = self.load(data_dir, cache_dir)
        read_all_volumes(first)
        shutil.rmtree(cache_dir, ignore_errors=True)
        assert_same_cohort(first, self.load(data_dir, cache_dir))

    def test_a_damaged_cache_changes_nothing(self, data_dir: Path, cache_dir: Path) -> None:
        first = self.load(data_dir, cache_dir)
        expected = read_all_volumes(first)
        for entry in [path for path in cache_dir.rglob("*") if path.is_file()]:
            entry.write_bytes(entry.read_bytes()[:40])
        actual = read_all_volumes(self.load(data_dir, cache_dir))
        assert all(np.array_equal(a, b) for a, b in zip(expected, actual, strict=True))

    def test_patient_ids_are_distinct_and_not_empty(self, data_dir: Path, cache_dir: Path) -> None:
        ids = [patient.patient_id for patient in self.load(data_dir, cache_dir).patients]
        assert all(ids)
        assert len(set(ids)) == len(ids)

    def test_no_patient_is_on_two_sides_of_the_split(self, data_dir: Path, cache_dir: Path) -> None:
        cohort = self.load(data_dir, cache_dir)
        sides = split_patients(cohort)
        assert set(sides) == set(SplitName)
        together = [patient.patient_id for side in sides.values() for patient in side]
        assert sorted(together) == sorted(patient.patient_id for patient in cohort.patients)

    def test_no_patient_id_shows_in_a_repr(self, data_dir: Path, cache_dir: Path) -> None:
        site = self.package(data_dir=data_dir, options=dict(self.options), cache_dir=cache_dir)
        cohort = site.load_cohort(self.contract())
        volumes = [volume for patient in cohort.patients for volume in patient.volumes.values()]
        text = f"{site!r} {cohort!r} {cohort.patients!r} {volumes!r}"
        assert not any(patient.patient_id in text for patient in cohort.patients)

    def test_loading_again_leaves_the_data_folder_as_it_is(
        self, data_dir: Path, cache_dir: Path
    ) -> None:
        read_all_volumes(self.load(data_dir, cache_dir))
        before = snapshot(data_dir)
        read_all_volumes(self.load(data_dir, cache_dir))
        assert snapshot(data_dir) == before

    def test_a_read_only_data_folder_is_enough_after_the_first_load(
        self, data_dir: Path, cache_dir: Path
    ) -> None:
        self.load(data_dir, cache_dir)
        data_dir.chmod(0o500)
        try:
            read_all_volumes(self.load(data_dir, cache_dir))
        finally:
            data_dir.chmod(0o700)

    def test_loading_needs_no_network(
        self, data_dir: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> NoReturn:
            raise AssertionError("a site package opened a connection")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        read_all_volumes(self.load(data_dir, cache_dir))

    def test_labels_outside_the_contract_are_refused_without_naming_a_patient(
        self, data_dir: Path, cache_dir: Path
    ) -> None:
        ids = [patient.patient_id for patient in self.load(data_dir, cache_dir).patients]
        self.assert_refused(data_dir, cache_dir, with_other_labels(self.contract()), ids)

    def test_a_column_that_the_site_does_not_have_is_refused_without_naming_a_patient(
        self, data_dir: Path, cache_dir: Path
    ) -> None:
        ids = [patient.patient_id for patient in self.load(data_dir, cache_dir).patients]
        column = Column(name="no_site_has_this", dtype="float", minimum=0, maximum=1, required=True)
        table = TableModality(name="no_site_has_these", columns=(column,))
        contract = self.contract()
        other = replace(contract, modalities=(*contract.modalities, table))
        self.assert_refused(data_dir, cache_dir, other, ids)

    def test_new_patients_are_read_without_a_label_and_nothing_is_written_beside_them(
        self, data_dir: Path, cache_dir: Path
    ) -> None:
        read_new = getattr(self.package, "load_new_patients", None)
        if read_new is None:
            pytest.skip("the package does not read new patients")
        known = self.load(data_dir, cache_dir).patients
        before = snapshot(data_dir)
        site = self.package(data_dir=data_dir, options=dict(self.options), cache_dir=cache_dir)
        contract = replace(self.contract(), label_column="nobody_knows_yet", has_labels=False)
        cohort: Cohort = read_new(site, contract)
        assert {patient.label for patient in cohort.patients} == {UNKNOWN_LABEL}
        assert [p.patient_id for p in cohort.patients] == [p.patient_id for p in known]
        assert snapshot(data_dir) == before

    def test_an_unknown_option_is_refused(self, data_dir: Path, cache_dir: Path) -> None:
        options = {**self.options, "no_package_knows_this": 1}
        with pytest.raises(ConfigError):
            self.package(data_dir=data_dir, options=options, cache_dir=cache_dir)

    def assert_refused(
        self, data_dir: Path, cache_dir: Path, contract: DataContract, patient_ids: list[str]
    ) -> None:
        """The load, or at the latest the check, raises SiteDataError, and its text names no patient or path."""
        with pytest.raises(SiteDataError) as caught:
            check_cohort(self.load(data_dir, cache_dir, contract))
        text = str(caught.value)
        assert str(data_dir) not in text
        assert not any(patient_id in text for patient_id in patient_ids)


def with_other_labels(contract: DataContract) -> DataContract:
    """The contract with a label that no site keeps: other codes, one more column, a shorter time, another mask."""
    match contract.target:
        case None:
            return replace(contract, label_codes=(998, 999))
        case MultiLabel() as label:
            columns = (*label.columns, "no_site_has_this_label")
            return replace(contract, target=replace(label, columns=columns))
        case SurvivalLabel() as label:
            return replace(contract, target=replace(label, maximum=1e-9))
        case MaskLabel() as label:
            return replace(contract, target=replace(label, name="no_site_has_this_mask"))


def assert_same_cohort(first: Cohort, second: Cohort) -> None:
    """Same patients in the same order, same values, same voxels, same fixed split."""
    assert first.fixed_split == second.fixed_split
    assert len(first.patients) == len(second.patients)
    for one, other in zip(first.patients, second.patients, strict=True):
        assert (one.patient_id, one.label) == (other.patient_id, other.label)
        assert_same_target(one.target, other.target)
        assert one.tables.keys() == other.tables.keys()
        assert one.volumes.keys() == other.volumes.keys()
        for name, values in one.tables.items():
            assert np.array_equal(values, other.tables[name], equal_nan=True)
        for name, volume in one.volumes.items():
            assert np.array_equal(volume.load(), other.volumes[name].load())


def assert_same_target(
    one: NDArray[np.float64] | LazyMask | None, other: NDArray[np.float64] | LazyMask | None
) -> None:
    """Same numbers, or masks of the same voxels."""
    values = [
        target if target is None or isinstance(target, np.ndarray) else target.load()
        for target in (one, other)
    ]
    assert np.array_equal(np.asarray(values[0]), np.asarray(values[1]))


def read_all_volumes(cohort: Cohort) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Every volume of the cohort, in order."""
    return [volume.load() for patient in cohort.patients for volume in patient.volumes.values()]


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of everything in a folder."""
    found = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]
