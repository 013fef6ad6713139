"""Plug-ins for the process tests."""
