"""A site's cohort, as a site package returns it. Nothing in here ever leaves the data zone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import DataContract, SplitName


class LazyVolume(Protocol):
    """A volume that is read when it is needed."""

    def load(self) -> NDArray[np.float32]:
        """Read it: (i, j, k) float32 on the contract's grid, intensities z-scored over the volume.

        Raises:
            SiteDataError: the file is unreadable, truncated or not on the contract's grid.
        """
        ...


@runtime_checkable
class HoldsMasks(Protocol):
    """What a volume can do besides, so that a predicted mask is written where its image is."""

    def mask_on_source(self, codes: NDArray[np.uint8]) -> bytes:
        """A mask (i, j, k) uint8 on the contract's grid as a NIfTI file (gzip) on the image's own voxels.

        Raises:
            SiteDataError: the image's file is unreadable.
        """
        ...


class LazyMask(Protocol):
    """A label volume that is read when it is needed."""

    def load(self) -> NDArray[np.uint8]:
        """Read it: (i, j, k) uint8 codes of the contract, on the grid of the contract's `MaskLabel`.

        Raises:
            SiteDataError: the file is unreadable, not on the image's grid, or has a code outside the contract.
        """
        ...


UNKNOWN_LABEL: Final = -1
"""`Patient.label` of a new patient: no code, so that nothing can be trained on or judged by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One patient's record.

    `tables[name]` is one value per column of that modality, float64, NaN where missing; a modality that the
    patient lacks altogether is absent from the mapping. The same holds for `volumes`.

    `label` is the code where the contract's `target` is None; else it stays 0 and `target` holds what is predicted:
    (L,) float64 of 0 and 1 (`MultiLabel`, in the order of its columns), (2,) float64 time and event
    (`SurvivalLabel`), or a `LazyMask` (`MaskLabel`).
    """

    patient_id: str = field(repr=False)
    label: int = field(default=0, repr=False)
    tables: Mapping[str, NDArray[np.float64]] = field(repr=False)
    volumes: Mapping[str, LazyVolume] = field(repr=False)
    target: NDArray[np.float64] | LazyMask | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The patients of one site. `fixed_split` (patient id -> side) replaces the contract's seeded split."""

    contract: DataContract
    patients: tuple[Patient, ...] = field(repr=False)
    fixed_split: Mapping[str, SplitName] | None = field(default=None, repr=False)


class SitePackage(Protocol):
    """What a hospital installs: the entry point object of group ``fedhealth.sites`` is a class with this shape.

    `fedhealth.testing.site_contract` is the suite that a package runs on itself.
    """

    def __init__(self, *, data_dir: Path, options: Mapping[str, object], cache_dir: Path) -> None:
        """Args: the site's data folder, `package_options` of site.yaml, a private folder for caches."""
        ...

    def load_cohort(self, contract: DataContract) -> Cohort:
        """Read and check the cohort against the contract.

        Raises:
            SiteDataError: the data does not keep the contract.
        """
        ...


class ReadsNewPatients(Protocol):
    """What a site package can have besides, so that a hospital can score patients whose label nobody knows yet."""

    def load_new_patients(self, contract: DataContract) -> Cohort:
        """Read and check patients without labels from the package's data folder, which is only read.

        Args:
            contract: the study's, with `has_labels` False.

        Raises:
            SiteDataError: the data does not keep the contract.
        """
        ...
