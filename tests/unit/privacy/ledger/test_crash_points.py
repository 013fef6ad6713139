"""Every crash that a disk allows: the ledger's own calls are recorded, cut anywhere, and un-fsynced work is lost.

The oracle is a model of a disk (`Disk`) and a list of what an observer outside of the ledger saw. A crash state is
written into a fresh folder and opened by the real code. Rules of the model: a file's bytes are durable after its
fsync, a folder's entries after the folder's; of anything else any part may be lost, in any order, also a part of a
write. A failed fsync makes pages clean without writing them, as Linux does.
"""

import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.events import Event, PoissonSubsampledGaussian
from fedhealth.privacy.ledger.ledger import (
    BudgetLedger,
    LedgerMark,
    Reservation,
    SealedAnswer,
    read_ledger,
)
from fedhealth.privacy.ledger.storage import OsStorage

KEY = b"k" * 32
KEPT = 2  # docs/reference/privacy-ledger.md
REPLAY, FULL = "FH-LEDGER-006", "FH-LEDGER-007"


# --- the disk -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One call: `file` is an identity that outlives renames, `path` is relative to the disk's root."""

    name: str
    file: int = 0
    path: str = ""
    target: str = ""
    data: bytes = b""
    at: int = 0


class Killed(BaseException):
    """A process ends here; what it gave to the kernel stays in the page cache."""


class RecordingDisk(OsStorage):
    """The real calls, and a list of them. Calls numbered in `fails` fail, with what is said there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[Op] = []
        self.fails: dict[int, int] = {}
        self.dies_before: int | None = None
        self._ids = itertools.count(1)
        self._file_of_path: dict[str, int] = {}
        self._file_of_descriptor: dict[int, int] = {}
        for path in sorted(root.rglob("*")):  # what lies there already is durable
            if path.is_file():
                op = Op("create", self._new(self._name(path)), self._name(path))
                content = Op("write", op.file, data=path.read_bytes())
                self.log += [op, content, Op("fsync", op.file)]
            else:
                self.log.append(Op("mkdir", path=self._name(path)))
            self.log.append(Op("sync_folder", path=self._name(path.parent)))

    def make_folder(self, folder: Path) -> None:
        if not folder.exists():
            self._record(Op("mkdir", path=self._name(folder)))
        super().make_folder(folder)

    def open_file(self, path: Path) -> int:
        name = self._name(path)
        if not path.exists():
            self._record(Op("create", self._new(name), name))
        descriptor = super().open_file(path)
        self._file_of_descriptor[descriptor] = self._file_of_path[name]
        return descriptor

    def write_at(self, descriptor: int, data: bytes, offset: int) -> int:
        op = Op("write", self._file_of_descriptor[descriptor], data=data, at=offset)
        half = replace(op, data=data[: len(data) // 2])
        try:
            self._record(op)
        except OSError:  # the disk took a half
            self.log[-1] = half
            super().write_at(descriptor, half.data, offset)
            raise
        return super().write_at(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._record(Op("truncate", self._file_of_descriptor[descriptor], at=size))
        super().truncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        file = self._file_of_descriptor[descriptor]
        try:
            self._record(Op("fsync", file))
        except OSError:
            self.log[-1] = Op("fsync_failed", file)
            raise

    def replace(self, source: Path, target: Path) -> None:
        name = self._name(target)
        self._record(Op("rename", path=self._name(source), target=name))
        self._file_of_path[name] = self._file_of_path.pop(self._name(source))
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self._record(Op("unlink", path=self._name(path)))
        super().unlink(path)

    def sync_folder(self, folder: Path) -> None:
        if folder.is_relative_to(self.root):
            try:
                self._record(Op("sync_folder", path=self._name(folder)))
            except OSError:
                self.log[-1] = Op("nothing")
                raise

    def _record(self, op: Op) -> None:
        number = len(self.log)
        if number == self.dies_before:
            raise Killed
        self.log.append(op)
        if number in self.fails:
            raise OSError(self.fails[number], "the test's disk failed")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _new(self, name: str) -> int:
        self._file_of_path[name] = next(self._ids)
        return self._file_of_path[name]


@dataclass
class Disk:
    """What is durable, and what waits in the page cache."""

    content: dict[int, bytes] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)  # 0: a folder
    waiting_content: dict[int, list[Op]] = field(default_factory=dict)
    waiting_entries: dict[str, list[Op]] = field(default_factory=dict)

    @classmethod
    def after(cls, log: list[Op]) -> "Disk":
        disk = cls()
        for op in log:
            disk.take(op)
        return disk

    def take(self, op: Op) -> None:
        if op.name in {"write", "truncate"}:
            self.waiting_content.setdefault(op.file, []).append(op)
        elif op.name == "fsync":
            for each in self.waiting_content.pop(op.file, []):
                self.content[op.file] = applied(self.content.get(op.file, b""), each)
        elif op.name == "fsync_failed":
            self.waiting_content.pop(op.file, None)
        elif op.name == "sync_folder":
            for each in self.waiting_entries.pop(op.path, []):
                enter(self.entries, each)
        elif op.name != "nothing":
            folder = Path(op.path).parent.as_posix()
            self.waiting_entries.setdefault(folder, []).append(op)

    def crashes(self) -> Iterator[tuple[dict[str, bytes | None], bool]]:
        """Trees that may be found after a crash, and whether one has writes out of order."""
        files = [
            [(file, content, odd) for content, odd in self._contents(file, waiting)]
            for file, waiting in self.waiting_content.items()
        ]
        folders = [list(subsets(waiting)) for waiting in self.waiting_entries.values()]
        for chosen in itertools.product(*files):
            content = self.content | {file: data for file, data, _ in chosen}
            is_odd = any(odd for _, _, odd in chosen)
            for kept in itertools.product(*folders):
                entries = dict(self.entries)
                for op in itertools.chain(*kept):
                    enter(entries, op)
                yield tree(entries, content), is_odd

    def _contents(self, file: int, waiting: list[Op]) -> Iterator[tuple[bytes, bool]]:
        data = self.content.get(file, b"")
        yield data, False
        for number, op in enumerate(waiting):
            size = len(op.data)
            for cut in sorted(
                {1, size // 4, size // 2, 3 * size // 4, size - 1} & set(range(1, size))
            ):
                yield applied(data, replace(op, data=op.data[:cut])), False
                hole = replace(op, data=op.data[cut:], at=op.at + cut)
                yield applied(data, hole), True
            if number:
                yield applied(self.content.get(file, b""), op), True
            data = applied(data, op)
            yield data, False


def applied(data: bytes, op: Op) -> bytes:
    if op.name == "truncate":
        return data[: op.at].ljust(op.at, b"\0")
    padded = data.ljust(op.at, b"\0")
    return padded[: op.at] + op.data + padded[op.at + len(op.data) :]


def enter(entries: dict[str, int], op: Op) -> None:
    if op.name in {"create", "mkdir"}:
        entries[op.path] = op.file
    elif op.name == "unlink":
        entries.pop(op.path, None)
    elif op.path in entries:
        entries[op.target] = entries.pop(op.path)


def subsets(ops: list[Op]) -> Iterator[tuple[Op, ...]]:
    for size in range(len(ops) + 1):
        yield from itertools.combinations(ops, size)


def tree(entries: dict[str, int], content: dict[int, bytes]) -> dict[str, bytes | None]:
    """Path to bytes (None: a folder), without what lies in folders that are lost."""
    found: dict[str, bytes | None] = {}
    for path in sorted(entries, key=lambda name: name.count("/")):
        parent = Path(path).parent.as_posix()
        if parent == "." or parent in found:
            found[path] = content.get(entries[path], b"") if entries[path] else None
    return found


def lay_out(found: dict[str, bytes | None], root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for path, data in found.items():
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)


class QuickDisk(OsStorage):
    """No power is cut while a crash state is examined: nothing needs to be synced."""

    def fsync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


# --- the observer -------------------------------------------------------------------------------------------------


def manifest(study: str, number: int) -> str:
    return hashlib.sha256(f"{study} {number}".encode()).hexdigest()


def event(study: str, number: int) -> Event:
    """A different one for each reservation: a lost and a doubled one do not cancel out."""
    return PoissonSubsampledGaussian(
        sampling_rate=0.1,
        noise_multiplier=1.5,
        steps=1000 * (study == "study-b") + number,
        split_id="a1",
    )


def answer(study: str, number: int) -> SealedAnswer:
    return SealedAnswer(header=f'{{"of": "{study} {number}"}}'.encode(), payload=bytes(range(64)))


def reservation(study: str, number: int) -> Reservation:
    return Reservation(
        study_id=study,
        study_sha256="0" * 64,
        run_name="main",
        round_number=number,
        attempt=1,
        kind="train",
        manifest_sha256=manifest(study, number),
        events=(event(study, number),),
    )


@dataclass(frozen=True)
class Seen:
    """At that length of the log: `asked` before the call, `reserved` and `released` when it had returned."""

    when: int
    what: str
    study: str
    number: int


@dataclass
class Observer:
    """Uses a ledger as a site does, and notes what it saw, beside it."""

    disk: RecordingDisk
    folder: Path
    seen: list[Seen] = field(default_factory=list)
    handles: dict[str, BudgetLedger] = field(default_factory=dict)

    def note(self, what: str, study: str, number: int) -> None:
        self.seen.append(Seen(len(self.disk.log), what, study, number))

    def ledger(self, study: str) -> BudgetLedger:
        """Each study has a process of its own."""
        if study not in self.handles:
            self.handles[study] = BudgetLedger.open(
                self.folder, dataset="cohort", key=KEY, storage=self.disk, lock_timeout_s=1
            )
        return self.handles[study]

    def reserve(self, study: str, number: int) -> None:
        self.note("asked", study, number)
        self.ledger(study).reserve(reservation(study, number), allow=lambda _: None)
        self.note("reserved", study, number)

    def answer(self, study: str, number: int, *, is_committed: bool = True) -> None:
        self.reserve(study, number)
        self.note("sealing", study, number)
        self.ledger(study).seal(manifest(study, number), answer(study, number))
        self.note("released", study, number)
        if is_committed:
            self.ledger(study).commit(manifest(study, number))

    def recover(self, number: int) -> None:
        self.note("asked", "study-a", number)
        self.ledger("study-a").recover(
            [event("study-a", number)],
            study_id="study-a",
            witness=LedgerMark(sequence=90, head="ab" * 32),
        )
        self.note("recovered", "study-a", number)


STEPS: list[Callable[[Observer], None]] = [
    lambda site: site.answer("study-a", 1),
    lambda site: site.reserve("study-a", 2),
    lambda site: site.answer("study-b", 1, is_committed=False),
    lambda site: site.answer("study-a", 3),
    lambda site: site.answer("study-a", 4),
    lambda site: site.recover(500),
    lambda site: site.answer("study-b", 2),
    lambda site: site.reserve("study-a", 5),
]


def observe(root: Path) -> Observer:
    root.mkdir()
    return Observer(RecordingDisk(root), root / "home" / "ledger")


# --- what must hold -----------------------------------------------------------------------------------------------


def examine(folder: Path, seen: list[Seen], *, is_odd: bool = False) -> str:
    """Open what the crash left, by the real code, and hold it against the observer."""
    try:
        ledger = BudgetLedger.open(folder, dataset="cohort", key=KEY, storage=QuickDisk())
    except PrivacyError as error:
        if is_odd and error.code in {"FH-LEDGER-001", "FH-LEDGER-002"}:
            return "refused"
        raise
    spent = Counter(ledger.view().events())
    check_spend(spent, seen)
    check_answers(ledger, seen)
    check_replays(ledger, seen)
    ledger.close()
    with BudgetLedger.open(folder, dataset="cohort", key=KEY, storage=QuickDisk()) as again:
        assert Counter(again.view().events()) == spent
        again.reserve(reservation("study-a", 99), allow=lambda _: None)
        again.seal(manifest("study-a", 99), answer("study-a", 99))
        assert again.sealed(manifest("study-a", 99)) == answer("study-a", 99)
    more = Counter(spent)
    more[event("study-a", 99)] += 1
    check_chain(folder / "ledger.jsonl", more)
    assert Counter(read_ledger(folder).events()) == more
    return "opened"


def check_spend(spent: Counter[Event], seen: list[Seen]) -> None:
    begun = Counter(event(s.study, s.number) for s in seen if s.what in {"reserved", "recovered"})
    asked = Counter(event(s.study, s.number) for s in seen if s.what == "asked")
    assert begun <= spent, "spent privacy fell"
    assert spent <= asked, "something was spent that nobody asked for"


def check_answers(ledger: BudgetLedger, seen: list[Seen]) -> None:
    for fact in seen:
        if fact.what == "asked":
            found = ledger.sealed(manifest(fact.study, fact.number))
            assert found in (None, answer(fact.study, fact.number))
        if fact.what == "released":
            later = [
                s
                for s in seen
                if s.what == "sealing" and s.study == fact.study and s.number > fact.number
            ]
            found = ledger.sealed(manifest(fact.study, fact.number))
            assert found == answer(fact.study, fact.number) or len(later) >= KEPT


def check_replays(ledger: BudgetLedger, seen: list[Seen]) -> None:
    for fact in seen:
        if fact.what == "reserved":
            with pytest.raises(PrivacyError) as error:
                ledger.reserve(reservation(fact.study, fact.number), allow=lambda _: None)
            assert error.value.code == REPLAY


def check_chain(path: Path, spent: Counter[Event]) -> None:
    """A second reader, with nothing but json and hashlib."""
    previous, found = "0" * 64, Counter[int]()
    *lines, rest = path.read_bytes().split(b"\n")
    assert rest == b""
    for line in lines:
        entry = json.loads(line)
        own = entry.pop("sha256")
        content = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        assert hashlib.sha256(content).hexdigest() == own
        assert entry["previous"] == previous
        previous = own
        found.update(each["steps"] for each in entry["body"].get("events", []))
    assert found == Counter({each.steps: count for each, count in spent.items()})


def crash_everywhere(
    site: Observer,
    work: Path,
    *,
    start: int = 0,
    stop: int = 10**6,
    keeps: bytes = b"",
) -> Counter[str]:
    """Every length of the log from `start` to `stop`, and its end: every loss that the disk allows there."""
    outcomes: Counter[str] = Counter()
    known: set[tuple[object, ...]] = set()
    end = len(site.disk.log)
    for length in sorted({*range(start, min(stop, end) + 1), end}):
        seen = [s for s in site.seen if s.when <= length]
        for found, is_odd in Disk.after(site.disk.log[:length]).crashes():
            state = (tuple(sorted(found.items())), tuple(seen))
            if state in known:
                continue
            known.add(state)
            assert not keeps or any(keeps in (data or b"") for data in found.values())
            lay_out(found, work)
            outcomes[
                examine(work / site.folder.relative_to(site.disk.root), seen, is_odd=is_odd)
            ] += 1
    return outcomes


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Hundreds of small trees: in memory where the machine has a folder for it, since no real disk is tested here."""
    memory = Path("/dev/shm")  # noqa: S108  a folder of one's own is made in it
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fedhealth-crashes-", dir=where) as folder:
        yield Path(folder)


# --- the tests ----------------------------------------------------------------------------------------------------


def test_no_crash_at_any_point_lets_spent_privacy_fall_or_changes_an_answer(tmp_path: Path) -> None:
    site = observe(tmp_path / "disk")
    for step in STEPS:
        step(site)
    assert Counter(op.name for op in site.disk.log)["fsync"] > 20
    outcomes = crash_everywhere(site, tmp_path / "crashed")
    assert outcomes["opened"] > 200
    assert outcomes["refused"] > 0, "lines with a hole are refused, never believed"


def test_a_crash_while_the_torn_line_of_a_crash_is_set_aside_loses_nothing(tmp_path: Path) -> None:
    """Crash, start again, crash while starting: every point of the second start, for several torn lines."""
    first = observe(tmp_path / "disk")
    first.answer("study-a", 1)
    ledger = first.disk._file_of_path["home/ledger/ledger.jsonl"]
    lines = [n for n, op in enumerate(first.disk.log) if op.name == "write" and op.file == ledger]
    written = [
        lines[0],
        lines[2],
    ]  # the opening and the first reservation; line 1 is the opening, synced again
    for number, length in enumerate(written):
        seen = [s for s in first.seen if s.when <= length]
        trees = [
            found
            for found, is_odd in Disk.after(first.disk.log[: length + 1]).crashes()
            if not is_odd
        ]
        for cut, found in enumerate(trees):
            root = tmp_path / f"again-{number}-{cut}"
            lay_out(found, root)
            second = Observer(RecordingDisk(root), root / "home" / "ledger")
            start = len(second.disk.log)
            second.seen = [replace(s, when=0) for s in [*seen, Seen(0, "asked", "study-a", 1)]]
            second.reserve("study-a", 7)
            torn = (found.get("home/ledger/ledger.jsonl") or b"").rpartition(b"\n")[2]
            crash_everywhere(second, tmp_path / "crashed", start=start, keeps=torn)


def test_a_line_that_a_killed_process_did_not_sync_is_synced_before_it_is_believed(
    tmp_path: Path,
) -> None:
    site = observe(tmp_path / "disk")
    site.answer("study-b", 1)
    site.reserve("study-a", 1)
    site.disk.dies_before = len(site.disk.log) + 1  # its line is written, and not synced
    with pytest.raises(Killed):
        site.reserve("study-a", 2)
    site.disk.dies_before = None
    assert event("study-a", 2) in site.ledger("study-b").view().events()
    site.note("reserved", "study-a", 2)
    crash_everywhere(site, tmp_path / "crashed", start=len(site.disk.log))


def run_in_spite_of_failures(site: Observer) -> list[str]:
    """A site that starts its ledger anew after an error, and asks with a new attempt; returns the codes."""
    codes = []
    for step in STEPS:
        try:
            step(site)
        except PrivacyError as error:
            codes.append(error.code)
            for handle in site.handles.values():
                handle.close()
            site.handles.clear()
    return codes


def calls(tmp_path: Path, *names: str) -> list[int]:
    site = observe(tmp_path / "rehearsal")
    for step in STEPS:
        step(site)
    return [number for number, op in enumerate(site.disk.log) if op.name in names]


def test_a_failed_fsync_releases_nothing_and_a_later_crash_loses_nothing(tmp_path: Path) -> None:
    for number in calls(tmp_path, "fsync", "sync_folder"):
        site = observe(tmp_path / f"disk-{number}")
        site.disk.fails[number] = errno.EIO
        assert run_in_spite_of_failures(site) == ["FH-LEDGER-008"], site.disk.log[number]
        crash_everywhere(site, tmp_path / "crashed", start=len(site.disk.log) - 2)


def test_a_disk_that_takes_half_of_a_write_releases_nothing_and_loses_nothing(
    tmp_path: Path,
) -> None:
    for number in calls(tmp_path, "write"):
        site = observe(tmp_path / f"disk-{number}")
        site.disk.fails[number] = errno.ENOSPC
        assert run_in_spite_of_failures(site) == [FULL], site.disk.log[number]
        crash_everywhere(site, tmp_path / "crashed", start=number, stop=number + 3)


def test_a_disk_that_fails_at_any_other_call_releases_nothing_and_loses_nothing(
    tmp_path: Path,
) -> None:
    for number in calls(tmp_path, "write", "truncate", "rename", "create", "mkdir"):
        site = observe(tmp_path / f"disk-{number}")
        site.disk.fails[number] = errno.EIO
        assert run_in_spite_of_failures(site) == ["FH-LEDGER-008"], site.disk.log[number]


def test_the_model_of_the_disk_finds_a_missing_fsync(tmp_path: Path) -> None:
    """Positive control: with one kind of call left out, the enumeration must fail."""
    site = observe(tmp_path / "disk")
    for step in STEPS:
        step(site)
    ledger = site.disk._file_of_path["home/ledger/ledger.jsonl"]
    lacking: list[Callable[[Op], bool]] = [
        lambda op: op.name == "fsync" and op.file == ledger,
        lambda op: op.name == "fsync" and op.file != ledger,
        lambda op: op.name == "sync_folder" and op.path == "home/ledger",
        lambda op: op.name == "sync_folder" and op.path == "home/ledger/sealed",
        lambda op: op.name == "sync_folder" and op.path == "home",
    ]
    for number, is_left_out in enumerate(lacking):
        log = [Op("nothing") if is_left_out(op) else op for op in site.disk.log]
        nothing_written_back = tree(Disk.after(log).entries, Disk.after(log).content)
        lay_out(nothing_written_back, tmp_path / f"crashed-{number}")
        with pytest.raises((AssertionError, PrivacyError)):
            examine(tmp_path / f"crashed-{number}" / "home" / "ledger", site.seen)
