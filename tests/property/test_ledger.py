"""Any order of calls on two handles of one ledger, held against a model in plain dictionaries."""

import hashlib
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.events import (
    Event,
    GaussianRelease,
    PoissonSubsampledGaussian,
    UnboundedRelease,
)
from fedhealth.privacy.ledger.entries import (
    GENESIS,
    OpenBody,
    RecoveredBody,
    ReserveBody,
    decode_line,
    encode_line,
)
from fedhealth.privacy.ledger.ledger import (
    BudgetLedger,
    LedgerMark,
    Reservation,
    SealedAnswer,
    read_ledger,
)
from fedhealth.privacy.ledger.storage import OsStorage

KEY = b"p" * 32
KEPT = 2
STUDIES = st.sampled_from(["study-a", "study-b"])
ORDERS = st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from(["train", "evaluate"]))
HANDLES = st.integers(0, 1)

NOISE = st.floats(1e-3, 1e6, allow_subnormal=False)
EVENTS = st.one_of(
    st.builds(
        PoissonSubsampledGaussian,
        sampling_rate=st.floats(1e-6, 1),
        noise_multiplier=NOISE,
        steps=st.integers(1, 10**9),
        split_id=st.from_regex(r"[a-z0-9]{1,16}", fullmatch=True),
    ),
    st.builds(
        GaussianRelease,
        unit=st.sampled_from(["patient", "site"]),
        noise_multiplier=NOISE,
        steps=st.integers(1, 100),
        population=st.sampled_from(["train", "validation", "test", "all"]),
        split_id=st.just("a1"),
    ),
    st.builds(UnboundedRelease, unit=st.just("patient"), steps=st.integers(1, 3)),
)


class Quick(OsStorage):
    """No power is cut here."""

    def fsync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


class LedgerMachine(RuleBasedStateMachine):
    """`states`, `answers` and `seals` are the model."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedhealth-ledger-"))
        self.handles = [self.open(), self.open()]
        self.spent: Counter[Event] = Counter()
        self.states: dict[str, str] = {}
        self.answers: dict[str, SealedAnswer] = {}
        self.seals: dict[str, list[str]] = {}
        self.last: dict[str, tuple[int, int, str]] = {}
        self.marks: list[LedgerMark] = []

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for handle in self.handles:
                handle.close()
            shutil.rmtree(self.folder)

    def open(self) -> BudgetLedger:
        return BudgetLedger.open(self.folder, dataset="cohort", key=KEY, storage=Quick())

    @rule(handle=HANDLES, study=STUDIES, order=ORDERS, events=st.lists(EVENTS, max_size=2))
    def reserve(
        self, handle: int, study: str, order: tuple[int, int, str], events: list[Event]
    ) -> None:
        number, attempt, kind = order
        manifest = hashlib.sha256(repr((study, order)).encode()).hexdigest()
        asked = Reservation(
            study_id=study,
            study_sha256="0" * 64,
            run_name="main",
            round_number=number,
            attempt=attempt,
            kind=kind,  # type: ignore[arg-type]  # hypothesis draws a string
            manifest_sha256=manifest,
            events=tuple(events),
        )
        last = self.last.get(study, (0, 0, "train"))
        is_new = (number, attempt, kind == "evaluate") > (last[0], last[1], last[2] == "evaluate")
        try:
            mark = self.handles[handle].reserve(asked, allow=lambda _: None)
        except PrivacyError as error:
            assert error.code == "FH-LEDGER-006"  # noqa: PT017  the model says whether it may be
            assert not is_new
            return
        assert is_new
        self.last[study] = order
        self.states[manifest] = "reserved"
        self.spent.update(events)
        self.marks.append(mark)
        self.seals.setdefault(study, [])

    def known(self, data: Any) -> str:
        return str(data.draw(st.sampled_from(sorted(self.states) or ["f" * 64])))

    def refuses(self, call: Any) -> None:
        with pytest.raises(PrivacyError) as error:
            call()
        assert error.value.code == "FH-LEDGER-010"

    @rule(handle=HANDLES, data=st.data(), payload=st.binary(max_size=40))
    def seal(self, handle: int, data: Any, payload: bytes) -> None:
        manifest, ledger = self.known(data), self.handles[handle]
        answer = SealedAnswer(header=b"{}", payload=payload)
        if self.states.get(manifest) != "reserved":
            self.refuses(lambda: ledger.seal(manifest, answer))
            return
        ledger.seal(manifest, answer)
        self.states[manifest], self.answers[manifest] = "sealed", answer
        study = next(
            line.study_id for line in ledger.view().lines if line.manifest_sha256 == manifest
        )
        self.seals[study].append(manifest)

    @rule(handle=HANDLES, data=st.data())
    def commit(self, handle: int, data: Any) -> None:
        manifest, ledger = self.known(data), self.handles[handle]
        if self.states.get(manifest) not in {"sealed", "committed"}:
            self.refuses(lambda: ledger.commit(manifest))
            return
        ledger.commit(manifest)
        self.states[manifest] = "committed"

    @rule(handle=HANDLES, study=STUDIES, lost=st.lists(EVENTS, max_size=2), jump=st.integers(1, 50))
    def recover(self, handle: int, study: str, lost: list[Event], jump: int) -> None:
        ledger = self.handles[handle]
        before = ledger.mark
        witness = LedgerMark(sequence=before.sequence + jump, head="ab" * 32)
        after = ledger.recover(lost, study_id=study, witness=witness)
        assert after.sequence == witness.sequence + 1
        assert ledger.recover(lost, study_id=study, witness=witness) == after
        self.spent.update(lost)
        self.marks += [witness, after]

    @rule(handle=HANDLES)
    def open_anew(self, handle: int) -> None:
        self.handles[handle].close()
        self.handles[handle] = self.open()

    @rule(torn=st.binary(min_size=1, max_size=60).filter(lambda data: b"\n" not in data))
    def tear(self, torn: bytes) -> None:
        """Another process was killed while it wrote."""
        with (self.folder / "ledger.jsonl").open("ab") as file:
            file.write(torn)

    @invariant()
    def every_handle_and_every_reader_says_the_same(self) -> None:
        if not hasattr(self, "handles"):
            return
        views = [handle.view() for handle in self.handles]
        assert views[0] == views[1] == read_ledger(self.folder)
        assert Counter(views[0].events()) == self.spent
        assert {line.manifest_sha256: line.state for line in views[0].lines} == self.states
        assert all(self.handles[0].contains(mark) for mark in self.marks)
        kept = {manifest for sealed in self.seals.values() for manifest in sealed[-KEPT:]}
        for manifest in self.states:
            expected = self.answers[manifest] if manifest in kept else None
            assert self.handles[1].sealed(manifest) == expected


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@given(events=st.lists(EVENTS, max_size=5), number=st.integers(1, 2**53 - 1))
@settings(max_examples=100, deadline=None)
def test_a_line_reads_back_as_it_was_written(events: list[Event], number: int) -> None:
    body = ReserveBody(
        study_id="study-a",
        study_sha256="0" * 64,
        run_name="main",
        round_number=number,
        attempt=1,
        kind="train",
        manifest_sha256="1" * 64,
        events=tuple(events),
    )
    origin = LedgerMark(sequence=0, head=GENESIS)
    raw = encode_line(body, last=origin, at="2026-01-01T00:00:00.000Z")
    line, mark = decode_line(raw[:-1], last=origin, number=1)
    assert line.body == body
    assert raw.endswith(b',"sha256":"' + mark.head.encode() + b'"}\n')


@given(
    position=st.integers(0, 10**6),
    bit=st.integers(0, 7),
    body=st.sampled_from(
        [
            OpenBody(dataset="cohort", ledger="0" * 32),
            RecoveredBody.model_validate(
                {
                    "study_id": "study-a",
                    "events": [],
                    "witness": {"sequence": 4, "head": "a" * 64},
                }
            ),
        ]
    ),
)
@settings(max_examples=200, deadline=None)
def test_no_bit_of_a_line_can_be_flipped_unseen(position: int, bit: int, body: Any) -> None:
    origin = LedgerMark(sequence=0, head=GENESIS)
    raw = bytearray(encode_line(body, last=origin, at="2026-01-01T00:00:00.000Z")[:-1])
    raw[position % len(raw)] ^= 1 << bit
    with pytest.raises(PrivacyError, match="FH-LEDGER-001"):
        decode_line(bytes(raw), last=origin, number=1)
