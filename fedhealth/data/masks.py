"""A patient's label volume, read when it is needed. Made by `reader`, called as `LazyMask`."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import MaskLabel
from fedhealth.data.grid import check_field_of_view, to_label_grid
from fedhealth.data.nifti import NiftiHeader, not_readable, read_header, read_voxels
from fedhealth.errors import SiteDataError

_SAME_PLACE_MM = 1e-2
"""Headers store affines as float32; converters round to 1e-3 mm."""


class NiftiMask:
    """One NIfTI file of codes as a `LazyMask`.

    Args:
        path: a `.nii` or `.nii.gz` file.
        label: name, codes and grid.
        row: the patient's row in `cohort.csv`, the only thing that messages tell about the patient.
    """

    __slots__ = ("_label", "_path", "_where")

    def __init__(self, path: Path, label: MaskLabel, *, row: int) -> None:
        self._path, self._label = path, label
        self._where = f"{label.name} mask of row {row}"

    def __repr__(self) -> str:
        return f"NiftiMask(name={self._label.name!r})"

    def check_header(self, image: Path | None) -> None:
        """Read the header only, and hold it against that of the image that the mask was drawn on.

        Without an image the field of view is held against the study's grid alone.

        Raises:
            SiteDataError: FH-DATA-020 to 023, 027 and 028, see `nifti` and `grid`; FH-DATA-062 the mask is not
                where the image is.
        """
        header = read_header(self._path, where=self._where)
        check_field_of_view(header.shape, header.affine, self._label.grid, where=self._where)
        if image is not None and not _same_place(header, read_header(image, where=self._where)):
            raise SiteDataError(
                "FH-DATA-062",
                f"the {self._where} has another grid than the {self._label.grid.name} volume of that row.",
                why="Both are cropped about their centres: masks would lie beside what they mark.",
                fix="Export the mask on the voxels of the image it was drawn on.",
            )

    def load(self) -> NDArray[np.uint8]:
        """The codes on the contract's grid, (i, j, k) uint8, nearest neighbour.

        Raises:
            SiteDataError: FH-DATA-020 to 024, 027 and 028, see `nifti` and `grid`; FH-DATA-063 a code outside the
                contract.
        """
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise not_readable(self._where, type(error).__name__) from None
        voxels, header = read_voxels(
            content, is_compressed=self._path.suffix == ".gz", where=self._where
        )
        unknown = int((~np.isin(voxels, self._label.codes)).sum())
        if unknown:
            raise SiteDataError(
                "FH-DATA-063",
                f"the {self._where} has {unknown} voxels outside the codes.",
                why=f"The contract's codes are {list(self._label.codes)}.",
                fix="Map the mask to these codes where it is exported.",
            )
        return to_label_grid(voxels, header.affine, self._label.grid, where=self._where)


def _same_place(mask: NiftiHeader, image: NiftiHeader) -> bool:
    return mask.shape == image.shape and bool(
        np.allclose(mask.affine, image.affine, atol=_SAME_PLACE_MM)
    )
