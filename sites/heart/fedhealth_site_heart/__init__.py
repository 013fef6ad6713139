"""The four UCI heart-disease hospitals, as a fedhealth site package."""
