"""The four UCI files, read as they came. Called by `site` and `flamby`."""

import csv
import hashlib
import io
from importlib.resources import files
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import SiteDataError

Hospital = Literal["cleveland", "hungarian", "switzerland", "va"]
HOSPITALS: tuple[Hospital, ...] = get_args(Hospital)

COLUMNS = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
    "num",
)

_MD5 = {
    "cleveland": "2d91a8ff69cfd9616aa47b59d6f843db",
    "hungarian": "22e96bee155b5973568101c93b3705f6",
    "switzerland": "9a87f7577310b3917730d06ba9349e20",
    "va": "4249d03ca7711e84f4444768c9426170",
}
_MISSING = "?"


def read_table(hospital: Hospital) -> NDArray[np.float64]:
    """(N, 14) values in the order of `COLUMNS`, NaN where the file says ``?``.

    Raises:
        SiteDataError: FH-DATA-053 the installed file is not the published one.
    """
    payload = (files(__package__) / "uci" / f"processed.{hospital}.data").read_bytes()
    if hashlib.md5(payload, usedforsecurity=False).hexdigest() != _MD5[hospital]:
        raise SiteDataError(
            "FH-DATA-053",
            f"the installed file of {hospital} is not the one that UCI publishes.",
            why="Results on it could not be compared with anybody's.",
            fix="Reinstall fedhealth-site-heart.",
        )
    records = list(csv.reader(io.StringIO(payload.decode("ascii"))))
    return np.array(
        [[np.nan if cell == _MISSING else float(cell) for cell in record] for record in records]
    )
