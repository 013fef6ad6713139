"""Hospitals of the registered protocol, and the changed ones of its controls. Test patients are fixed per seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fedhealth_site_synthetic.generate import make_hospital, make_patient
from fedhealth_site_synthetic.latents import EFFECT
from fedhealth_site_synthetic.options import SyntheticOptions
from fedhealth_site_synthetic.records import MARKER_LIMITS
from joining_cells.protocol import CohortName, make_study, read_protocol, settings_of
from privacy_utility import Hospital, in_memory

from fedhealth import plugins
from fedhealth.config.study import Study
from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import SplitName
from fedhealth.data.split import split_patients


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """How the generated hospitals differ from the registered ones.

    Attributes:
        without_volumes: hospitals (0..5) that have no image at all.
        flipped: hospitals whose fifth marker has the opposite sign.
        mirrored: hospital and marker whose values have the opposite sign there.
        is_additive: labels drawn anew from the two effects without their product.
        has_permuted_labels: labels of training and validation patients shuffled within each hospital.
        has_permuted_test: the labels of held-out patients too, among themselves.
        is_one_population: all hospitals' patients come from one hospital.
    """

    without_volumes: frozenset[int] = frozenset()
    flipped: frozenset[int] = frozenset()
    mirrored: frozenset[tuple[int, str]] = frozenset()
    is_additive: bool = False
    has_permuted_labels: bool = False
    has_permuted_test: bool = False
    is_one_population: bool = False


REGISTERED = Variant()


def load(
    cohort: CohortName, seed: int, folder: Path, variant: Variant = REGISTERED
) -> list[Hospital]:
    """All hospitals of one seed, every patient on a fixed side."""
    protocol = read_protocol()
    first = next(iter(settings_of(protocol).values()))
    study = make_study(cohort, first, seed=seed, epsilon=None)
    rules = protocol["cohorts"][cohort]
    if cohort == "heart":
        return [_heart(name, size, study, folder) for name, size in rules["declared"].items()]
    if variant.is_one_population:
        return _dealt(rules, seed, study, folder)
    return [
        _generated(index, size, rules, seed, study, folder, variant)
        for index, size in enumerate(rules["train"])
    ]


def pooled(hospitals: Sequence[Hospital]) -> Hospital:
    """One party with everybody, on the sides that they have at their hospitals, in the hospitals' order."""
    patients: list[Patient] = []
    sides: dict[str, SplitName] = {}
    for hospital in hospitals:
        fixed = hospital.cohort.fixed_split or {}
        for patient in hospital.cohort.patients:
            name = f"{hospital.name}/{patient.patient_id}"
            patients.append(replace(patient, patient_id=name))
            sides[name] = fixed[patient.patient_id]
    cohort = replace(hospitals[0].cohort, patients=tuple(patients), fixed_split=sides)
    return Hospital(name="pooled", train_size=sum(h.train_size for h in hospitals), cohort=cohort)


def with_study(hospital: Hospital, study: Study) -> Hospital:
    """The same patients under the contract of a study that reads fewer modalities."""
    contract = study.data.to_contract(seed=study.seed)
    return replace(hospital, cohort=replace(hospital.cohort, contract=contract))


def _heart(name: str, size: int, study: Study, folder: Path) -> Hospital:
    make = plugins.load("fedhealth.sites", "heart")
    package = make(
        data_dir=folder / name, options={"hospital": name}, cache_dir=folder / f"{name}-cache"
    )
    cohort: Cohort = package.load_cohort(study.data.to_contract(seed=study.seed))
    sides = {p.patient_id: side for side, group in split_patients(cohort).items() for p in group}
    return Hospital(name=name, train_size=size, cohort=replace(cohort, fixed_split=sides))


def _generated(  # noqa: PLR0917 - the facts of one hospital
    index: int,
    size: int,
    rules: dict[str, Any],
    seed: int,
    study: Study,
    folder: Path,
    variant: Variant,
) -> Hospital:
    num_validation = max(4, round(size * rules["validation_share"]))
    options = SyntheticOptions(
        site_index=index,
        num_sites=len(rules["train"]),
        num_patients=size + num_validation + rules["test"],
        size=rules["size"],
        seed=seed,
        flipped_marker=index in variant.flipped,
    )
    patients = _patients(options, study, folder / f"{seed}-{index}")
    if variant.is_additive:
        patients = _relabelled(patients, _additive_label(options))
    for where, marker in variant.mirrored:
        if where == index:
            patients = _mirrored(patients, marker, study)
    if index in variant.without_volumes:
        patients = tuple(replace(patient, volumes={}) for patient in patients)
    if variant.has_permuted_labels:
        patients = _permuted(patients, slice(0, size + num_validation), seed)
    if variant.has_permuted_test:
        patients = _permuted(patients, slice(size + num_validation, None), seed)
    return _sided(f"hospital-{index + 1}", patients, size, num_validation, study)


def _dealt(rules: dict[str, Any], seed: int, study: Study, folder: Path) -> list[Hospital]:
    """One large hospital's patients dealt out in turn: hospitals that do not differ."""
    num_sites, size = len(rules["train"]), sum(rules["train"]) // len(rules["train"])
    num_validation = round(size * rules["validation_share"])
    each = size + num_validation + rules["test"]
    options = SyntheticOptions(
        site_index=0, num_sites=1, num_patients=each * num_sites, size=rules["size"], seed=seed
    )
    patients = _patients(options, study, folder / f"{seed}-all")
    return [
        _sided(f"hospital-{i + 1}", patients[i::num_sites], size, num_validation, study)
        for i in range(num_sites)
    ]


def _patients(options: SyntheticOptions, study: Study, folder: Path) -> tuple[Patient, ...]:
    make = plugins.load("fedhealth.sites", "synthetic")
    package = make(
        data_dir=folder / "data", options=options.model_dump(), cache_dir=folder / "cache"
    )
    cohort: Cohort = package.load_cohort(study.data.to_contract(seed=study.seed))
    return in_memory(cohort).patients


def _sided(
    name: str, patients: tuple[Patient, ...], size: int, num_validation: int, study: Study
) -> Hospital:
    ends = (size, size + num_validation)
    sides = {
        patient.patient_id: SplitName.TRAIN
        if number < ends[0]
        else SplitName.VALIDATION
        if number < ends[1]
        else SplitName.TEST
        for number, patient in enumerate(patients)
    }
    contract = study.data.to_contract(seed=study.seed)
    cohort = Cohort(contract=contract, patients=patients, fixed_split=sides)
    return Hospital(name=name, train_size=size, cohort=cohort)


def _relabelled(
    patients: tuple[Patient, ...], label_of: Callable[[int], int]
) -> tuple[Patient, ...]:
    return tuple(replace(patient, label=label_of(n)) for n, patient in enumerate(patients))


def _mirrored(patients: tuple[Patient, ...], marker: str, study: Study) -> tuple[Patient, ...]:
    """One marker mirrored about the middle of its limits, as the generator itself can do with the fifth."""
    (table,) = study.data.to_contract(seed=study.seed).tables
    column, mirror = [c.name for c in table.columns].index(marker), sum(MARKER_LIMITS)

    def flipped(patient: Patient) -> Patient:
        values = patient.tables[table.name].copy()
        values[column] = mirror - values[column]
        return replace(patient, tables={**patient.tables, table.name: values})

    return tuple(flipped(patient) for patient in patients)


def _additive_label(options: SyntheticOptions) -> Callable[[int], int]:
    """Labels from the patient's own latents, without the product of burden and risk."""
    hospital = make_hospital(options)
    rng = np.random.default_rng([options.seed, 7, options.site_index])

    def label(number: int) -> int:
        patient = make_patient(options, hospital, number)
        logit = hospital.bias + EFFECT * (patient.burden + patient.risk)
        return int(rng.random() < 1 / (1 + np.exp(-logit)))

    return label


def _permuted(patients: tuple[Patient, ...], some: slice, seed: int) -> tuple[Patient, ...]:
    """Labels of some patients shuffled among them."""
    labels = [patient.label for patient in patients]
    chosen = labels[some]
    order = np.random.default_rng([seed, 8, len(chosen)]).permutation(len(chosen))
    labels[some] = [chosen[number] for number in order]
    return _relabelled(patients, lambda number: labels[number])
