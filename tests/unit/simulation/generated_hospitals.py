"""site.yaml files of small generated hospitals without images."""

from collections.abc import Sequence
from pathlib import Path

import yaml


def write_site_files(
    folder: Path, site_ids: Sequence[str], *, num_patients: int, train_size: int
) -> list[Path]:
    """One file a hospital, in the order of their numbers; data is generated below `folder`."""
    paths = []
    for index, site_id in enumerate(site_ids):
        options = {
            "site_index": index,
            "num_sites": len(site_ids),
            "num_patients": num_patients,
            "size": 16,
            "imaging": False,
        }
        said = {
            "schema_version": 1,
            "site_id": site_id,
            "package": {"name": "synthetic", "options": options},
            "data_dir": str(folder / "data" / site_id),
            "declared_train_size": train_size,
        }
        path = folder / f"site-{site_id}.yaml"
        path.write_text(yaml.safe_dump(said))
        paths.append(path)
    return paths
