"""study.yaml, site.yaml and server.yaml as pydantic models."""
