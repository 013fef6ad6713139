"""Differentially private training steps: per-patient clipping, Poisson sampling, noise."""
