"""Signed statements and the site journal."""
