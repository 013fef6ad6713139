"""fedhealth site package `heart`: the four UCI heart-disease hospitals."""

from fedhealth_site_heart.flamby import flamby_pooled_train, flamby_split
from fedhealth_site_heart.site import HeartOptions, HeartSite, cohort_csv
from fedhealth_site_heart.tables import HOSPITALS, Hospital

__all__ = [
    "HOSPITALS",
    "HeartOptions",
    "HeartSite",
    "Hospital",
    "cohort_csv",
    "flamby_pooled_train",
    "flamby_split",
]
