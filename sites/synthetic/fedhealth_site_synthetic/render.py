"""Draw a brain with lesions as a hospital's scanner would show it. A pure function of its arguments.

The anatomy is the MNI152 average (`mni152/NOTICE.md`). Lesions are bright Gaussians in white matter whose
total volume, not number or place, carries the latent. What the scanner adds (gain, gamma, bias field, blur,
noise) differs between hospitals and tells nothing about the disease.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import as_file, files

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

FIELD_OF_VIEW_MM = 240.0
ORIGIN_MM = (-119.5, -137.5, -97.5)
"""RAS+ corner of the field of view: half a voxel before the first voxel centre of the template."""

SIZES = (16, 32, 64)
LOAD_PER_BURDEN = 0.9
"""Log of the lesion load for one standard deviation of burden."""

LESION_SIGMA_MM = 13.0
"""Of a single lesion at burden 0. At 16^3 (15 mm voxels) a small CNN must still see it."""

LESION_AMPLITUDE = 1.5
"""Relative to normal white matter."""

MASK_LEVEL = 0.5
"""Relative to normal white matter, before the scanner: a third of a lesion's peak, 4 times the most noise."""

_TEMPLATE_SIZE = 64
_OVERSAMPLING = 4
_SHIFT_MM = 3.0
_GAIN_JITTER = 0.05

Volume = NDArray[np.float32]
Mask = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """What one hospital's scanner does to every image.

    `bias` is the relative intensity change over the field of view along `bias_direction` (unit vector);
    `noise_std` is relative to normal white matter.
    """

    gain: float = 1.0
    gamma: float = 1.0
    noise_std: float = 0.05
    blur_mm: float = 0.0
    bias: float = 0.0
    bias_direction: tuple[float, float, float] = (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class _Anatomy:
    """Template at one size, intensity 1 = brightest, and white-matter points in mm."""

    image: Floats = field(repr=False)
    lesion_sites_mm: Floats = field(repr=False)


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """A scanner from the ranges that hospitals differ in."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    return Scanner(
        gain=float(rng.uniform(0.6, 2.0)),
        gamma=float(rng.uniform(0.7, 1.3)),
        noise_std=float(rng.uniform(0.04, 0.12)),
        blur_mm=float(rng.uniform(0.0, 3.0)),
        bias=float(rng.uniform(0.0, 0.5)),
        bias_direction=(float(direction[0]), float(direction[1]), float(direction[2])),
    )


def render_volume(
    rng: np.random.Generator, lesion_burden: float, size: int, scanner: Scanner
) -> Volume:
    """One patient's T1 image.

    Args:
        rng: draws number, place and share of lesions, position in the scanner, noise.
        lesion_burden: the latent, standard normal in the cohort; lesion volume is proportional to
            ``exp(LOAD_PER_BURDEN * lesion_burden)``.
        size: 16, 32 or 64 voxels a side over the same 240 mm; draws are the same at every size, but for noise.
        scanner: what the hospital's scanner adds.

    Returns:
        (size, size, size) float32, RAS+, not normalised: intensities are the scanner's own.

    Raises:
        ValueError: another size.
    """
    return render_with_mask(rng, lesion_burden, size, scanner)[0]


def render_with_mask(
    rng: np.random.Generator, lesion_burden: float, size: int, scanner: Scanner
) -> tuple[Volume, Mask]:
    """As `render_volume`, and which voxels are lesion: (size, size, size) uint8, 1 where it adds `MASK_LEVEL`."""
    if size not in SIZES:
        raise ValueError(f"size is one of {SIZES}, not {size}")
    anatomy = _anatomy(size)
    shift_mm = rng.uniform(-_SHIFT_MM, _SHIFT_MM, size=3)
    image = (1.0 + rng.uniform(-_GAIN_JITTER, _GAIN_JITTER)) * _shifted(anatomy.image, shift_mm)
    lesions = _lesions(rng, lesion_burden, anatomy, shift_mm)
    volume = _scan(rng, image + lesions, scanner)
    return volume, (lesions >= MASK_LEVEL).astype(np.uint8)


def affine(size: int) -> Floats:
    """(4, 4) voxel indices to RAS+ mm for one size."""
    spacing = FIELD_OF_VIEW_MM / size
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = np.asarray(ORIGIN_MM) + spacing / 2
    return matrix


def _lesions(
    rng: np.random.Generator, burden: float, anatomy: _Anatomy, shift_mm: Floats
) -> Floats:
    size = anatomy.image.shape[0]
    shares = rng.dirichlet(np.full(int(rng.integers(1, 4)), 3.0))
    points = rng.integers(0, len(anatomy.lesion_sites_mm), size=len(shares))
    lesions = np.zeros_like(anatomy.image)
    for share, point in zip(shares, points, strict=True):
        sigma = LESION_SIGMA_MM * (share * np.exp(LOAD_PER_BURDEN * burden)) ** (1 / 3)
        centre = anatomy.lesion_sites_mm[point] + shift_mm
        profiles = [
            _profile(c, sigma, size, start) for c, start in zip(centre, ORIGIN_MM, strict=True)
        ]
        lesions += np.einsum("i,j,k->ijk", *profiles)
    return LESION_AMPLITUDE * lesions


def _profile(centre_mm: float, sigma_mm: float, size: int, start_mm: float) -> Floats:
    """(size,) mean of a Gaussian over each voxel: a lesion smaller than a voxel keeps its total."""
    fine = size * max(_OVERSAMPLING, 4 * _TEMPLATE_SIZE // size)
    step = FIELD_OF_VIEW_MM / fine
    position = start_mm + step * (np.arange(fine) + 0.5)
    values = np.exp(-0.5 * ((position - centre_mm) / sigma_mm) ** 2)
    return np.asarray(values.reshape(size, -1).mean(axis=1))


def _shifted(image: Floats, shift_mm: Floats) -> Floats:
    """Shifted by less than a voxel along each axis, linearly interpolated (the border is background)."""
    for axis, shift in enumerate(shift_mm * image.shape[0] / FIELD_OF_VIEW_MM):
        fraction = abs(float(shift))
        image = (1 - fraction) * image + fraction * np.roll(image, int(np.sign(shift)), axis=axis)
    return image


def _scan(rng: np.random.Generator, image: Floats, scanner: Scanner) -> Volume:
    size = image.shape[0]
    axis = np.linspace(-0.5, 0.5, size)
    x, y, z = scanner.bias_direction
    ramp = x * axis[:, None, None] + y * axis[:, None] + z * axis
    image = _blurred(image, scanner.blur_mm * size / FIELD_OF_VIEW_MM)
    image = (1.0 + scanner.bias * ramp) * image**scanner.gamma
    noise = scanner.noise_std * rng.standard_normal(image.shape)
    return (scanner.gain * (image + noise)).astype(np.float32)


def _blurred(image: Floats, sigma_voxels: float) -> Floats:
    """Three-tap blur of the same variance as a Gaussian (sigma below one voxel)."""
    side = min(0.5 * sigma_voxels**2, 1 / 3)
    for axis in range(3):
        neighbours = np.roll(image, 1, axis=axis) + np.roll(image, -1, axis=axis)
        image = (1 - 2 * side) * image + side * neighbours
    return image


@lru_cache(maxsize=len(SIZES))
def _anatomy(size: int) -> _Anatomy:
    template, white_matter = _read("t1_64.nii.gz"), _read("wm_64.nii.gz")
    factor = _TEMPLATE_SIZE // size
    blocks = template.reshape(size, factor, size, factor, size, factor)
    spacing = FIELD_OF_VIEW_MM / _TEMPLATE_SIZE
    points = np.argwhere(white_matter > 0.5 * white_matter.max())
    sites_mm = np.asarray(ORIGIN_MM) + spacing * (points + 0.5)
    image = blocks.mean(axis=(1, 3, 5)) / template.max()
    image.flags.writeable = False
    sites_mm.flags.writeable = False
    return _Anatomy(image, sites_mm)


def _read(name: str) -> Floats:
    with as_file(files(__package__) / "mni152" / name) as path:
        loaded = nib.Nifti1Image.from_filename(path)
        return np.asarray(loaded.dataobj, dtype=np.float64)
