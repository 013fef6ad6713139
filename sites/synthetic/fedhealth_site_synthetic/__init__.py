"""Generated NIfTI + EHR cohort, as a fedhealth site package."""
