"""Write one hospital's generated cohort as real files: `cohort.csv` and `t1/<patient>.nii.gz`.

Every patient has a random stream of their own, keyed by seed, site and patient number, so the files are the
same byte for byte at every run, and the first patients stay the same when more are asked for.
"""

import csv
import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.nifti1 import header_dtype

from fedhealth_site_synthetic.latents import bias_for, disease_logit, ladder, site_prevalence
from fedhealth_site_synthetic.options import SyntheticOptions
from fedhealth_site_synthetic.outcomes import OUTCOME_COLUMNS, Outcomes, draw_outcomes
from fedhealth_site_synthetic.records import COLUMNS, RecordHabits, Row, draw_habits, draw_record
from fedhealth_site_synthetic.render import (
    Mask,
    Scanner,
    Volume,
    affine,
    draw_scanner,
    render_with_mask,
)

MODALITY_FOLDER = "t1"
MASK_FOLDER = "lesion"
COHORT_FILE = "cohort.csv"
IMAGE_MISSING_RANGE = (0.05, 0.40)
MARKER_MISSING_RANGE = (0.05, 0.30)

_SITE_STREAM = 0
_PATIENT_STREAM = 1
_OUTCOME_STREAM = 2
_STEPS_PER_UNIT = 1000
_MAX_INT16 = 32767

# The NIfTI-1 standard's own numbers, https://nifti.nimh.nih.gov/nifti-1
_HEADER_BYTES = 348
_INT16_CODE = 4
_UINT8_CODE = 2
_MILLIMETRES = 2
_SCANNER_COORDINATES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hospital:
    """What is peculiar to one generated hospital."""

    bias: float
    prevalence: float
    image_missing_rate: float
    scanner: Scanner
    habits: RecordHabits


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedPatient:
    """One patient, with the latents that no file holds; `image` is None where it is missing.

    `mask` and `outcomes` are there where the options ask for them.
    """

    patient_id: str
    burden: float
    risk: float
    label: int
    record: Row
    image: Volume | None
    mask: Mask | None = None
    outcomes: Outcomes | None = None


def generate(folder: Path, options: SyntheticOptions) -> None:
    """Write the cohort of one site.

    `cohort.csv` comes last: a folder without it is not complete, and writing it again gives the same bytes.

    Args:
        folder: made if need be; files of the same names are replaced.
        options: which site of which federation, how many patients, how large their images.
    """
    hospital = make_hospital(options)
    images = folder / MODALITY_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if options.imaging:
        images.mkdir(exist_ok=True)
    patients = []
    for number in range(options.num_patients):
        patient = make_patient(options, hospital, number)
        if patient.image is not None:
            path = images / f"{patient.patient_id}.nii.gz"
            path.write_bytes(nifti_bytes(patient.image, options.size))
        if patient.mask is not None:
            (folder / MASK_FOLDER).mkdir(exist_ok=True)
            path = folder / MASK_FOLDER / f"{patient.patient_id}.nii.gz"
            path.write_bytes(mask_bytes(patient.mask, options.size))
        patients.append(patient)
    (folder / COHORT_FILE).write_text(_csv_text(patients, options), encoding="utf-8", newline="")


def make_hospital(options: SyntheticOptions) -> Hospital:
    """The hospital of `site_index`: label shift and missing images from a ladder, the rest drawn."""
    rng = np.random.default_rng([options.seed, _SITE_STREAM, options.site_index])
    step = ladder(options.site_index, options.num_sites)
    prevalence = site_prevalence(options.site_index, options.num_sites)
    return Hospital(
        bias=bias_for(prevalence),
        prevalence=prevalence,
        image_missing_rate=_between(IMAGE_MISSING_RANGE, step),
        scanner=draw_scanner(rng),
        habits=draw_habits(
            rng,
            missing_rate=_between(MARKER_MISSING_RANGE, 1.0 - step),
            flipped_marker=options.flipped_marker,
        ),
    )


def make_patient(options: SyntheticOptions, hospital: Hospital, number: int) -> GeneratedPatient:
    """Patient `number` of the hospital, with an image unless it is missing."""
    rng = np.random.default_rng([options.seed, _PATIENT_STREAM, options.site_index, number])
    burden, risk = rng.standard_normal(2)
    chance = 1.0 / (1.0 + np.exp(-disease_logit(burden, risk, hospital.bias)))
    label = int(rng.random() < chance)
    record = draw_record(rng, float(risk), hospital.habits)
    is_imaged = bool(rng.random() >= hospital.image_missing_rate)
    is_needed = options.lesion_masks or not options.records
    has_image = (is_imaged or is_needed) and options.imaging
    if not options.records:
        record = dict.fromkeys(record)
    image, mask = None, None
    if has_image:
        image, mask = render_with_mask(rng, float(burden), options.size, hospital.scanner)
    return GeneratedPatient(
        patient_id=f"s{options.site_index}-{number:05d}",
        burden=float(burden),
        risk=float(risk),
        label=label,
        record=record,
        image=image,
        mask=mask if options.lesion_masks else None,
        outcomes=_outcomes(options, hospital, number, float(burden), float(risk)),
    )


def _outcomes(
    options: SyntheticOptions, hospital: Hospital, number: int, burden: float, risk: float
) -> Outcomes | None:
    if not options.outcomes:
        return None
    rng = np.random.default_rng([options.seed, _OUTCOME_STREAM, options.site_index, number])
    return draw_outcomes(rng, burden=burden, risk=risk, bias=hospital.bias)


def nifti_bytes(image: Volume, size: int) -> bytes:
    """A `.nii.gz` file: int16 with a scale factor, as scanners write; no time stamp in it.

    Args:
        image: (size, size, size) float32.
        size: voxels a side, which fixes the affine.
    """
    stored = np.clip(np.rint(image * _STEPS_PER_UNIT), -_MAX_INT16, _MAX_INT16).astype("<i2")
    return _file(stored.tobytes(order="F"), _INT16_CODE, size, slope=1.0 / _STEPS_PER_UNIT)


def mask_bytes(mask: Mask, size: int) -> bytes:
    """A `.nii.gz` file of codes, (size, size, size) uint8, where `nifti_bytes` puts the image."""
    return _file(mask.tobytes(order="F"), _UINT8_CODE, size, slope=1.0)


def _file(voxels: bytes, type_code: int, size: int, *, slope: float) -> bytes:
    matrix = affine(size)
    header = np.zeros((), dtype=np.dtype(header_dtype).newbyteorder("<"))
    header["sizeof_hdr"] = _HEADER_BYTES
    header["dim"] = [3, size, size, size, 1, 1, 1, 1]
    header["datatype"], header["bitpix"] = type_code, 8 * len(voxels) // size**3
    header["pixdim"] = [1.0, *np.diag(matrix)[:3], 0.0, 0.0, 0.0, 0.0]
    header["vox_offset"] = _HEADER_BYTES + 4
    header["scl_slope"] = slope
    header["xyzt_units"] = _MILLIMETRES
    header["sform_code"] = _SCANNER_COORDINATES
    header["srow_x"], header["srow_y"], header["srow_z"] = matrix[:3]
    header["magic"] = b"n+1"
    payload = header.tobytes() + b"\0" * 4 + voxels
    return gzip.compress(payload, compresslevel=1, mtime=0)


def _csv_text(patients: list[GeneratedPatient], options: SyntheticOptions) -> str:
    added = OUTCOME_COLUMNS if options.outcomes else ()
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["patient_id", "label", *added, *COLUMNS])
    for patient in patients:
        cells = [_cell(patient.record[name]) for name in COLUMNS]
        known = patient.outcomes
        more = [] if known is None else [known.grade, f"{known.days:.1f}", known.progressed]
        writer.writerow([patient.patient_id, patient.label, *more, *cells])
    return buffer.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _between(limits: tuple[float, float], position: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * position
