"""Messages to hospitals that live in this process: the transport of a simulation.

Each hospital is what a worker is behind its socket: a home with keys, ledger, journal and state on disk, and
sessions in memory. It answers through the same code; only Flower, the relay and the socket are left out.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.local_training import SiteContext
from fedhealth.contracts.update_encoding import UniformBits
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Manifest
from fedhealth.models.seeds import derive_seed
from fedhealth.server.messages import RawReply
from fedhealth.server.roster import Roster, RosterLine
from fedhealth.site.answering import SiteAnswers
from fedhealth.site.door import announce
from fedhealth.site.home import Pinned, SiteHome, load_pinned
from fedhealth.site.local_round import RoundRequest


class InProcessSite:
    """One hospital; `start` is what starting its worker is.

    Args:
        home: a home that has joined the study.
        study_id: which study.
    """

    def __init__(self, home: SiteHome, study_id: str) -> None:
        self.home = home
        self._study_id = study_id
        self._pinned: Pinned | None = None
        self._answers: SiteAnswers | None = None

    @property
    def site_id(self) -> str:
        """The hospital's public id."""
        return self.home.root.name

    @property
    def pinned(self) -> Pinned:
        """What this hospital believes; read and verified at the first use."""
        if self._pinned is None:
            self._pinned = load_pinned(self.home, self._study_id)
        return self._pinned

    def start(self) -> None:
        """Check the study against the hospital's own rules; its patients are read in the first round.

        Raises:
            FedHealthError: this hospital would not take part.
        """
        self._open().check_rules()

    def context(self, run_name: str) -> SiteContext:
        """What a training method gets from this hospital: its cohort, its folders, its private state."""
        return self._open().context(run_name)

    def close(self) -> None:
        """Forget everything that is not on disk, as a worker that is stopped."""
        self._answers = None

    def answer(self, envelope: Envelope, payload: bytes, *, deadline_s: float) -> RawReply:
        """What the relay would bring back; a hospital that is not done by the deadline gives nothing."""
        begin = time.monotonic()

        def is_over() -> bool:
            return time.monotonic() - begin > deadline_s

        answers = self._open()
        request = RoundRequest(
            header=envelope.model_dump(), payload=bytearray(payload), is_cancelled=is_over
        )
        code, answer = answers.answer(request)
        after_s = round(time.monotonic() - begin, 3)
        if is_over() or answer is None:
            failed = DropCode.DEADLINE if is_over() else code or DropCode.SITE_ERROR
            return _dropped(self.site_id, failed, after_s)
        announce(answer, answers.journal)
        answers.sent(answer)
        return RawReply(
            site_id=self.site_id,
            envelope=answer.contribution,
            code=None,
            payload=bytes(answer.outbound.payload),
            answered_after_s=after_s,
        )

    def _seeded_bits(self, manifest: Manifest) -> UniformBits:
        """The same for a round each time: a simulation without noise gives the same model again.

        Rounding hides nothing, so nobody has to be kept from knowing it.
        """
        seed = derive_seed(
            self.pinned.study.seed,
            "rounding to 8 bits",
            manifest.run_name,
            self.site_id,
            manifest.round_number,
            manifest.attempt,
        )
        stream = np.random.PCG64(seed)
        return lambda count: np.asarray(stream.random_raw(count), dtype=np.uint64)

    def _open(self) -> SiteAnswers:
        if self._answers is None:
            self._answers = SiteAnswers(self.home, self.pinned, rounding_bits=self._seeded_bits)
        return self._answers


class InProcessTransport:
    """`RoundTransport` over hospitals in this process, which answer one after the other.

    Hospitals stay open between rounds for as long as memory lasts; the others are opened for each answer, as
    if their workers were restarted. Every round visits all of them, so those that were kept once stay.

    Args:
        sites: the hospitals that started.
        read_roster: the server's roster.
        memory_limit_bytes: resident memory of this process above which no further hospital stays open.
    """

    def __init__(
        self,
        sites: Mapping[str, InProcessSite],
        read_roster: Callable[[], Roster],
        *,
        memory_limit_bytes: int,
    ) -> None:
        self._sites = sites
        self._read_roster = read_roster
        self._memory_limit_bytes = memory_limit_bytes
        self._kept: set[str] = set()

    def roster(self) -> Sequence[RosterLine]:
        """Admitted hospitals that started: nobody waits for one that cannot come."""
        return [line for line in self._read_roster().admitted if line.entry.site_id in self._sites]

    def connected(self) -> set[str]:
        """All of them."""
        return set(self._sites)

    def exchange(
        self,
        sites: Sequence[str],
        envelope: Envelope,
        payload: bytes | Mapping[str, bytes],
        *,
        ttl_s: float,
        kind: str,
        is_enough: Callable[[], bool] | None = None,
    ) -> Iterator[RawReply]:
        """One answer after the other; each hospital has all of `ttl_s` for its own."""
        del kind
        for site_id in sites:
            site = self._sites[site_id]
            own = payload if isinstance(payload, bytes) else payload[site_id]
            yield site.answer(envelope, own, deadline_s=ttl_s)
            self._keep_or_close(site)
            if is_enough is not None and is_enough():
                return

    def _keep_or_close(self, site: InProcessSite) -> None:
        """A process seldom gives memory back: who was kept while there was enough is not closed for later growth."""
        if site.site_id in self._kept:
            return
        if resident_bytes() > self._memory_limit_bytes:
            site.close()
        else:
            self._kept.add(site.site_id)


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _dropped(site_id: str, code: DropCode, after_s: float) -> RawReply:
    return RawReply(
        site_id=site_id, envelope=None, code=code, payload=b"", answered_after_s=after_s
    )
