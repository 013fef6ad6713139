"""A site package that makes patients up for any contract of tables and volumes, without a data folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.cohort import Cohort, LazyVolume, Patient
from fedhealth.contracts.data import Column, DataContract


@dataclass(frozen=True)
class Noise:
    values: NDArray[np.float32]

    def load(self) -> NDArray[np.float32]:
        return self.values


def _between(column: Column, rng: np.random.Generator) -> float:
    low = -3.0 if column.minimum is None else column.minimum
    return float(rng.uniform(low, low + 6.0 if column.maximum is None else column.maximum))


class MadeUpSite:
    """Options: `num_patients`, `seed`."""

    def __init__(self, *, data_dir: Path, options: Mapping[str, object], cache_dir: Path) -> None:
        self._count = int(str(options.get("num_patients", 20)))
        self._seed = int(str(options.get("seed", 0)))

    def load_cohort(self, contract: DataContract) -> Cohort:
        rng = np.random.default_rng(self._seed)
        patients = []
        for index in range(self._count):
            tables = {
                t.name: np.array([_between(c, rng) for c in t.columns]) for t in contract.tables
            }
            volumes: dict[str, LazyVolume] = {
                v.name: Noise(rng.normal(size=v.shape).astype(np.float32)) for v in contract.volumes
            }
            patients.append(
                Patient(
                    patient_id=f"made-up-{index}", label=index % 2, tables=tables, volumes=volumes
                )
            )
        return Cohort(contract=contract, patients=tuple(patients))
