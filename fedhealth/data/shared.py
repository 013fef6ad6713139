"""The study's public cohort, the same at every site, through an installed package. Called by training and `site check`.

What is shared must be public, or made up: it is no hospital's, every site has all of it, and no privacy accounting
covers it. Only options of the study reach the package, and a folder of its own: not the hospital's data folder.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fedhealth import plugins
from fedhealth.contracts.cohort import Cohort, SitePackage
from fedhealth.contracts.data import DataContract
from fedhealth.errors import ConfigError, SiteDataError

if TYPE_CHECKING:
    from fedhealth.config.study import SharedData

FOLDER = "shared_data"


def load_shared_cohort(shared: "SharedData", contract: DataContract, *, cache_dir: Path) -> Cohort:
    """All records of the shared cohort, whatever side of a split the package would put them on.

    Args:
        shared: section `training.shared_data` of the study.
        contract: the study's data contract, which this cohort keeps too.
        cache_dir: the site's; the package gets a folder in it for its data, one for each package and options.

    Raises:
        ConfigError: FH-CONFIG-042 the package is not installed here; or its options are wrong.
        SiteDataError: the cohort does not keep the contract, FH-DATA-070 it is empty.
    """
    made = _package(shared, cache_dir)
    cohort = made.load_cohort(contract)
    if not cohort.patients:
        raise SiteDataError(
            "FH-DATA-070",
            f"the shared cohort of package {shared.package!r} is empty.",
            why="The study mixes it into local training.",
            fix="Correct training.shared_data.options in the study.",
        )
    return cohort


def _package(shared: "SharedData", cache_dir: Path) -> SitePackage:
    try:
        factory = plugins.load("fedhealth.sites", shared.package)
    except ConfigError as error:
        raise ConfigError(
            "FH-CONFIG-042",
            f"the study's shared data needs site package {shared.package!r}, which does not load here.",
            why=f"{error.what} {error.why}",
            fix="Install that package where the worker runs: every site trains on the same shared records.",
        ) from error
    folder = cache_dir / FOLDER / _digest(shared)
    return cast(
        "SitePackage",
        factory(data_dir=folder, options=dict(shared.options), cache_dir=cache_dir),
    )


def _digest(shared: "SharedData") -> str:
    named = json.dumps([shared.package, dict(shared.options)], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:24]
