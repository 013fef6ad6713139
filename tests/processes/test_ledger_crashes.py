"""The privacy ledger under `kill -9`: real processes, real files, and an observer who writes down what he saw.

The observer's file gets one line, synced, when a site asks, begins to train and sends. A site trains with fresh
random bytes each time: an answer that was computed twice could not be the same twice.
"""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.events import Event, PoissonSubsampledGaussian
from fedhealth.privacy.ledger.ledger import (
    BudgetLedger,
    LedgerView,
    Reservation,
    SealedAnswer,
    read_ledger,
)
from fedhealth.privacy.ledger.storage import OsStorage

KEY = bytes(32)
REPLAY, FULL = "FH-LEDGER-006", "FH-LEDGER-007"


# --- a site, small enough to be killed anywhere -------------------------------------------------------------------


class Fuse:
    """Kills this process before its n-th step; 0 never burns down.

    A kill loses nothing that the kernel has: where the disk's own losses are not the question, nothing is synced.
    """

    def __init__(self, steps: int = 0, *, is_synced: bool = True) -> None:
        self._left = steps
        self.is_synced = is_synced

    def step(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class FusedStorage(OsStorage):
    """The real storage; each change of the disk is a step."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse

    def make_folder(self, folder: Path) -> None:
        self._fuse.step()
        super().make_folder(folder)

    def open_file(self, path: Path) -> int:
        self._fuse.step()
        return super().open_file(path)

    def write_at(self, descriptor: int, data: bytes, offset: int) -> int:
        self._fuse.step()
        half = len(data) // 2
        super().write_at(descriptor, data[:half], offset)
        self._fuse.step()
        return half + super().write_at(descriptor, data[half:], offset + half)

    def truncate(self, descriptor: int, size: int) -> None:
        self._fuse.step()
        super().truncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        self._fuse.step()
        if self._fuse.is_synced:
            super().fsync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        self._fuse.step()
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self._fuse.step()
        super().unlink(path)

    def sync_folder(self, folder: Path) -> None:
        self._fuse.step()
        if self._fuse.is_synced:
            super().sync_folder(folder)


@dataclass(frozen=True)
class Watched:
    """The line `what manifest detail` for everything that an outsider can see."""

    path: Path

    def note(self, fuse: Fuse, what: str, manifest: str, detail: str) -> None:
        fuse.step()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{what} {manifest} {detail}\n".encode())
        if fuse.is_synced:
            os.fsync(descriptor)
        os.close(descriptor)

    def lines(self, what: str) -> list[tuple[str, str]]:
        if not self.path.exists():
            return []
        split = [line.split() for line in self.path.read_text().splitlines()]
        return [(manifest, detail) for kind, manifest, detail in split if kind == what]


def manifest_of(study: str, number: int, attempt: int) -> str:
    return hashlib.sha256(f"{study} {number} {attempt}".encode()).hexdigest()


def event_of(number: int, attempt: int) -> Event:
    return PoissonSubsampledGaussian(
        sampling_rate=0.1, noise_multiplier=2, steps=100 * number + attempt, split_id="a1"
    )


def asked(study: str, number: int, attempt: int) -> Reservation:
    return Reservation(
        study_id=study,
        study_sha256="0" * 64,
        run_name="main",
        round_number=number,
        attempt=attempt,
        kind="train",
        manifest_sha256=manifest_of(study, number, attempt),
        events=(event_of(number, attempt),),
    )


def run_site(
    folder: Path, watched: Watched, fuse: Fuse, *, num_rounds: int, study: str = "study-a"
) -> None:
    """Answer rounds until the last; first the one again that was sent last, as a server asks that lost it."""
    ledger = BudgetLedger.open(folder, dataset="cohort", key=KEY, storage=FusedStorage(fuse))
    sent = watched.lines("sent")
    if sent:
        again = ledger.sealed(sent[-1][0])
        assert again is not None
        watched.note(fuse, "sent", sent[-1][0], digest(again))
        ledger.commit(sent[-1][0])
    for number in range(len(dict(sent)) + 1, num_rounds + 1):
        attempt = 1
        while not answer_round(ledger, watched, fuse, asked(study, number, attempt)):
            attempt += 1


def answer_round(
    ledger: BudgetLedger, watched: Watched, fuse: Fuse, reservation: Reservation
) -> bool:
    manifest = reservation.manifest_sha256
    answer = ledger.sealed(manifest)
    if answer is None:
        watched.note(fuse, "asked", manifest, str(reservation.events[0].steps))
        try:
            ledger.reserve(reservation, allow=lambda _: None)
        except PrivacyError as error:
            if error.code != REPLAY:
                raise
            return False
        watched.note(fuse, "began", manifest, str(reservation.events[0].steps))
        answer = SealedAnswer(header=b"{}", payload=os.urandom(5000))
        ledger.seal(manifest, answer)
    watched.note(fuse, "sent", manifest, digest(answer))
    ledger.commit(manifest)
    return True


def digest(answer: SealedAnswer) -> str:
    return hashlib.sha256(answer.header + b"\0" + answer.payload).hexdigest()


def begin(work: Callable[[], None]) -> int:
    """A process of its own, which never comes back into pytest."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except PrivacyError as error:
        code = int(error.code[-3:])
    finally:
        os._exit(code)


def end(child: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- what must hold -----------------------------------------------------------------------------------------------


def check(folder: Path, watched: Watched, *, num_kills: int, num_rounds: int) -> LedgerView:
    view = read_ledger(folder)
    spent = Counter(line.manifest_sha256 for line in view.lines)
    began = Counter(manifest for manifest, _ in watched.lines("began"))
    assert max(began.values()) == 1, "no manifest was trained on twice"
    assert began <= spent, "spent privacy fell"
    assert (spent - began).total() <= num_kills, "only a kill can cost a round that did not begin"
    assert {
        m: e.steps for line in view.lines for m, e in [(line.manifest_sha256, line.events[0])]
    } == {m: int(steps) for m, steps in watched.lines("asked") if m in spent}
    digests: dict[str, set[str]] = {}
    for manifest, sent in watched.lines("sent"):
        digests.setdefault(manifest, set()).add(sent)
    assert all(len(each) == 1 for each in digests.values()), "what is sent again is the same"
    assert len(digests) == num_rounds
    states = {line.manifest_sha256: line.state for line in view.lines}
    assert all(states[manifest] == "committed" for manifest in digests)
    return view


def test_a_kill_between_any_two_durable_steps_never_lets_spent_privacy_fall(tmp_path: Path) -> None:
    kill_before, ended = 0, -signal.SIGKILL
    while ended == -signal.SIGKILL:
        kill_before += 1
        folder = tmp_path / str(kill_before) / "ledger"
        watched = Watched(tmp_path / f"seen-{kill_before}")

        def run(num_steps: int, num_rounds: int, f: Path = folder, w: Watched = watched) -> int:
            fuse = Fuse(num_steps, is_synced=False)
            return end(begin(lambda: run_site(f, w, fuse, num_rounds=num_rounds)))

        ended = run(kill_before, 3)
        assert run(0, 4) == 0
        check(folder, watched, num_kills=1, num_rounds=4)
    assert ended == 0
    assert kill_before > 70


def kill_at_random(tmp_path: Path, *, num_kills: int, seed: int) -> None:
    folder, watched = tmp_path / "ledger", Watched(tmp_path / "seen")
    moments = random.Random(seed)  # noqa: S311  when a test kills is no secret
    for _ in range(num_kills):
        child = begin(lambda: run_site(folder, watched, Fuse(), num_rounds=10_000))
        time.sleep(moments.uniform(0.001, 0.12))
        os.kill(child, signal.SIGKILL)
        assert end(child) == -signal.SIGKILL
    num_rounds = len(dict(watched.lines("sent"))) + 2
    assert end(begin(lambda: run_site(folder, watched, Fuse(), num_rounds=num_rounds))) == 0
    view = check(folder, watched, num_kills=num_kills, num_rounds=num_rounds)
    oracle = [event_of(int(s) // 100, int(s) % 100) for _, s in watched.lines("began")]
    begun, spent = compose(oracle, delta=1e-4), compose(view.events(), delta=1e-4)
    assert spent.epsilon >= begun.epsilon > 0
    if Counter(oracle) == Counter(view.events()):
        assert spent.epsilon == begun.epsilon


def test_twenty_kills_at_random_leave_a_spend_that_the_observer_confirms(tmp_path: Path) -> None:
    kill_at_random(tmp_path, num_kills=20, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_kills_at_random_leave_a_spend_that_the_observer_confirms(
    tmp_path: Path, seed: int
) -> None:
    kill_at_random(tmp_path, num_kills=200, seed=seed)


def test_ten_rounds_in_fresh_processes_cost_what_ten_rounds_at_once_cost(tmp_path: Path) -> None:
    folder, watched = tmp_path / "ledger", Watched(tmp_path / "seen")
    for number in range(1, 11):
        assert end(begin(lambda n=number: run_site(folder, watched, Fuse(), num_rounds=n))) == 0
    at_once = [event_of(number, 1) for number in range(1, 11)]
    epsilon = compose(read_ledger(folder).events("study-a"), delta=1e-4).epsilon
    assert (
        epsilon == compose(at_once, delta=1e-4).epsilon > compose(at_once[:9], delta=1e-4).epsilon
    )


def test_processes_that_reserve_at_once_are_all_counted(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    sites = [
        begin(
            lambda s=study: run_site(
                folder, Watched(tmp_path / f"seen-{s}"), Fuse(), num_rounds=8, study=s
            )
        )
        for study in ("study-a", "study-b", "study-c", "study-d")
    ]
    assert [end(site) for site in sites] == [0] * 4
    view = read_ledger(folder)
    assert len(view.events()) == 32
    for study in ("study-a", "study-b", "study-c", "study-d"):
        assert view.events(study) == tuple(event_of(number, 1) for number in range(1, 9))
    assert view.mark.sequence == 1 + 3 * 32


def test_of_processes_that_reserve_one_manifest_exactly_one_may_train(tmp_path: Path) -> None:
    def reserve() -> None:
        with BudgetLedger.open(tmp_path, dataset="cohort", key=KEY) as ledger:
            ledger.reserve(asked("study-a", 1, 1), allow=lambda _: time.sleep(0.02))

    codes = sorted(end(child) for child in [begin(reserve) for _ in range(5)])
    assert codes == [0, 6, 6, 6, 6]
    assert len(read_ledger(tmp_path).events()) == 1


def test_a_process_killed_in_a_transaction_does_not_hold_up_the_others(tmp_path: Path) -> None:
    with BudgetLedger.open(tmp_path, dataset="cohort", key=KEY, lock_timeout_s=5) as ledger:

        def die_with_the_lock() -> None:
            with BudgetLedger.open(tmp_path, dataset="cohort", key=KEY) as other:
                other.reserve(
                    asked("study-b", 1, 1), allow=lambda _: os.kill(os.getpid(), signal.SIGKILL)
                )

        assert end(begin(die_with_the_lock)) == -signal.SIGKILL
        ledger.reserve(asked("study-a", 1, 1), allow=lambda _: None)
        assert len(ledger.view().events()) == 1


# --- a disk that is really full -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spare", [0, 1, 100, 300])
def test_a_line_beyond_the_file_size_limit_leaves_nothing_and_releases_nothing(
    tmp_path: Path, spare: int
) -> None:
    """The kernel takes a part of the line, and then refuses (EFBIG): no root needed."""
    ledger = BudgetLedger.open(tmp_path, dataset="cohort", key=KEY)
    ledger.reserve(asked("study-a", 1, 1), allow=lambda _: None)
    before = (tmp_path / "ledger.jsonl").read_bytes()

    def reserve() -> None:
        with BudgetLedger.open(tmp_path, dataset="cohort", key=KEY) as other:
            limit_files_to(len(before) + spare)
            other.reserve(asked("study-a", 2, 1), allow=lambda _: None)

    assert end(begin(reserve)) == int(FULL[-3:])
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    ledger.reserve(asked("study-a", 2, 1), allow=lambda _: None)
    assert len(read_ledger(tmp_path).events()) == 2


def test_an_answer_beyond_the_file_size_limit_is_not_sealed_and_stays_spent(tmp_path: Path) -> None:
    ledger = BudgetLedger.open(tmp_path, dataset="cohort", key=KEY)
    ledger.reserve(asked("study-a", 1, 1), allow=lambda _: None)
    manifest = manifest_of("study-a", 1, 1)

    def seal() -> None:
        with BudgetLedger.open(tmp_path, dataset="cohort", key=KEY) as other:
            limit_files_to(20_000)
            other.seal(manifest, SealedAnswer(header=b"{}", payload=bytes(50_000)))

    assert end(begin(seal)) == int(FULL[-3:])
    assert ledger.sealed(manifest) is None
    assert len(ledger.view().events()) == 1
    ledger.reserve(asked("study-a", 1, 2), allow=lambda _: None)
    ledger.seal(manifest_of("study-a", 1, 2), SealedAnswer(header=b"{}", payload=bytes(50_000)))
    assert {path.suffix for path in (tmp_path / "sealed").iterdir()} == {".sealed"}


def limit_files_to(size_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


FULL_DISK = """
import sys
from pathlib import Path
from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.events import UnboundedRelease
from fedhealth.privacy.ledger.ledger import BudgetLedger, Reservation, read_ledger
folder, number, code = Path(sys.argv[1]) / "ledger", 0, ""
ledger = BudgetLedger.open(folder, dataset="cohort", key=bytes(32))
(folder.parent / "ballast").write_bytes(bytes(40_000))
while not code:
    number += 1
    try:
        ledger.reserve(
            Reservation(study_id="study-a", study_sha256="0" * 64, run_name="main", round_number=number,
                        attempt=1, kind="train", manifest_sha256=f"{number:064x}",
                        events=(UnboundedRelease(unit="patient", steps=1),) * 20),
            allow=lambda _: None)
    except PrivacyError as error:
        code = error.code
assert code == "FH-LEDGER-007", code
assert number > 2
assert len(read_ledger(folder).lines) == number - 1
assert (folder / "ledger.jsonl").read_bytes().endswith(b"\\n")
(folder.parent / "ballast").unlink()
again = BudgetLedger.open(folder, dataset="cohort", key=bytes(32))
assert len(again.view().lines) == number - 1
"""


def test_a_full_file_system_releases_nothing_and_what_was_spent_stays(tmp_path: Path) -> None:
    """A file system of 96 KiB in a user's own mount namespace, where the machine allows one."""
    mount = f'mount -t tmpfs -o size=96k none {tmp_path} && exec "$@"'
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    try:
        allowed = subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode
    except FileNotFoundError:
        allowed = 1
    if allowed:
        pytest.skip("this machine allows no mount namespace of one's own")
    done = subprocess.run(
        [*isolated, sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
