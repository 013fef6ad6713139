from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedhealth.contracts.data import DataContract
from fedhealth.data import cohort_csv
from fedhealth.data.cohort_csv import read_cohort_csv
from fedhealth.errors import ExitCode, SiteDataError

HEADER = "patient_id,label,age,visits,stage\n"
SECRET = "DOE-JOHN"


def read(folder: Path, contract: DataContract, text: str | bytes) -> cohort_csv.CohortTable:
    path = folder / "cohort.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_cohort_csv(path, contract)


def refused(folder: Path, contract: DataContract, text: str | bytes) -> SiteDataError:
    with pytest.raises(SiteDataError) as caught:
        read(folder, contract, text)
    assert caught.value.exit_code is ExitCode.SITE_DATA
    assert caught.value.fix
    return caught.value


def test_a_clean_file_is_read_with_empty_cells_as_missing(
    folder: Path, contract: DataContract
) -> None:
    table = read(folder, contract, HEADER + "p1,0,61.5,3,2\np2,1,40,,\n")
    assert table.patient_ids == ("p1", "p2")
    assert table.labels.tolist() == [0, 1]
    expected = [[61.5, 3.0, 2.0], [40.0, np.nan, np.nan]]
    np.testing.assert_array_equal(table.tables["ehr"], expected)
    assert table.rows == (2, 3)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEADER + "p1,0,61.5,3,2\n",
        HEADER.replace("\n", "\r\n") + "p1,0,61.5,3,2\r\n",
        HEADER + " p1 , 0 , 61.5 , 3 , 2 \n",
        HEADER + '"p1","0","61.5","3","2"\n\n',
        "stage,age,visits,label,patient_id\n2,6.15e1,3.0,0,p1",
    ],
    ids=["byte order mark", "carriage returns", "blanks", "quotes and empty line", "other order"],
)
def test_harmless_ways_to_write_a_table_give_the_same_values(
    folder: Path, contract: DataContract, text: str
) -> None:
    np.testing.assert_array_equal(read(folder, contract, text).tables["ehr"], [[61.5, 3, 2]])


def test_columns_that_the_contract_does_not_name_are_ignored(
    folder: Path, contract: DataContract
) -> None:
    header = "name,ssn,name," + HEADER
    table = read(folder, contract, header + f"{SECRET},not a number,x,p1,0,61,3,2\n")
    assert set(table.tables) == {"ehr"}
    assert SECRET not in repr(table)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("FH-DATA-002", b"\xff\xfe" + HEADER.encode("utf-16")),
        ("FH-DATA-002", HEADER + 'p1,0,"61,3,2\n'),
        ("FH-DATA-002", HEADER + "p1,0," + "6" * 140_000 + ",3,2\n"),
        ("FH-DATA-003", HEADER.replace(",", ";") + "p1;0;61,5;3;2\n"),
        ("FH-DATA-003", HEADER.replace(",", "\t") + "p1\t0\t61.5\t3\t2\n"),
        ("FH-DATA-004", "patient_id,label,age,age,visits,stage\np1,0,61,61,3,2\n"),
        ("FH-DATA-005", "patient_id,label,age,visits\np1,0,61,3\n"),
        ("FH-DATA-006", HEADER + "p1,0,61,3,2\np2,0,61,3\n"),
        ("FH-DATA-006", HEADER + "p1,0,61,5,3,2\n"),
        ("FH-DATA-007", HEADER + "p1,0,61,3,2\n" + HEADER + "p2,0,61,3,2\n"),
        ("FH-DATA-008", HEADER),
        ("FH-DATA-008", ""),
        ("FH-DATA-009", HEADER + "../p1,0,61,3,2\n"),
        ("FH-DATA-009", HEADER + "/etc/passwd,0,61,3,2\n"),
        ("FH-DATA-009", HEADER + "..,0,61,3,2\n"),
        ("FH-DATA-009", HEADER + ",0,61,3,2\n"),
        ("FH-DATA-009", HEADER + "DOE^JOHN,0,61,3,2\n"),
        ("FH-DATA-010", HEADER + "p1,0,61,3,2\np1,1,62,3,2\n"),
        ("FH-DATA-011", HEADER + "p1,7,61,3,2\n"),
        ("FH-DATA-011", HEADER + "p1,,61,3,2\n"),
        ("FH-DATA-012", HEADER + "p1,0,unknown,3,2\n"),
        ("FH-DATA-012", HEADER + "p1,0,nan,3,2\n"),
        ("FH-DATA-012", HEADER + "p1,0,inf,3,2\n"),
        ("FH-DATA-012", HEADER + "p1,0,0x1f,3,2\n"),
        ("FH-DATA-012", HEADER + "p1,0,6_1,3,2\n"),
        ("FH-DATA-012", HEADER + "p1,0,٦١,3,2\n"),
        ("FH-DATA-013", HEADER + 'p1,0,"61,5",3,2\n'),
        ("FH-DATA-014", HEADER + "p1,0,121,3,2\n"),
        ("FH-DATA-014", HEADER + "p1,0,1e999,3,2\n"),
        ("FH-DATA-015", HEADER + "p1,0,61,3.5,2\n"),
        ("FH-DATA-016", HEADER + "p1,0,61,3,4\n"),
        ("FH-DATA-017", HEADER + "p1,0,,3,2\n"),
    ],
)
def test_a_broken_table_is_refused_with_its_code(
    folder: Path, contract: DataContract, code: str, text: str | bytes
) -> None:
    assert refused(folder, contract, text).code == code


def test_a_contract_may_allow_several_rows_of_a_patient(
    folder: Path, contract: DataContract
) -> None:
    several = replace(contract, records_per_patient=2)
    rows = "p1,0,61,3,2\np2,0,61,3,2\np1,1,62,3,2\n"
    assert read(folder, several, HEADER + rows).patient_ids == ("p1", "p2", "p1")
    assert refused(folder, several, HEADER + rows + "p1,0,63,3,2\n").code == "FH-DATA-010"


def test_no_file_is_refused_without_its_path(folder: Path, contract: DataContract) -> None:
    with pytest.raises(SiteDataError, match="FH-DATA-001") as caught:
        read_cohort_csv(folder / "cohort.csv", contract)
    assert str(folder) not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_beyond_the_limit_is_refused(
    folder: Path, contract: DataContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort_csv, "MAX_CSV_BYTES", 10)
    assert refused(folder, contract, HEADER).code == "FH-DATA-002"


def test_an_implausible_value_is_told_by_column_row_and_limits_only(
    folder: Path, contract: DataContract
) -> None:
    message = str(refused(folder, contract, HEADER + f"{SECRET},0,61,3,2\nq,1,987,3,2\n"))
    assert "'age'" in message
    assert "row 3" in message
    assert "0 to 120 years" in message
    assert "987" not in message
    assert SECRET not in message


def test_a_missing_column_is_named(folder: Path, contract: DataContract) -> None:
    assert "visits, stage" in str(refused(folder, contract, "patient_id,label,age\np1,0,61\n"))


def test_a_patient_in_two_rows_is_told_by_row_only(folder: Path, contract: DataContract) -> None:
    rows = f"{SECRET},0,61,3,2\np2,0,61,3,2\n{SECRET},1,62,3,2\n"
    message = str(refused(folder, contract, HEADER + rows))
    assert "rows 2, 4" in message
    assert SECRET not in message


def test_many_wrong_rows_are_counted_and_five_shown(folder: Path, contract: DataContract) -> None:
    rows = "".join(f"p{i},0,500,3,2\n" for i in range(9))
    message = str(refused(folder, contract, HEADER + rows))
    assert "9 values (rows 2, 3, 4, 5, 6, ...)" in message


def test_who_lacks_the_whole_block_may_lack_its_required_column(
    folder: Path, contract: DataContract
) -> None:
    table = read(folder, contract, HEADER + "p1,0,,,\np2,0,61,3,2\n")
    assert np.isnan(table.tables["ehr"][0]).all()
