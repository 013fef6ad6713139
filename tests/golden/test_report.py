"""The report of the example run, byte for byte.

After a wanted change: ``FEDHEALTH_UPDATE_GOLDEN=1 pytest tests/golden/test_report.py``, and look at the pages.
"""

import os
from pathlib import Path

import pytest

from fedhealth.report.write import write_round
from fedhealth.testing.example_rounds import example_run

GOLDEN = Path(__file__).parent / "report"
TITLE = "Heart failure after infarction: imaging and records"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    for record in example_run():
        write_round(folder, record, study_title=TITLE)
    if os.environ.get("FEDHEALTH_UPDATE_GOLDEN") == "1":
        for path in folder.iterdir():
            (GOLDEN / path.name).write_bytes(path.read_bytes())
    return folder


def test_same_records_give_the_same_bytes(written: Path) -> None:
    new = {path.name: path.read_bytes() for path in written.iterdir()}
    old = {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
    assert set(new) == set(old)
    assert [name for name in new if new[name] != old[name]] == []
