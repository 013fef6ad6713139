"""From the options of `site init` to site.yaml."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from fedhealth.errors import UsageError
from fedhealth.site.enrolment import SiteSettings


def settings_from_options(
    site_id: str | None,
    package: str | None,
    options: Sequence[str],
    data_dir: Path | None,
    train_size: int | None,
    *,
    modalities: Sequence[str] = (),
    variant: str | None = None,
) -> SiteSettings | None:
    """All four facts, or None when none is given (the home has its site.yaml).

    Raises:
        UsageError: FH-USAGE-015 some are given and some not; FH-USAGE-016 an option is not NAME=VALUE.
    """
    facts = {
        "--site-id": site_id,
        "--package": package,
        "--data-dir": data_dir,
        "--train-size": train_size,
    }
    missing = [name for name, value in facts.items() if value is None]
    if len(missing) == len(facts) and not options and not modalities and variant is None:
        return None
    if site_id is None or package is None or data_dir is None or train_size is None:
        raise UsageError(
            "FH-USAGE-015",
            f"a new site needs {', '.join(missing)} too.",
            fix="Give all four, or none to use the site.yaml in the home.",
        )
    return SiteSettings(
        site_id=site_id,
        package=package,
        package_options=package_options(options),
        data_dir=data_dir.resolve(),
        train_size=train_size,
        modalities=tuple(modalities) or None,
        variant=variant,
    )


def package_options(options: Sequence[str]) -> dict[str, object]:
    """Options of a site package from NAME=VALUE. Raises UsageError (FH-USAGE-016)."""
    return dict(_parse(option) for option in options)


def _parse(option: str) -> tuple[str, object]:
    name, separator, value = option.partition("=")
    if not separator or not name:
        raise UsageError(
            "FH-USAGE-016", f"--option {option!r} is not NAME=VALUE.", fix="Write --option size=32."
        )
    return name, yaml.safe_load(value)
