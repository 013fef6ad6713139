"""The hospitals of a simulation: from site.yaml files, or several of one site package."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from fedhealth.config.load import load_site
from fedhealth.config.site import SiteConfig
from fedhealth.config.study import PluginChoice, Study
from fedhealth.contracts.data import SplitName
from fedhealth.data.split import split_patients
from fedhealth.errors import UsageError
from fedhealth.site.home import SiteHome
from fedhealth.site.sessions import site_package

INDEX: Final = "{index}"
NUM_SITES: Final = "{num_sites}"
DATA_FOLDER: Final = "generated-data"
"""In a simulation's folder. A name that nobody gives to a folder of real data: it is removed with the hospitals."""


def read_sites(files: Sequence[Path], folder: Path | None) -> list[SiteConfig]:
    """Hospitals from site.yaml files, named one by one or all `site-*.yaml` of a folder.

    Raises:
        UsageError: FH-USAGE-052 two have the same id, or the folder holds none.
        ConfigError: a file is wrong.
    """
    paths = [*files, *(sorted(folder.glob("site-*.yaml")) if folder is not None else [])]
    if folder is not None and not paths:
        raise UsageError(
            "FH-USAGE-052",
            f"{folder} holds no site-*.yaml.",
            fix="Name the files with --site, or generate hospitals with --num-sites and --package.",
        )
    configs = [load_site(path) for path in paths]
    require_distinct(configs)
    return configs


def require_distinct(sites: Sequence[SiteConfig]) -> None:
    """Raises UsageError FH-USAGE-052 when two hospitals have the same id."""
    names = [config.site_id for config in sites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            "FH-USAGE-052",
            f"two hospitals are called {', '.join(twice)}.",
            fix="Give each site.yaml a site_id of its own.",
        )


def generated_sites(
    study: Study,
    folder: Path,
    *,
    package: str,
    num_sites: int,
    options: Mapping[str, object],
    train_size: int | None = None,
) -> list[SiteConfig]:
    """Several hospitals of one site package, `hospital-1` and so on.

    Args:
        study: what their cohorts have to hold.
        folder: their data goes to `generated-data/<site id>` in it.
        package: a site package by its entry point.
        num_sites: how many.
        options: the package's options; in a text, ``{index}`` is the hospital's number from 0 and ``{num_sites}``
            how many there are, and a text that is one of them alone becomes the number.
        train_size: what each declares; None counts its training patients (loads every cohort once).

    Raises:
        ConfigError: the package is not installed or refuses its options.
        SiteDataError: a cohort does not keep the data contract.
    """
    sites = []
    for index in range(num_sites):
        site_id = f"hospital-{index + 1}"
        filled = {
            name: _filled(value, index=index, num_sites=num_sites)
            for name, value in options.items()
        }
        data_dir = (folder / DATA_FOLDER / site_id).absolute()
        declared = train_size or _count(study, package, filled, data_dir)
        sites.append(
            SiteConfig(
                schema_version=1,
                site_id=site_id,
                package=PluginChoice(name=package, options=filled),
                data_dir=data_dir,
                declared_train_size=declared,
                isolation="off",
            )
        )
    return sites


def _filled(value: object, *, index: int, num_sites: int) -> object:
    if not isinstance(value, str):
        return value
    if value in {INDEX, NUM_SITES}:
        return index if value == INDEX else num_sites
    return value.replace(INDEX, str(index)).replace(NUM_SITES, str(num_sites))


def _count(study: Study, package: str, options: dict[str, object], data_dir: Path) -> int:
    """Training patients of a cohort: where nobody is real, the number hides nothing."""
    home = SiteHome(data_dir.parent / f".{data_dir.name}")
    made = site_package(home, package, options, data_dir)
    sides = split_patients(made.load_cohort(study.data.to_contract(seed=study.seed)))
    return max(1, len({patient.patient_id for patient in sides[SplitName.TRAIN]}))


def parse_options(texts: Sequence[str]) -> dict[str, object]:
    """KEY=VALUE as of a command line; numbers, true and false are what YAML reads them as.

    Raises:
        UsageError: FH-USAGE-053 no such pair, or a value that is no plain one.
    """
    options: dict[str, object] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise _no_pair(text)
        options[name] = value if "{" in value else _plain(text, value)
    return options


def _plain(text: str, value: str) -> object:
    try:
        loaded = yaml.safe_load(value)
    except yaml.YAMLError:
        raise _no_pair(text) from None
    if not isinstance(loaded, str | int | float | bool):
        raise _no_pair(text)
    return loaded


def _no_pair(text: str) -> UsageError:
    return UsageError(
        "FH-USAGE-053",
        f"--option {text!r} is not KEY=VALUE with a plain value.",
        fix="For example --option num_patients=120.",
    )
