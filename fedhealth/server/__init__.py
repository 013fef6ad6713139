"""Composition of the consortium."""
