"""Options of the site package `synthetic`: `package.options` of site.yaml."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fedhealth.config.base import ConfigModel


class SyntheticOptions(ConfigModel):
    """Which hospital of which generated federation this site is."""

    site_index: int = Field(0, ge=0, lt=1000, description="Which hospital: 0 .. num_sites - 1.")
    num_sites: int = Field(3, ge=1, le=1000, description="Hospitals in the federation.")
    num_patients: int = Field(120, ge=1, le=100_000, description="Patients at this hospital.")
    size: Literal[16, 32, 64] = Field(32, description="Voxels a side of the 240 mm field of view.")
    seed: int = Field(0, ge=0, lt=2**31, description="Same seed, same files.")
    imaging: bool = Field(True, description="false: a hospital without any image.")
    records: bool = Field(
        True, description="false: a hospital without any health record; every patient has an image."
    )
    outcomes: bool = Field(
        False,
        description="true: cohort.csv also has grade, days and progressed (other things to predict).",
    )
    lesion_masks: bool = Field(
        False,
        description="true: lesion/ holds a mask for each patient; every patient has an image.",
    )
    flipped_marker: bool = Field(
        False, description="true: marker_5 has the opposite sign here (concept shift)."
    )

    @model_validator(mode="after")
    def _index_within(self) -> Self:
        if self.site_index >= self.num_sites:
            raise ValueError("site_index is 0 .. num_sites - 1")
        if not (self.imaging or self.records):
            raise ValueError("imaging and records are both false: patients would have nothing")
        if self.lesion_masks and not self.imaging:
            raise ValueError("lesion_masks without imaging: masks are drawn on images")
        return self
