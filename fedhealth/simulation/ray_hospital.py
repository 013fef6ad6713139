"""How a process of Ray answers for a hospital: the same code as in one process. Loaded by Flower's simulation by name.

Any process may be asked for any hospital. What it remembers of one is good for as long as nobody else answered for it;
otherwise the hospital is opened anew, as after a restart of its worker.
"""

import os
import secrets
from functools import cache
from pathlib import Path
from typing import Final

from fedhealth.contracts.codes import DropCode
from fedhealth.durable import exclusive, read_json, without_sync, write_json
from fedhealth.errors import TransportError
from fedhealth.evidence.signing import Envelope
from fedhealth.flower.simulated_hospital import hospital_app
from fedhealth.server.messages import RawReply
from fedhealth.simulation.in_process import InProcessSite
from fedhealth.simulation.threads import one_thread
from fedhealth.site.home import SiteHome

MEMORY: Final = "answered-by.json"


@cache
def _remembered(root: Path, study_id: str) -> tuple[InProcessSite, str]:
    """A hospital in this process, and a word that no other process has."""
    return InProcessSite(SiteHome(root), study_id), f"{os.getpid()}-{secrets.token_hex(8)}"


def answer(
    root: Path, study_id: str, envelope: Envelope, payload: bytes, deadline_s: float
) -> RawReply:
    """One answer of the hospital whose home is `root`; SITE_BUSY while another process answers for it."""
    site, own = _remembered(root, study_id)
    try:
        with exclusive(root / "answering.lock", what="a hospital"), without_sync(), one_thread():
            if read_json(root / MEMORY).get("by") != own:
                site.close()
                write_json(root / MEMORY, {"by": own})
            return site.answer(envelope, payload, deadline_s=deadline_s)
    except TransportError as error:
        if error.code != "FH-LOCK-001":
            raise
        return RawReply(
            site_id=site.site_id,
            envelope=None,
            code=DropCode.SITE_BUSY,
            payload=b"",
            answered_after_s=0.0,
        )


app = hospital_app(answer)
