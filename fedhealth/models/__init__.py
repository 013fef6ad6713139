"""Encoders, fusion, heads and tasks."""
