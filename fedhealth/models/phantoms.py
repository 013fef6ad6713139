"""Synthetic brains with lesions of known load, for pretraining an image encoder without any patient.

Called by `pretraining`. Anatomy is the public MNI152 average (`mni152/NOTICE.md`); position, contrast, lesions
and scanner are drawn anew for every phantom, wider than any real scanner, so that an encoder learns what does
not depend on them (Billot et al. 2023, "SynthSeg", section 3.2: domain randomisation).

Shape legend: B phantoms, K lesions, N voxels a side.
"""

from dataclasses import dataclass, field
from importlib.resources import as_file, files

import nibabel as nib
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

FIELD_OF_VIEW_MM = 240.0
MAX_LESIONS = 3
LOG_LOAD_STD = 0.9
"""Of the target: log of the total lesion volume, normal with mean 0."""

LESION_SIGMA_MM = 13.0
"""Gaussian width of a single lesion of log load 0, before a random factor of 0.9 to 1.1."""

_WHITE_MATTER_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The template at 64 voxels a side, brightest voxel 1, and where lesions may sit.

    Attributes:
        image: (1, 1, 64, 64, 64) float32.
        lesion_sites: (P, 3) float32, white-matter voxel centres in [-1, 1] of the field of view, i, j, k.
    """

    image: Tensor = field(repr=False)
    lesion_sites: Tensor = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placement:
    """Where B brains lie in the field of view: factors and shifts (B, 3), in units of half of it."""

    scale: Tensor
    shift: Tensor


def read_anatomy() -> Anatomy:
    """Read the template and the white-matter map that ship with the package."""
    image, white_matter = _read("t1_64.nii.gz"), _read("wm_64.nii.gz")
    points = (white_matter > _WHITE_MATTER_THRESHOLD * white_matter.max()).nonzero()
    return Anatomy(
        image=(image / image.max())[None, None],
        lesion_sites=2 * (points.float() + 0.5) / image.shape[0] - 1,
    )


def draw_phantoms(
    anatomy: Anatomy, count: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw B phantoms.

    Args:
        anatomy: from `read_anatomy`.
        count: B.
        size: N, a divisor of 64.
        generator: CPU generator; the same state gives the same phantoms.

    Returns:
        Volumes (B, 1, N, N, N) float32, z-scored each, and the log lesion load (B,) float32.
    """
    log_load = LOG_LOAD_STD * torch.randn(count, generator=generator)
    placement = _Placement(
        scale=_uniform(generator, 0.92, 1.08, count, 3),
        shift=_uniform(generator, -0.05, 0.05, count, 3),
    )
    tissue = _placed(anatomy.image, size, placement)
    contrast = _uniform(generator, 0.8, 1.25, count)[:, None, None, None]
    lesions = _lesions(anatomy, placement, log_load, size, generator)
    scanned = _scan(tissue.clamp_min(1e-6) ** contrast + lesions, generator)
    flat = scanned.flatten(1)
    std, mean = torch.std_mean(flat, dim=1, keepdim=True)
    return ((flat - mean) / std).reshape(count, 1, size, size, size), log_load


def _placed(image: Tensor, size: int, placement: _Placement) -> Tensor:
    """(B, N, N, N): the template scaled and shifted along each axis, linearly interpolated."""
    small = torch.nn.functional.avg_pool3d(image, image.shape[-1] // size)
    scale, shift = placement.scale, placement.shift
    count = len(scale)
    theta = torch.zeros(count, 3, 4)
    # grid_sample's coordinates are (k, j, i), and it asks where each output voxel comes from.
    theta[:, range(3), range(3)] = (1 / scale).flip(1)
    theta[:, :, 3] = (-shift / scale).flip(1)
    grid = affine_grid(theta, [count, 1, size, size, size], align_corners=False)
    return grid_sample(small.expand(count, -1, -1, -1, -1), grid, align_corners=False)[:, 0]


def _lesions(
    anatomy: Anatomy,
    placement: _Placement,
    log_load: Tensor,
    size: int,
    generator: torch.Generator,
) -> Tensor:
    """(B, N, N, N): one to three Gaussians in white matter, whose volumes add up to the load."""
    count = len(log_load)
    shares_BK = _shares(count, generator)  # noqa: N806 - shape suffix
    rows = torch.randint(len(anatomy.lesion_sites), (count, MAX_LESIONS), generator=generator)
    centres = anatomy.lesion_sites[rows] * placement.scale[:, None] + placement.shift[:, None]
    volumes_BK = shares_BK * log_load.exp()[:, None]  # noqa: N806
    width = 2 * LESION_SIGMA_MM / FIELD_OF_VIEW_MM * _uniform(generator, 0.9, 1.1, count, 1)
    sigmas_BK = (width * volumes_BK ** (1 / 3)).clamp_min(1e-4)  # noqa: N806
    edges = torch.linspace(-1, 1, size + 1)
    reach = (edges - centres[..., None]) / (sigmas_BK[..., None, None] * 2**0.5)
    # The mean of a Gaussian over each voxel, in closed form: a lesion smaller than a voxel keeps its volume.
    height = sigmas_BK[..., None, None] * (torch.pi / 2) ** 0.5 * size / 2
    profiles = height * torch.erf(reach).diff(dim=-1)
    amplitude = _uniform(generator, 1.2, 1.8, count, 1) * (shares_BK > 0)
    return torch.einsum(
        "bk,bki,bkj,bkl->bijl", amplitude, profiles[:, :, 0], profiles[:, :, 1], profiles[:, :, 2]
    )


def _shares(count: int, generator: torch.Generator) -> Tensor:
    """(B, K) shares of the load, Dirichlet(3, ...) over one to three lesions, 0 for the others."""
    # A Gamma(3) variable is the sum of three exponential ones.
    draws = torch.rand(count, MAX_LESIONS, 3, generator=generator).clamp_min(1e-12)
    gammas = -draws.log().sum(dim=-1)
    numbers = torch.randint(1, MAX_LESIONS + 1, (count, 1), generator=generator)
    gammas = gammas * (torch.arange(MAX_LESIONS) < numbers)
    return gammas / gammas.sum(dim=1, keepdim=True)


def _scan(image: Tensor, generator: torch.Generator) -> Tensor:
    """What a scanner adds: blur, gamma, bias field, noise (gain is undone by the z-score)."""
    count, size = image.shape[:2]
    blur_voxels = _uniform(generator, 0.0, 4.0, count) * size / FIELD_OF_VIEW_MM
    side = (0.5 * blur_voxels**2).clamp_max(1 / 3)[:, None, None, None]
    for axis in (1, 2, 3):
        neighbours = image.roll(1, axis) + image.roll(-1, axis)
        image = (1 - 2 * side) * image + side * neighbours
    gamma = _uniform(generator, 0.65, 1.35, count)[:, None, None, None]
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    slope = direction * _uniform(generator, 0.0, 0.6, count, 1)
    axis_values = torch.linspace(-0.5, 0.5, size)
    ramp = (
        slope[:, 0, None, None, None] * axis_values[:, None, None]
        + slope[:, 1, None, None, None] * axis_values[:, None]
        + slope[:, 2, None, None, None] * axis_values
    )
    noise = torch.randn(image.shape, generator=generator)
    level = _uniform(generator, 0.03, 0.14, count)[:, None, None, None]
    return (1 + ramp) * image**gamma + level * noise


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _read(name: str) -> Tensor:
    with as_file(files("fedhealth.models") / "mni152" / name) as path:
        values = nib.Nifti1Image.from_filename(path).get_fdata()
    return torch.from_numpy(values).float()
