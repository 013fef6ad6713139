"""The reports of the example runs, byte for byte.

After a wanted change: ``FEDHEALTH_UPDATE_GOLDEN=1 pytest tests/golden/test_report.py``, and look at the pages.
"""

import os
from pathlib import Path

import pytest

from fedhealth.report.write import write_round
from fedhealth.testing.example_rounds import example_run, masked_run

GOLDEN = Path(__file__).parent
TITLE = "Heart failure after infarction: imaging and records"
RUNS = {"report": example_run, "masked": masked_run}


@pytest.mark.parametrize("name", RUNS)
def test_same_records_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    for record in RUNS[name]():
        write_round(tmp_path, record, study_title=TITLE)
    golden = GOLDEN / name
    if os.environ.get("FEDHEALTH_UPDATE_GOLDEN") == "1":
        golden.mkdir(exist_ok=True)
        for path in tmp_path.iterdir():
            (golden / path.name).write_bytes(path.read_bytes())
    new = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    old = {path.name: path.read_bytes() for path in golden.iterdir()}
    assert set(new) == set(old)
    assert [name for name in new if new[name] != old[name]] == []
