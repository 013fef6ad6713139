"""Frozen records and Protocols: the plug-in API (stdlib and numpy only)."""
