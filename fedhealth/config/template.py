"""Study templates: the folders of `configs/`, which the wheel carries as `fedhealth/config/templates`."""

from pathlib import Path

from fedhealth.errors import ConfigError

_INSTALLED = Path(__file__).parent / "templates"
_CHECKOUT = Path(__file__).parents[2] / "configs"
STUDY_FILE = "study.yaml"


def template_names() -> list[str]:
    """Names of the templates, sorted."""
    return sorted(path.parent.name for path in _folder().glob(f"*/{STUDY_FILE}"))


def template_path(name: str) -> Path:
    """The study file of a template.

    Raises:
        ConfigError: FH-CONFIG-015 there is no such template.
    """
    if name not in template_names():
        raise ConfigError(
            "FH-CONFIG-015",
            f"there is no template {name!r}.",
            fix=f"Choose one of: {', '.join(template_names()) or 'none installed'}.",
        )
    return _folder() / name / STUDY_FILE


def _folder() -> Path:
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
