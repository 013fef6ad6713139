"""The ClientApp of a simulation with Ray: a message in, one hospital's answer out. For `simulation/ray_hospital.py`.

Unlike the relay (`client_app.py`) it answers in its own process: a simulated hospital has no data zone to protect.
"""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.signing import Envelope
from fedhealth.flower.simulated_transport import HOSPITAL
from fedhealth.flower.wire import pack, pack_code, unpack
from fedhealth.server.messages import RawReply

Answer = Callable[[Path, str, Envelope, bytes, float], RawReply]
"""Home of the hospital, study id, envelope, payload and deadline in seconds."""


def hospital_app(answer: Answer) -> ClientApp:
    """A ClientApp whose every message is answered by `answer`."""
    app = ClientApp()

    def reply(message: Message, context: Context) -> Message:
        del context
        return Message(_reply(message.content, answer), reply_to=message)

    app.train()(reply)
    app.evaluate()(reply)
    return app


def _reply(content: RecordDict, answer: Answer) -> RecordDict:
    asked = content.config_records[HOSPITAL]
    envelope, payload = unpack(content)
    given = answer(
        Path(str(asked["home"])),
        str(asked["study-id"]),
        Envelope.from_bytes(envelope),
        payload,
        float(str(asked["deadline-s"])),
    )
    if given.envelope is None:
        return pack_code(given.code or DropCode.SITE_ERROR)
    return pack(given.envelope, given.payload)
