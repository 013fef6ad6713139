"""One site's answers to what the server sends: rounds, mask keys and unmasking, every failure turned into a code.

The worker calls it behind its socket, and `fedhealth simulate` in its own process: both give the same answers.
"""

import logging

from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.local_training import SiteContext
from fedhealth.errors import (
    CancelledTrainingError,
    FedHealthError,
    GateRefusedError,
    SiteDataError,
    TrainingError,
)
from fedhealth.evidence.journal import Journal
from fedhealth.gate.gate import refusal_code
from fedhealth.privacy.policy import check_patients
from fedhealth.secagg.site_rules import check_site_rules
from fedhealth.site.account import SiteAccount
from fedhealth.site.answers import SignedAnswer
from fedhealth.site.home import Pinned, SiteHome
from fedhealth.site.local_round import (
    RoundingBits,
    RoundRequest,
    bits_from_os,
    local_round,
    refuse_round,
)
from fedhealth.site.manifest_checks import drop_code_of, envelope_of
from fedhealth.site.masking import KEY_REQUEST, SiteMasking, is_masking_request
from fedhealth.site.sessions import Sessions
from fedhealth.site.worker_log import log_frames

log = logging.getLogger("fedhealth.site.worker")


class SiteAnswers:
    """What one site keeps between rounds, and how it answers. One request at a time.

    Args:
        home: of the site.
        pinned: what it believes.
        rounding_bits: randomness of updates in 8 bits; a simulation gives the same every time.

    Raises:
        PrivacyError: the study asks for more than the site's policy allows, or the ledger cannot be used.
        ConfigError: a plug-in is missing or refuses its options.
    """

    def __init__(
        self, home: SiteHome, pinned: Pinned, *, rounding_bits: RoundingBits = bits_from_os
    ) -> None:
        self._pinned = pinned
        self._rounding_bits = rounding_bits
        self._account = SiteAccount(home, pinned)
        self._sessions = Sessions(home, pinned)
        self._masking = SiteMasking(pinned)
        self.journal = Journal(pinned.folder.journal)

    @property
    def largest_request_bytes(self) -> int:
        """The most that a request of this study may carry."""
        return max(self._sessions.largest_model_bytes, self._masking.largest_request_bytes)

    def check_rules(self) -> None:
        """What the site asks of a study before it reads a patient.

        Raises:
            GateRefusedError: FH-SECAGG-011 to 013 the study masks less than this site asks for.
        """
        check_site_rules(self._pinned.study, self._pinned.config)

    def load_cohort(self) -> None:
        """Load the cohort and open the first run's session, so that wrong data is found at the start.

        Raises:
            SiteDataError, ConfigError: see `Sessions.open`, `Sessions.check_declarations`.
            PrivacyError: fewer training patients than this site's policy wants.
        """
        if self._pinned.config.privacy.min_patients > 1:
            check_patients(self._pinned.config.privacy, self._sessions.num_training_patients())
        self._sessions.check_declarations()
        self._sessions.open(self._pinned.study.runs[0].name)

    def context(self, run_name: str) -> SiteContext:
        """What a training method gets from this site."""
        return self._sessions.context(run_name)

    def answer(self, request: RoundRequest) -> tuple[DropCode | None, SignedAnswer | None]:
        """The signed answer, or a signed code with its name; (code, None) where there is nothing to sign for."""
        try:
            if is_masking_request(request.header):
                return None, self._answer_masking(request)
            return None, local_round(
                request,
                self._pinned,
                self._sessions,
                self._account,
                self._masking,
                self._rounding_bits,
            )
        except FedHealthError as error:
            code = _code_of(error)
            log.warning("round not contributed code=%s error=%s", code.value, error.code)
            log.info("cause: %s", error)
        except Exception as error:  # noqa: BLE001 - plug-in code may raise anything; its text stays here
            code = DropCode.SITE_ERROR
            log_frames(log, error)
        return code, refuse_round(code, request.header, self._pinned)

    def sent(self, answer: SignedAnswer) -> None:
        """Record that an answer left."""
        if answer.sealed_for is not None:
            self._account.commit(answer.sealed_for)

    def _answer_masking(self, request: RoundRequest) -> SignedAnswer:
        """A request of secure aggregation; it says nothing about patients, so it costs nothing."""
        envelope = envelope_of(request.header)
        if envelope.payload_type == KEY_REQUEST:
            return self._masking.give_key(envelope)
        return self._masking.answer(envelope, bytes(request.payload))


def _code_of(error: FedHealthError) -> DropCode:
    named = drop_code_of(error)
    if named is not None:
        return named
    if isinstance(error, GateRefusedError):
        return refusal_code(error)
    if isinstance(error, CancelledTrainingError):
        return DropCode.CANCELLED
    if isinstance(error, SiteDataError):
        return DropCode.SITE_DATA
    if isinstance(error, TrainingError):
        return DropCode.TRAINING_FAILED
    return DropCode.SITE_ERROR
