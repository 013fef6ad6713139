"""Child processes end, each of them, however their supervisor ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedhealth.supervision.children import KEPT_LOGS, Children, rotate
from fedhealth.supervision.ports import free_port, require_free_port

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
    " time.sleep(60)"
)
# A child that starts a grandchild, tells its pid and lets SIGTERM end itself only.
PARENT = (
    "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {grandchild!r}]);"
    " print(p.pid, flush=True); time.sleep(60)"
)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    made = Children(tmp_path / "logs")
    yield made
    made.end_all(grace_s=0.1)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_a_child_that_obeys_ends_with_its_own_code(children: Children) -> None:
    child = children.start("polite", python("import time; time.sleep(60)"))
    children.end(child)
    assert child.exit_code() == -signal.SIGTERM
    assert children.running() == []


def test_a_child_that_ignores_sigterm_is_killed(children: Children) -> None:
    child = children.start("stubborn", python(STUBBORN))
    until(lambda: "up" in child.log_tail())
    children.end(child, grace_s=0.2)
    assert child.exit_code() == -signal.SIGKILL
    assert not is_alive(child.pid)


@pytest.mark.parametrize("grandchild", [STUBBORN, "import time; time.sleep(60)"])
def test_what_a_child_started_ends_with_it(children: Children, grandchild: str) -> None:
    child = children.start("parent", python(PARENT.format(grandchild=grandchild)))
    until(lambda: any(word.isdigit() for word in child.log_tail().split()))
    pid = int(next(word for word in child.log_tail().split() if word.isdigit()))
    assert is_alive(pid)
    children.end(child, grace_s=0.5)
    until(lambda: not is_alive(pid))


def test_what_a_dead_child_left_behind_ends_too(children: Children) -> None:
    child = children.start("parent", python(PARENT.format(grandchild=STUBBORN)))
    until(lambda: "up" in child.log_tail())
    pid = int(next(line for line in child.log_tail().split() if line.isdigit()))
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: child.exit_code() is not None)
    assert is_alive(pid)
    children.end_all(grace_s=0.2)
    until(lambda: not is_alive(pid))


def test_kill_9_of_the_supervisor_ends_its_children(tmp_path: Path) -> None:
    script = (
        "import time; from pathlib import Path;"
        "from fedhealth.supervision.children import Children;"
        f"c = Children(Path({str(tmp_path)!r})).start('x', {python(STUBBORN)!r});"
        "print(c.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(python(script), stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        until(lambda: "up" in (tmp_path / "x.log").read_text())
        supervisor.kill()
        supervisor.wait()
        until(lambda: not is_alive(pid))


def test_a_child_gets_its_own_session_no_input_and_the_given_environment(
    children: Children,
) -> None:
    script = "import os, sys; print(os.getsid(0) == os.getpid(), sys.stdin.read() == '', sorted(os.environ))"
    child = children.start("x", [sys.executable, "-I", "-c", script], env={"ONLY": "1"})
    until(lambda: child.exit_code() is not None)
    assert child.log_tail().startswith("True True ")
    assert "'HOME'" not in child.log_tail()


def test_ending_twice_does_no_harm(children: Children) -> None:
    child = children.start("x", python("pass"))
    until(lambda: child.exit_code() is not None)
    children.end(child)
    children.end_all()
    assert child.exit_code() == 0


def test_logs_rotate_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    for number in range(KEPT_LOGS + 3):
        path.write_text(f"{number}" * 100)
        rotate(path, max_bytes=100)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == [f"x.log.{number}" for number in range(1, KEPT_LOGS + 1)]
    assert (tmp_path / "x.log.1").read_text()[0] == str(KEPT_LOGS + 2)


def test_a_small_log_stays_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    rotate(path)
    path.write_text("small")
    rotate(path)
    assert path.read_text() == "small"


def test_a_taken_port_is_refused_with_its_number() -> None:

    port = free_port()
    require_free_port("127.0.0.1", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(Exception, match=f"FH-PORT-001.*{port}"):
            require_free_port("127.0.0.1", port)
