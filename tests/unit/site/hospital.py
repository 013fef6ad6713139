"""One hospital without sockets: what its worker does with each manifest. For the tests beside it."""

from pathlib import Path
from typing import Any

import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import GateRefusedError, PrivacyError
from fedhealth.evidence.statements import Contribution, PrivacySpend, open_statement
from fedhealth.site.account import SiteAccount
from fedhealth.site.answers import SignedAnswer
from fedhealth.site.home import Pinned, SiteHome
from fedhealth.site.local_round import RoundRequest, local_round
from fedhealth.site.manifest_checks import drop_code_of
from fedhealth.site.masking import SiteMasking
from fedhealth.site.sessions import Sessions

from ..conftest import Consortium, study_content  # noqa: TID252 - tests are no installed package


class Hospital:
    """One site without sockets: what the worker does with each manifest."""

    def __init__(self, consortium: Consortium, site_id: str = "site-1") -> None:
        self.consortium = consortium
        self.home = SiteHome(consortium.sites[site_id].root)
        self.site_id = site_id
        self.restart()

    def restart(self) -> None:
        self.pinned: Pinned = self.consortium.pinned(self.site_id)
        self.account = SiteAccount(self.home, self.pinned)
        self.sessions = Sessions(self.home, self.pinned)
        self.masking = SiteMasking(self.pinned)

    def round(self, *, is_cancelled: bool = False, **changes: Any) -> SignedAnswer:
        request = RoundRequest(
            header=self.consortium.header(**changes),
            payload=self.consortium.payload(),
            is_cancelled=lambda: is_cancelled,
        )
        return local_round(request, self.pinned, self.sessions, self.account, self.masking)

    def said(self, answer: SignedAnswer) -> Contribution:
        return open_statement(Contribution, answer.contribution, self.pinned.signing_key.public)

    def spend(self, answer: SignedAnswer) -> PrivacySpend:
        spend = self.said(answer).privacy
        assert spend is not None
        return spend

    @property
    def ledger(self) -> Path:
        return self.home.ledger(self.pinned.config)

    def refused(self, **changes: Any) -> DropCode | None:
        with pytest.raises((PrivacyError, GateRefusedError)) as error:
            self.round(**changes)
        return drop_code_of(error.value)

    def set_policy(self, text: str) -> None:
        path = self.home.config_path
        kept = [line for line in path.read_text().splitlines() if not line.startswith("privacy:")]
        path.write_text("\n".join([*kept, f"privacy: {text}", ""]))


PRIVATE = {"noise_multiplier": 2.0, "clipping_norm": 1.0}


def private_content(**changes: Any) -> dict[str, Any]:
    content = study_content() | {"privacy": PRIVATE | changes, "release": {"metrics": []}}
    content["training"] |= {"batch_size": 2, "options": {"step": 0.5, "carries_out": True}}
    return content
