"""What the server remembers of each site's privacy ledger, so that a site can tell an old copy of it."""

from pathlib import Path

from fedhealth.durable import read_json, write_json
from fedhealth.evidence.statements import LedgerPlace


class LedgerPlaces:
    """The last place of each site's ledger that came with a verified contribution.

    Args:
        path: a small JSON file in the server's home.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places = {
            site_id: LedgerPlace.model_validate(place) for site_id, place in read_json(path).items()
        }

    def of(self, site_id: str) -> LedgerPlace | None:
        """The last place seen; None when none was."""
        return self._places.get(site_id)

    def has_fallen(self, site_id: str, place: LedgerPlace) -> bool:
        """Whether a site shows an earlier place than before, or another line at the same place: an old copy."""
        last = self._places.get(site_id)
        if last is None or place == last:
            return False
        return place.sequence <= last.sequence

    def saw(self, site_id: str, place: LedgerPlace) -> None:
        """Remember a place, durably, before the site is asked again."""
        if not self.has_fallen(site_id, place):
            self._places[site_id] = place
            write_json(
                self._path,
                {name: kept.model_dump(mode="json") for name, kept in self._places.items()},
            )
