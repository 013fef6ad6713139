"""Small durable files: whole or not at all, private, one owner at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedhealth.durable import exclusive, read_json, write_atomically, write_json
from fedhealth.errors import TransportError


def test_a_file_is_replaced_in_one_step_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    previous = os.umask(0)
    try:
        write_atomically(path, b"one")
        write_atomically(path, b"two")
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]


def test_a_write_that_fails_leaves_the_old_content_and_no_remains(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"x")
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "state.json"]


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    (tmp_path / "link").symlink_to(target)
    write_atomically(tmp_path / "link", b"new")
    assert target.read_bytes() == b"untouched"


def test_json_reads_back_and_an_absent_file_is_empty(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2]}
    assert read_json(tmp_path / "absent.json") == {}


def test_a_lock_is_held_by_one_and_freed_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import sys, time; from pathlib import Path; from fedhealth.durable import exclusive\n"
        f"with exclusive(Path({str(path)!r}), what='x'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TransportError, match="FH-LOCK-001"), exclusive(path, what="site a"):
            pytest.fail("two hold it")
        holder.kill()
    with exclusive(path, what="site a"):
        pass
    with exclusive(path, what="site a"):
        pass


def test_only_simulations_let_writes_wait_for_the_disk_unsynced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedhealth import durable

    calls: list[int] = []
    monkeypatch.setattr(durable.os, "fsync", calls.append)
    with durable.without_sync():
        write_atomically(tmp_path / "made-up", b"x")
    assert calls == []
    write_atomically(tmp_path / "real", b"x")
    assert len(calls) == 2  # the file and its folder
    users = [
        f"{path.parent.name}/{path.name}"
        for path in Path(durable.__file__).parent.rglob("*.py")
        if "without_sync" in path.read_text("utf-8") and path.name != "durable.py"
    ]
    assert set(users) == {
        "simulation/simulate.py",
        "simulation/ray_hospital.py",
        "flower/simulated_server_app.py",
    }
