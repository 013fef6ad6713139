"""The site package `synthetic`: generate a cohort once, then read it like any hospital's."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from fedhealth.contracts.cohort import Cohort
from fedhealth.contracts.data import DataContract
from fedhealth.data.reader import COHORT_FILE, read_folder_cohort
from fedhealth.data.site_options import parse_site_options
from fedhealth.errors import SiteDataError
from fedhealth_site_synthetic.generate import generate
from fedhealth_site_synthetic.options import SyntheticOptions

OPTIONS_FILE = "generated.json"


class SyntheticSite:
    """One generated hospital.

    Args:
        data_dir: an empty folder, which is filled at the first load, or one that was filled with the same
            options. It may be read-only afterwards.
        options: see `SyntheticOptions`.
        cache_dir: private folder for volumes on the contract's grid.

    Raises:
        ConfigError: FH-CONFIG-041 an option is wrong.
    """

    def __init__(self, *, data_dir: Path, options: Mapping[str, object], cache_dir: Path) -> None:
        self._data_dir = data_dir
        self._options = parse_site_options(SyntheticOptions, options, package="synthetic")
        self._cache_dir = cache_dir

    def load_cohort(self, contract: DataContract) -> Cohort:
        """Generate if need be, then read with the generic reader.

        Raises:
            SiteDataError: as `read_folder_cohort`; FH-DATA-050 the folder holds something else, FH-DATA-051 it
                was filled with other options, FH-DATA-052 it cannot be written.
        """
        if not self._is_complete():
            self._fill()
        return read_folder_cohort(self._data_dir, contract, self._cache_dir)

    def load_new_patients(self, contract: DataContract) -> Cohort:
        """Patients to predict, from a folder in the generic layout. Raises as `read_folder_cohort`."""
        return read_folder_cohort(self._data_dir, contract, self._cache_dir)

    def _is_complete(self) -> bool:
        """Whether the folder holds the cohort of these options; refuses any folder that is not ours."""
        path = self._data_dir / OPTIONS_FILE
        if not path.exists():
            if self._data_dir.exists() and any(self._data_dir.iterdir()):
                raise SiteDataError(
                    "FH-DATA-050",
                    "the data folder of this generated hospital holds files that were not generated.",
                    why="They are left as they are: they could be real data.",
                    fix="Give the site package `synthetic` an empty data_dir.",
                )
            return False
        if not self._is_ours(path.read_text(encoding="utf-8")):
            raise SiteDataError(
                "FH-DATA-051",
                "the data folder holds a cohort that was generated with other options.",
                why="Its patients are not the ones that site.yaml asks for.",
                fix="Put the old options back, or empty the data folder.",
            )
        return (self._data_dir / COHORT_FILE).exists()

    def _is_ours(self, marker: str) -> bool:
        """Whether a folder was filled with these options; one of an older version has fewer of them."""
        try:
            return SyntheticOptions.model_validate_json(marker) == self._options
        except ValidationError:
            return False

    def _fill(self) -> None:
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            (self._data_dir / OPTIONS_FILE).write_text(self._marker(), encoding="utf-8")
            generate(self._data_dir, self._options)
        except OSError as error:
            raise SiteDataError(
                "FH-DATA-052",
                f"the generated cohort cannot be written ({type(error).__name__}).",
                why="A generated hospital fills its data folder at the first load.",
                fix="Let this account write to data_dir once, or generate the cohort beforehand with "
                "`python -m fedhealth_site_synthetic`.",
            ) from None

    def _marker(self) -> str:
        return json.dumps(self._options.model_dump(), sort_keys=True, indent=1) + "\n"


def write_site_folder(folder: Path, options: SyntheticOptions) -> None:
    """Fill a folder as the first load of `SyntheticSite` would. Raises as `SyntheticSite.load_cohort`."""
    site = SyntheticSite(data_dir=folder, options=options.model_dump(), cache_dir=folder)
    if not site._is_complete():  # noqa: SLF001 - same module
        site._fill()  # noqa: SLF001
