"""Differential privacy: mechanisms, their account, and the budget ledger of a site's data."""
