"""fedhealth site package `synthetic`: generated NIfTI and EHR cohorts with a known Bayes ceiling."""

from fedhealth_site_synthetic.generate import generate
from fedhealth_site_synthetic.latents import BayesCeiling, bayes_ceiling
from fedhealth_site_synthetic.options import SyntheticOptions
from fedhealth_site_synthetic.render import Scanner, render_volume
from fedhealth_site_synthetic.site import SyntheticSite

__all__ = [
    "BayesCeiling",
    "Scanner",
    "SyntheticOptions",
    "SyntheticSite",
    "bayes_ceiling",
    "generate",
    "render_volume",
]
