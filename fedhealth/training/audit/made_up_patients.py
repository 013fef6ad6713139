"""Patients that nobody is: values drawn from the data contract's public ranges. Canaries and targets of the audit.

They are in range, so the product's checks take them, and their labels are drawn too, so a model can only know one
by heart.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.cohort import LazyVolume, Patient
from fedhealth.contracts.data import Column, DataContract, VolumeModality

ID_PREFIX = "~canary-"
"""No id that the generic reader takes begins with a tilde, so that no patient shares one."""
_BLOBS = 3


@dataclass(frozen=True)
class MadeUpVolume:
    """A volume that needs no file."""

    values: NDArray[np.float32]

    def load(self) -> NDArray[np.float32]:
        """(i, j, k) float32, z-scored."""
        return self.values


def made_up_patients(
    contract: DataContract, count: int, rng: np.random.Generator
) -> tuple[Patient, ...]:
    """Patients with every modality, every value present and a fair coin for a label."""
    return tuple(
        Patient(
            patient_id=f"{ID_PREFIX}{number:06d}",
            label=int(rng.choice(contract.label_codes)),
            tables={
                table.name: np.array([_value(column, rng) for column in table.columns])
                for table in contract.tables
            },
            volumes=_volumes(contract, rng),
        )
        for number in range(count)
    )


def _volumes(contract: DataContract, rng: np.random.Generator) -> dict[str, LazyVolume]:
    return {volume.name: MadeUpVolume(_blobs(volume, rng)) for volume in contract.volumes}


def _value(column: Column, rng: np.random.Generator) -> float:
    if column.dtype == "category":
        return float(rng.choice(column.codes))
    low = 0.0 if column.minimum is None else column.minimum
    high = 1.0 if column.maximum is None else column.maximum
    if column.dtype == "int":
        return float(rng.integers(int(np.ceil(low)), int(np.floor(high)), endpoint=True))
    return float(rng.uniform(low, high))


def _blobs(volume: VolumeModality, rng: np.random.Generator) -> NDArray[np.float32]:
    """A few Gaussian blobs and a little noise, z-scored: smooth, as images are, and each one different."""
    axes = np.meshgrid(*(np.linspace(0, 1, size) for size in volume.shape), indexing="ij")
    values = 0.1 * rng.standard_normal(volume.shape)
    for _ in range(_BLOBS):
        centre, width = rng.uniform(0.2, 0.8, size=3), rng.uniform(0.1, 0.3)
        distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        values += rng.choice([-1.0, 1.0]) * np.exp(-distance / (2 * width**2))
    scored: NDArray[np.float32] = ((values - values.mean()) / values.std()).astype(np.float32)
    return scored
