"""Comparing models on held-out patients: intervals, tests, calibration, verdicts. numpy only, no files, no clock."""
