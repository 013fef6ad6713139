"""Versions that a support request needs, read from package metadata: nothing heavy is imported."""

from importlib.metadata import PackageNotFoundError, version

from fedhealth.config.study import SCHEMA_VERSION

PACKAGES = ("fedhealth", "flwr", "torch", "monai")


def versions() -> dict[str, str]:
    """Package versions (`not installed` where an extra is absent) and format versions."""
    from fedhealth.evidence.statements import Manifest
    from fedhealth.report.record import SCHEMA

    schemas = {
        "study": str(SCHEMA_VERSION),
        "manifest": Manifest.payload_type(),
        "round-record": SCHEMA,
    }
    installed = {name: _version(name) for name in PACKAGES}
    return installed | {f"schema {name}": version for name, version in schemas.items()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
