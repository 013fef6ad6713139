"""Distributed differential privacy: each site adds a share of the noise before the sum is opened. Imports no torch."""
