"""Public records in every local step. Called by `supervised` and by both kinds of steps.

Zhao, Li, Lai, Suda, Civin, Chandra, "Federated Learning with Non-IID Data", 2018 (arXiv 1806.00582), section 4: a small
set that all sites share brings their gradients closer together.

Under patient-level privacy the shared records change nothing of the account. The released step is
``(sum of clipped gradients of patients + noise + sum of gradients of shared records) / (B + B_s)``. The last sum is a
function of the weights before the step, which are released already, of public records, and of randomness that is
independent of the patients: given these it is a constant, so a patient still moves the whole by at most the clipping
norm, and the noise is made for that. B and B_s are public constants.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedhealth.contracts.data import DataContract
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.data.batch import PatientDataset
from fedhealth.data.shared import load_shared_cohort
from fedhealth.errors import TrainingError
from fedhealth.models.seeds import derive_seed

if TYPE_CHECKING:
    from fedhealth.config.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRecords:
    """The shared cohort and its share of a step.

    Attributes:
        dataset: its records; never part of a site's validation or test side.
        fraction: of the records in a step, in (0, 0.5].
    """

    dataset: PatientDataset
    fraction: float

    @property
    def per_own(self) -> float:
        """Shared records for each record of the site's own: ``f / (1 - f)``, at most 1."""
        return self.fraction / (1.0 - self.fraction)

    def check_enough(self, own_in_a_step: float) -> None:
        """Refuse a cohort from which a step cannot take its fraction without taking a record twice.

        Args:
            own_in_a_step: the site's own records in one step.

        Raises:
            TrainingError: FH-TRAIN-053.
        """
        wanted = self.per_own * own_in_a_step
        if wanted > self.dataset.num_patients:
            raise TrainingError(
                "FH-TRAIN-053",
                f"the shared cohort has {self.dataset.num_patients} patients, and a step should take {wanted:.1f}.",
                why="The fraction would silently be smaller than the study says.",
                fix="Share more records, or lower training.shared_data.fraction or training.batch_size.",
            )

    def expected_size(self, mechanism: PatientMechanism) -> float:
        """B_s: shared patients in a private step on average; public, since B is."""
        return self.per_own * mechanism.expected_batch_size

    def sampling_rate(self, mechanism: PatientMechanism) -> float:
        """Chance that a shared patient is in a private step.

        Raises:
            TrainingError: FH-TRAIN-053 there are too few.
        """
        self.check_enough(mechanism.expected_batch_size)
        return self.expected_size(mechanism) / self.dataset.num_patients


class SharedOrder:
    """Which shared records each step without privacy takes: a new permutation when one is used up.

    Args:
        shared: records and fraction.
        seed: of the round's steps.
    """

    def __init__(self, shared: SharedRecords, seed: int) -> None:
        self._shared = shared
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "shared records"))
        self._left = torch.empty(0, dtype=torch.int64)
        self._own = self._taken = 0

    def beside(self, num_own: int) -> Tensor:
        """(S,) int64 rows for a step with so many records of the site's own; over a round S is the exact share."""
        self._own += num_own
        count = round(self._own * self._shared.per_own) - self._taken
        self._taken += count
        if len(self._left) < count:
            fresh = torch.randperm(len(self._shared.dataset), generator=self._generator)
            # What is left of the old permutation is in this step already: not a second time.
            fresh = fresh[~torch.isin(fresh, self._left)]
            rows = torch.cat([self._left, fresh])
        else:
            rows = self._left
        self._left = rows[count:]
        return rows[:count]


def load_shared_records(
    study: "Study",
    contract: DataContract,
    *,
    cache_dir: Path,
    memory_limit_bytes: int,
    num_own: int,
) -> SharedRecords | None:
    """The study's shared cohort; None where it has none.

    Args:
        study: with or without `training.shared_data`.
        contract: of the study.
        cache_dir: the site's.
        memory_limit_bytes: most bytes of its volumes kept in memory.
        num_own: records on this site's training side.

    Raises:
        ConfigError, SiteDataError: as `load_shared_cohort`.
        TrainingError: FH-TRAIN-053 a step without privacy would take a record twice.
    """
    section = study.training.shared_data
    if section is None:
        return None
    cohort = load_shared_cohort(section, contract, cache_dir=cache_dir)
    dataset = PatientDataset(cohort.patients, contract, memory_limit_bytes=memory_limit_bytes)
    shared = SharedRecords(dataset=dataset, fraction=section.fraction)
    if study.privacy is None:
        shared.check_enough(min(study.training.batch_size, num_own))
    return shared
