"""What answering a manifest costs this site's patients, and the durable account of it.

`local_round.py` calls it step by step: nothing is computed from patients before `reserve` came back, nothing is
sent before `seal` came back.
"""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from fedhealth.config.study import Study
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.durable import write_atomically, write_json
from fedhealth.errors import PrivacyError
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import LedgerPlace, Manifest, PrivacySpend
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.events import Event, UnboundedRelease, merge_events
from fedhealth.privacy.accounting.metrics import told_metrics
from fedhealth.privacy.accounting.plan import SitePlan, default_delta, plan_site
from fedhealth.privacy.ledger.ledger import BudgetLedger, LedgerView, Reservation, SealedAnswer
from fedhealth.privacy.ledger.mark import LedgerMark
from fedhealth.privacy.policy import check_budget, check_plan, check_sums
from fedhealth.secagg.patient_account import NoisedSums, noised_sums, patient_delta
from fedhealth.site.home import Pinned, SiteHome
from fedhealth.site.manifest_checks import ManifestRefusedError
from fedhealth.site.sessions import model_sizes

KEY_BYTES: Final = 32
ROW_NAME: Final = "benefit-row"
"""What the ledger calls rows of `fedhealth benefit`, in the place of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one answer may do and say: fixed before training, and held against what training did.

    Attributes:
        spend: what goes into the signed contribution.
        mechanism: DP-SGD to be carried out; None without patient-level privacy or without training.
        metrics: names of the metrics that were charged, or that need no charge in a study without privacy.
    """

    spend: PrivacySpend
    mechanism: PatientMechanism | None
    metrics: tuple[str, ...]


class SiteAccount:
    """The site's plan, policy and ledger for one study.

    Raises:
        PrivacyError: the study asks for more than the site's policy allows, or the ledger cannot be used.
    """

    def __init__(self, home: SiteHome, pinned: Pinned) -> None:
        self._pinned = pinned
        self._policy = pinned.config.privacy
        study = pinned.study
        declared = pinned.admission.site.train_size or pinned.config.declared_train_size
        self._declared = declared
        self._plan = plan_site(study, declared)
        self._delta = account_delta(study, self._plan, declared)
        self._sums = sums_of_study(study)
        if self._plan is None and self._sums is not None:
            check_sums(
                self._policy,
                self._sums.planned,
                delta=self._delta,
                noise_multiplier=self._sums.noise_multiplier,
                clipping_norm=self._sums.clipping_norm,
            )
        else:
            check_plan(self._policy, self._plan, declared_train_size=declared)
        self._promised = promised_epsilon(study, self._plan, self._sums, self._delta)
        self._ledger = BudgetLedger.open(
            home.ledger(pinned.config),
            dataset=self._policy.dataset,
            key=read_sealing_key(home.ledger_key),
        )

    @property
    def plan(self) -> SitePlan | None:
        """The study's privacy plan for this site; None when the study has no patient-level privacy."""
        return self._plan

    def check_witness(self, manifest: Manifest) -> None:
        """Is this ledger at least as new as the one that the server last saw? Without a witness nobody knows.

        Raises:
            ManifestRefusedError: it is an older copy (ledger_refused).
        """
        own = self._pinned.admission.site.site_id
        seen = next((m.ledger for m in manifest.cohort if m.site_id == own), None)
        if seen is None:
            return
        mark = LedgerMark(sequence=seen.sequence, head=seen.head)
        if not self._ledger.contains(mark):
            raise ManifestRefusedError(
                DropCode.LEDGER_REFUSED,
                f"the privacy ledger does not hold line {mark.sequence} that the server has seen from this "
                "site: it is an older copy, and what was spent since is missing from it. Restore the newest "
                "copy, or run `fedhealth site recover`",
            )
        write_json(self._pinned.folder.witness, {"sequence": mark.sequence, "head": mark.head})

    def reserve(
        self, manifest: Manifest, manifest_sha256: str, *, has_own_split: bool = False
    ) -> Charge:
        """Spend, durably, what this manifest costs. A crash from here on costs the same.

        Args:
            manifest: verified.
            manifest_sha256: its digest.
            has_own_split: the site package's own split may put a patient on another side tomorrow, so that no
                side can be counted by itself: every event then counts for all patients.

        Raises:
            PrivacyError: replay, budget spent, or the ledger cannot be written: nothing may be computed.
        """
        names = told_metrics(self._pinned.study, manifest.kind)
        events = self._events(manifest, names)
        if has_own_split:
            events = tuple(_for_all(event) for event in events)
        if manifest.kind == "evaluate" and events and not self._fits(events):
            # The final model is still worth having, without telling its metrics.
            names, events = (), ()
        before: list[tuple[Event, ...]] = []
        mark = self._ledger.reserve(
            Reservation(
                study_id=manifest.study_id,
                study_sha256=manifest.study_sha256,
                run_name=manifest.run_name,
                round_number=manifest.round_number,
                attempt=manifest.attempt,
                kind=manifest.kind,
                manifest_sha256=manifest_sha256,
                events=events,
            ),
            allow=partial(self._allow, events, before),
        )
        return Charge(
            spend=PrivacySpend(
                round_events=events,
                study_events=merge_events((*before[-1], *events)),
                delta=self._delta,
                clipping_norm=self._clipping_norm,
                ledger=LedgerPlace(sequence=mark.sequence, head=mark.head),
            ),
            mechanism=self._mechanism(manifest),
            metrics=names,
        )

    def reserve_row(self, row_sha256: str) -> None:
        """Spend, durably, what a row of `fedhealth benefit` costs: an event without a bound, outside of any round.

        Args:
            row_sha256: digest of the signed row; each release counts.

        Raises:
            PrivacyError: the policy forbids it, or the ledger cannot be written: nothing may be written then.
        """
        events: tuple[Event, ...] = (UnboundedRelease(unit="patient", steps=1),)
        study = self._pinned.study
        earlier = [
            line.round_number
            for line in self._ledger.view().lines
            if (line.study_id, line.run_name) == (study.id, ROW_NAME)
        ]
        self._ledger.reserve(
            Reservation(
                study_id=study.id,
                study_sha256=self._pinned.study_sha256,
                run_name=ROW_NAME,
                round_number=1 + max(earlier, default=0),
                attempt=1,
                kind="evaluate",
                manifest_sha256=row_sha256,
                events=events,
            ),
            allow=partial(self._allow, events, []),
        )

    @property
    def _clipping_norm(self) -> float | None:
        if self._plan is not None:
            return self._plan.clipping_norm
        return None if self._sums is None else self._sums.clipping_norm

    def sealed(self, manifest_sha256: str) -> SealedAnswer | None:
        """The answer that was sealed for this very manifest, to be sent again byte by byte; None if none."""
        return self._ledger.sealed(manifest_sha256)

    def seal(
        self, manifest_sha256: str, contribution: Envelope, payload: bytes | memoryview
    ) -> None:
        """Keep the answer, encrypted and durable, before it is sent.

        Raises:
            PrivacyError: it could not be stored; it must not be sent then.
        """
        header = json.dumps(contribution.model_dump()).encode()
        self._ledger.seal(manifest_sha256, SealedAnswer(header=header, payload=bytes(payload)))

    def commit(self, manifest_sha256: str) -> None:
        """Record that the answer went to the relay."""
        self._ledger.commit(manifest_sha256)

    def _allow(
        self, events: tuple[Event, ...], before: list[tuple[Event, ...]], view: LedgerView
    ) -> None:
        """Called under the ledger's lock, with what is spent at that moment."""
        spent = view.events(self._pinned.study.id)
        before.append(spent)
        check_budget(
            self._policy,
            study_events=spent,
            dataset_events=view.events(),
            new_events=events,
            delta=self._delta,
            dataset_delta=min(self._delta, default_delta(self._declared)),
            target_epsilon=self._promised,
        )

    def _fits(self, events: tuple[Event, ...]) -> bool:
        try:
            self._allow(events, [], self._ledger.view())
        except PrivacyError:
            return False
        return True

    def _mechanism(self, manifest: Manifest) -> PatientMechanism | None:
        if self._plan is None or manifest.kind == "evaluate":
            return None
        return self._plan.mechanism(manifest.run_name)

    def _events(self, manifest: Manifest, metrics: tuple[str, ...]) -> tuple[Event, ...]:
        if self._plan is None and self._sums is not None:
            event = self._sums.by_run[manifest.run_name]
            return (event,) if manifest.kind == "train" else ()
        if self._plan is None:
            says_something = manifest.kind == "train" or bool(metrics)
            return (UnboundedRelease(unit="patient", steps=1),) if says_something else ()
        trained = (self._plan.train_event(manifest.run_name),) if manifest.kind == "train" else ()
        told = (self._plan.metrics_event(),) if metrics else ()
        return (*trained, *told)


def _for_all(event: Event) -> Event:
    is_unbounded = isinstance(event, UnboundedRelease)
    return event if is_unbounded else event.model_copy(update={"population": "all"})


def account_delta(study: Study, plan: SitePlan | None, declared_train_size: int) -> float:
    """Delta of a patient's account; in a study that hides sizes it follows from public numbers only."""
    if plan is not None:
        return plan.delta
    return patient_delta(study) if study.hides_sizes else default_delta(declared_train_size)


def sums_of_study(study: Study) -> NoisedSums | None:
    """What sums with distributed noise cost a patient; None without such noise.

    Raises:
        PrivacyError: no noise and grid fit the study.
    """
    masks = study.secure_aggregation
    if masks is None or masks.distributed_privacy is None:
        return None
    return noised_sums(study, model_sizes(study))


def promised_epsilon(
    study: Study, plan: SitePlan | None, sums: NoisedSums | None, delta: float
) -> float | None:
    """What the study as planned costs a patient: a server that asks for more rounds than that gets none.

    It holds also where the site set no limit. None where nothing was promised.
    """
    if plan is None or study.privacy is None:
        planned = () if sums is None else sums.planned
        return compose(planned, delta=delta).epsilon if planned else None
    if study.privacy.target_epsilon is not None:
        return study.privacy.target_epsilon
    return compose(plan.planned_events(), delta=plan.delta).epsilon


def read_sealing_key(path: Path) -> bytes:
    """The key that sealed answers are encrypted with, born here at the first use."""
    if not path.exists():
        write_atomically(path, os.urandom(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise PrivacyError(
            "FH-PRIVACY-090",
            "the key of the sealed answers is damaged.",
            why="Answers that wait to be sent again could not be read.",
            fix=f"Restore {path} from a backup; or move it away: waiting answers are then lost, what was "
            "spent is not.",
        )
    return key
