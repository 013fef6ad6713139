"""Does the server answer at all? Asked before a site starts its Flower processes, by `flower/run_site.py`.

They are three, and take seconds of processor time to start: a site that waits for its server asks with one
small request instead.
"""

import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

ANSWER_S: Final = 5.0
_SERVER_ERROR: Final = 500  # a proxy in front of a server that is away answers 502 to 504


def server_answers(address: str, ca_certificate: Path, *, timeout_s: float = ANSWER_S) -> bool:
    """Ask the gateway's health check over TLS, through the proxy of the environment as Flower's own client does.

    Says nothing about this site's key: the SuperNode learns that. A proxy that lets the fleet interface through
    and nothing else answers with a refusal, which counts as an answer.

    Args:
        address: host:port of the gateway.
        ca_certificate: the consortium's own authority, in PEM form.
        timeout_s: for connecting, and for each read.
    """
    context = ssl.create_default_context(cafile=str(ca_certificate))
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(f"https://{address}/health", timeout=timeout_s):
            return True
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code < _SERVER_ERROR
    except (OSError, http.client.HTTPException):
        return False
