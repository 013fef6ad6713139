"""Composition of a hospital."""
