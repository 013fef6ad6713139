"""Patients as torch batches. Called by local training and evaluation; models receive `Batch`.

Tables are encoded once. Volumes are read when a batch needs them and kept in memory up to a byte
limit, or encoded once and kept as embeddings. The order of patients in a batch, and the order of
batches, come from the caller, who owns the seed.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.data import DataContract, MaskLabel, TableModality, VolumeModality
from fedhealth.data.feature_cache import FeatureCache, content_key
from fedhealth.data.tables import TableEncoder, table_encoders
from fedhealth.data.targets import label_tensor, mask_indices, strata_of
from fedhealth.errors import SiteDataError

DEFAULT_MEMORY_LIMIT_BYTES = 1 << 30
"""1 GiB: 8192 volumes of 32^3, 1024 of 64^3. Beyond it they are read from the disk cache again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B patients. Every modality of the contract has its entries, in study order.

    A modality that a patient lacks is all zeros there and False in `present`.

    Attributes:
        tables: modality name -> (B, F) float32 features, see `TableEncoder`.
        missing: modality name -> (B, C) float32, 1 where the column's value is missing; all 1 if
            absent.
        volumes: modality name -> (B, 1, D, H, W) float32, z-scored; D, H, W are the contract's i,
            j, k. After `PatientDataset.encode_volumes`: (B, E) embeddings.
        present: modality name (table or volume) -> (B,) bool.
        labels: (B,) int64, index into the contract's `label_codes`; or, by the contract's `target`, (B, L) int64 of
            0 and 1, (B, 2) float32 time and event, or (B, D, H, W) uint8 indices into the mask's codes; of new
            patients (B,) `UNKNOWN_LABEL`.
    """

    tables: dict[str, Tensor] = field(repr=False)
    missing: dict[str, Tensor] = field(repr=False)
    volumes: dict[str, Tensor] = field(repr=False)
    present: dict[str, Tensor] = field(repr=False)
    labels: Tensor = field(repr=False)

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return Batch(
            tables=_to(self.tables, device),
            missing=_to(self.missing, device),
            volumes=_to(self.volumes, device),
            present=_to(self.present, device),
            labels=self.labels.to(device),
        )

    def take(self, rows: Tensor) -> "Batch":
        """The batch of some rows (R,) int64, in that order."""
        return Batch(
            tables=_take(self.tables, rows),
            missing=_take(self.missing, rows),
            volumes=_take(self.volumes, rows),
            present=_take(self.present, rows),
            labels=self.labels[rows],
        )

    def without(self, modalities: Collection[str]) -> "Batch":
        """The batch of patients who lack these modalities, whether they have them or not."""
        if not modalities:
            return self

        def emptied(tensors: dict[str, Tensor], value: float) -> dict[str, Tensor]:
            return {
                name: torch.full_like(tensor, value) if name in modalities else tensor
                for name, tensor in tensors.items()
            }

        return Batch(
            tables=emptied(self.tables, 0.0),
            missing=emptied(self.missing, 1.0),
            volumes=emptied(self.volumes, 0.0),
            present=emptied(self.present, 0.0),
            labels=self.labels,
        )

    def join(self, other: "Batch") -> "Batch":
        """The rows of this batch, then those of another of the same contract."""
        return Batch(
            tables=_join(self.tables, other.tables),
            missing=_join(self.missing, other.missing),
            volumes=_join(self.volumes, other.volumes),
            present=_join(self.present, other.present),
            labels=torch.cat([self.labels, other.labels]),
        )


class PatientDataset:
    """The patients of one side of a split, as batches.

    Args:
        patients: records that keep the contract; those with the same id are one patient.
        contract: the study's data contract.
        memory_limit_bytes: most bytes of volumes kept in memory; 0 keeps none.

    Raises:
        SiteDataError: FH-DATA-010 a patient has more records than the contract allows, FH-DATA-030 a table
            has another width, FH-DATA-031 a label is not in the contract, FH-DATA-060 a target is missing or wrong.
    """

    def __init__(
        self,
        patients: Sequence[Patient],
        contract: DataContract,
        *,
        memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
    ) -> None:
        self.table_encoders: dict[str, TableEncoder] = table_encoders(contract)
        self._contract = contract
        self._patients = tuple(patients)
        self._rows_of = _rows_by_patient(self._patients, contract)
        self._labels = label_tensor(self._patients, contract)
        self._tables: dict[str, Tensor] = {}
        self._missing: dict[str, Tensor] = {}
        self._present: dict[str, Tensor] = {}
        for table in contract.tables:
            self._encode(table)
        for volume in contract.volumes:
            flags = [volume.name in patient.volumes for patient in self._patients]
            self._present[volume.name] = torch.tensor(flags, dtype=torch.bool)
        self._volumes = _VolumeMemory(memory_limit_bytes)
        self._masks = _VolumeMemory(memory_limit_bytes)
        self._volume_rows = torch.arange(len(self._patients))
        self._embedded: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._patients)

    def __repr__(self) -> str:
        return f"PatientDataset(modalities={[m.name for m in self._contract.modalities]})"

    @property
    def labels(self) -> Tensor:
        """Labels of all records, in order, as in `Batch`; masks are read for it.

        Raises:
            SiteDataError: a mask cannot be read.
        """
        return self._labels_of(torch.arange(len(self)))

    @property
    def strata(self) -> Tensor:
        """(N,) int64: groups that resamples and folds keep together in their shares (code, event, or all 0)."""
        return strata_of(self._labels, self._contract.target)

    @property
    def num_patients(self) -> int:
        """Patients; `len` counts their records."""
        return len(self._rows_of)

    @property
    def modalities(self) -> frozenset[str]:
        """Modalities that at least one record has."""
        return frozenset(name for name, flags in self._present.items() if bool(flags.any()))

    def records_of(self, patients: Sequence[int] | NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """The records of some patients, and whose they are.

        Args:
            patients: P distinct positions in 0..num_patients-1, in order of first record.

        Returns:
            (R,) int64 positions for `batch`, and (R,) int64 owners in 0..P-1.
        """
        groups = [self._rows_of[int(patient)] for patient in patients]
        rows = [row for group in groups for row in group]
        owners = [owner for owner, group in enumerate(groups) for _ in group]
        return torch.tensor(rows, dtype=torch.int64), torch.tensor(owners, dtype=torch.int64)

    def batch(self, indices: Sequence[int] | NDArray[np.integer] | Tensor) -> Batch:
        """The batch of these patients, in this order; repeats are allowed, none gives B = 0.

        Args:
            indices: (B,) positions in 0..N-1, of any integer type.

        Raises:
            IndexError: a position is outside 0..N-1.
            SiteDataError: a volume cannot be read.
        """
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < len(self)):
            raise IndexError("a batch index is outside the dataset")
        return Batch(
            tables={name: values[rows] for name, values in self._tables.items()},
            missing={name: values[rows] for name, values in self._missing.items()},
            volumes={v.name: self._volumes_of(v, rows) for v in self._contract.volumes},
            present={m.name: self._present[m.name][rows] for m in self._contract.modalities},
            labels=self._labels_of(rows),
        )

    def take(self, indices: Sequence[int] | NDArray[np.integer] | Tensor) -> "PatientDataset":
        """These records only, in this order; volumes in memory are shared with this dataset.

        Args:
            indices: (K,) distinct positions in 0..N-1.
        """
        taken = copy.copy(self)
        taken._keep(torch.as_tensor(np.asarray(indices, dtype=np.int64)))  # noqa: SLF001 - own class
        return taken

    def encode_volumes(
        self,
        encoders: Mapping[str, Callable[[Tensor], Tensor]],
        *,
        batch_size: int,
        caches: Mapping[str, FeatureCache] | None = None,
    ) -> None:
        """From now on, `batch` gives these modalities as embeddings, each volume encoded once, here, or never again.

        Args:
            encoders: volume modality name -> from (B, 1, D, H, W) to (B, E), patient by patient.
            batch_size: patients an encoding.
            caches: volume modality name -> of this very encoder; without one, every volume is encoded.

        Raises:
            SiteDataError: a volume cannot be read.
        """
        if all(modality.name in encoders for modality in self._contract.volumes):
            self._volumes = _VolumeMemory(0)  # nobody reads a volume again
        for modality in self._contract.volumes:
            if modality.name not in encoders:
                continue
            encode = partial(self._encoded, modality, encoders[modality.name], batch_size)
            owners = self._present[modality.name].nonzero().squeeze(1)
            cache = (caches or {}).get(modality.name)
            self._embedded[modality.name] = (
                encode(owners)
                if cache is None
                else self._with_cache(cache, modality, owners, encode)
            )

    def _encoded(
        self,
        modality: VolumeModality,
        encoder: Callable[[Tensor], Tensor],
        batch_size: int,
        rows: Tensor,
    ) -> Tensor:
        """(N, E): embeddings in these rows, zeros in the others."""
        parts = [
            encoder(self._load_volumes(modality, some)).detach().cpu()
            for some in torch.split(rows, batch_size)
            if some.numel()
        ]
        nobody = torch.zeros((1, 1, *modality.shape))  # tells the width where no patient does
        width = (parts[0] if parts else encoder(nobody)).shape[1]
        embedded = torch.zeros((len(self), width), dtype=torch.float32)
        if parts:
            embedded[rows] = torch.cat(parts)
        return embedded

    def _with_cache(
        self,
        cache: FeatureCache,
        modality: VolumeModality,
        owners: Tensor,
        encode: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """(N, E) as `encode` of all owners gives, of which it sees only those whose content is not in the cache."""
        known = cache.load()
        keys = {
            row: content_key(self._patients[row].volumes[modality.name]) for row in owners.tolist()
        }
        new = torch.tensor(
            [row for row, key in keys.items() if key not in known], dtype=torch.int64
        )
        embedded = encode(new)
        for row, key in keys.items():
            if key in known:
                embedded[row] = torch.from_numpy(known[key].copy())
        if new.numel():
            entries = {key: embedded[row].numpy() for row, key in keys.items()}
            cache.store({**known, **entries}, used=entries)
        return embedded

    def _keep(self, rows: Tensor) -> None:
        self._patients = tuple(self._patients[row] for row in rows.tolist())
        self._rows_of = _rows_by_patient(self._patients, self._contract)
        self._labels = self._labels[rows]
        self._volume_rows = self._volume_rows[rows]
        self._tables, self._missing, self._present, self._embedded = (
            {name: values[rows] for name, values in named.items()}
            for named in (self._tables, self._missing, self._present, self._embedded)
        )

    def _encode(self, table: TableModality) -> None:
        encoder = self.table_encoders[table.name]
        present = np.array([table.name in p.tables for p in self._patients], dtype=bool)
        values = np.full((len(self._patients), encoder.num_columns), np.nan)
        for row, patient in enumerate(self._patients):
            if present[row]:
                values[row] = _checked_row(patient.tables[table.name], encoder)
        features, missing = encoder.encode(values)
        self._tables[table.name] = torch.from_numpy(features)
        self._missing[table.name] = torch.from_numpy(missing)
        self._present[table.name] = torch.from_numpy(present)

    def _labels_of(self, rows: Tensor) -> Tensor:
        target = self._contract.target
        if not isinstance(target, MaskLabel) or not self._contract.has_labels:
            return self._labels[rows]
        stack = torch.zeros((len(rows), *target.grid.shape), dtype=torch.uint8)
        for position, row in enumerate(rows.tolist()):
            mask = self._patients[row].target
            if mask is not None and not isinstance(mask, np.ndarray):
                key = (target.name, int(self._volume_rows[row]))
                stack[position] = self._masks.get(key, partial(mask_indices, mask, target))
        return stack

    def _volumes_of(self, modality: VolumeModality, rows: Tensor) -> Tensor:
        if modality.name in self._embedded:
            return self._embedded[modality.name][rows]
        return self._load_volumes(modality, rows)

    def _load_volumes(self, modality: VolumeModality, rows: Tensor) -> Tensor:
        stack = torch.zeros((len(rows), 1, *modality.shape), dtype=torch.float32)
        for position, row in enumerate(rows.tolist()):
            volume = self._patients[row].volumes.get(modality.name)
            if volume is not None:
                key = (modality.name, int(self._volume_rows[row]))
                stack[position, 0] = self._volumes.get(key, volume.load)
        return stack


class _VolumeMemory:
    """First come, first kept, up to a byte limit: every epoch visits every patient."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._kept: dict[tuple[str, int], Tensor] = {}

    def get(
        self, key: tuple[str, int], load: Callable[[], NDArray[np.float32] | NDArray[np.uint8]]
    ) -> Tensor:
        if key in self._kept:
            return self._kept[key]
        volume = torch.from_numpy(np.array(load()))
        size = volume.numel() * volume.element_size()
        if self._used_bytes + size <= self._limit_bytes:
            self._kept[key] = volume
            self._used_bytes += size
        return volume


def _rows_by_patient(
    patients: Sequence[Patient], contract: DataContract
) -> tuple[tuple[int, ...], ...]:
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient.patient_id, []).append(row)
    limit = contract.records_per_patient
    too_many = sum(len(group) > limit for group in rows.values())
    if too_many:
        raise SiteDataError(
            "FH-DATA-010",
            f"{too_many} patients have more than {limit} records.",
            why="A patient is the unit of privacy: the study says how many records one may have.",
            fix="Return no more records for a patient, or raise data.records_per_patient in study.yaml.",
        )
    return tuple(tuple(group) for group in rows.values())


def _checked_row(values: NDArray[np.float64], encoder: TableEncoder) -> NDArray[np.float64]:
    row = np.asarray(values, dtype=np.float64)
    encoder.encode(row)  # refuses a row of another width before numpy broadcasts it
    return row


def _take(tensors: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}


def _join(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


def _to(tensors: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
