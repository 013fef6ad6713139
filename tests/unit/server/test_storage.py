"""What the server keeps on disk: roster, checkpoints, and the updates of one round."""

from pathlib import Path

import numpy as np
import pytest

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import EvidenceError
from fedhealth.evidence.statements import RosterEntry
from fedhealth.server.checkpoint import (
    KEPT,
    Checkpoint,
    read_last_checkpoint,
    write_checkpoint,
    write_initial,
)
from fedhealth.server.home import RunFolder
from fedhealth.server.roster import Roster, RosterLine, read_roster, write_roster
from fedhealth.server.spool import Spool

TENSORS = {"z.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(4, np.float32)}
SPEC = TensorSpec.of(TENSORS)


def line(site_id: str, key: str, node_key: str) -> RosterLine:
    entry = RosterEntry(
        site_id=site_id,
        key_id=key * 64,
        signing_key="x",
        node_key_id=node_key * 64,
        train_size=10,
        modalities=(),
    )
    return RosterLine(entry=entry, node_key="k", state="admitted")


def test_the_roster_is_in_the_order_of_site_ids(tmp_path: Path) -> None:
    roster = Roster().admit(line("site-b", "1", "2")).admit(line("site-a", "3", "4"))
    write_roster(tmp_path / "roster.json", roster)
    again = read_roster(tmp_path / "roster.json")
    assert again == roster
    assert [admitted.entry.site_id for admitted in again.admitted] == ["site-a", "site-b"]
    assert read_roster(tmp_path / "absent.json").lines == ()


@pytest.mark.parametrize(
    "second",
    [
        line("site-a", "5", "6"),
        line("site-b", "1", "6"),
        line("site-b", "5", "2"),
        line("site-b", "2", "6"),
    ],
)
def test_an_id_or_a_key_that_is_known_is_refused_also_after_it_was_revoked(
    second: RosterLine,
) -> None:
    roster = Roster().admit(line("site-a", "1", "2"))
    for known in (roster, roster.revoke("site-a")):
        with pytest.raises(Exception, match="FH-USAGE-021"):
            known.admit(second)


@pytest.mark.parametrize("content", [b"", b"{", b'{"lines": 1}', b'{"lines": [], "x": 1}'])
def test_a_damaged_roster_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "roster.json").write_bytes(content)
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-020"):
        read_roster(tmp_path / "roster.json")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "main")
    write_initial(made, TENSORS)
    return made


def checkpoint(number: int) -> Checkpoint:
    vector = np.full(SPEC.num_elements, number, np.float32)
    state = {"momentum": np.full(3, number, np.float64)}
    return Checkpoint(round_number=number, spec=SPEC, vector=vector, strategy_state=state)


def test_the_initial_model_keeps_the_order_of_its_tensors(folder: RunFolder) -> None:
    found = read_last_checkpoint(folder)
    assert (found.round_number, found.spec) == (0, SPEC)
    np.testing.assert_array_equal(found.vector, SPEC.flatten(TENSORS))


def test_the_last_checkpoint_is_read_with_the_strategys_state(folder: RunFolder) -> None:
    for number in (1, 2, 3):
        write_checkpoint(folder, checkpoint(number))
    found = read_last_checkpoint(folder)
    assert (found.round_number, found.spec) == (3, SPEC)
    np.testing.assert_array_equal(found.vector, checkpoint(3).vector)
    np.testing.assert_array_equal(found.strategy_state["momentum"], np.full(3, 3.0))
    assert len(list(folder.checkpoints.iterdir())) == KEPT


def test_ten_thousand_rounds_are_in_order(folder: RunFolder) -> None:
    for number in (9_999, 10_000):
        write_checkpoint(folder, checkpoint(number))
    assert read_last_checkpoint(folder).round_number == 10_000


@pytest.mark.parametrize("name", ["meta.json", "model.safetensors", "strategy.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "garbage"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    folder: RunFolder, name: str, damage: str
) -> None:
    for number in (1, 2):
        write_checkpoint(folder, checkpoint(number))
    path = folder.checkpoints / "round-0002" / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-3] ^= 8
    made = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "flipped": bytes(flipped),
        "garbage": b'{"round_number": "x"}',
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(made[damage])
    if (name, damage) == ("meta.json", "flipped"):
        assert read_last_checkpoint(folder).round_number in {1, 2}
    else:
        assert read_last_checkpoint(folder).round_number == 1


def test_without_any_valid_model_the_run_is_refused(folder: RunFolder) -> None:
    folder.initial_model.write_bytes(b"x")
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-030"):
        read_last_checkpoint(folder)


def test_an_update_is_read_as_it_was_put_and_forgotten_after_the_round(folder: RunFolder) -> None:
    spool = Spool(folder.spool)
    vector = np.arange(10, dtype=np.float32)
    spool.put("site-1", vector)
    loaded = spool.load("site-1")
    np.testing.assert_array_equal(loaded, vector)
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 1
    spool.clear()
    assert list(folder.spool.iterdir()) == []
    assert folder.spool.stat().st_mode & 0o777 == 0o700


def test_a_new_round_begins_with_an_empty_spool(folder: RunFolder) -> None:
    Spool(folder.spool).put("site-1", np.zeros(1, np.float32))
    Spool(folder.spool)
    assert list(folder.spool.iterdir()) == []
