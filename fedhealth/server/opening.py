"""A connection that does not finish its request line and headers in time is closed.

uvicorn times out only between two requests: whoever opens connections and sends headers byte by byte would hold
all places of the gateway. Bodies have their own limit (`gateway.py`).
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.auto import AutoHTTPProtocol

LONGEST_S: Final = 15.0
_Base: Any = AutoHTTPProtocol  # httptools or h11: both keep the request at work in `cycle`


class OpeningTimeout(_Base):  # type: ignore[misc]  # the base is chosen at run time
    """uvicorn's HTTP protocol with a limit on the time before a request is complete up to its body."""

    limit_s: float = LONGEST_S
    _opening: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """A client connected: the time runs."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Bytes came: either a request is at work now, or the time runs."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if not self._is_opening():
            self._stop()
        elif self._opening is None:
            self._opening = self.loop.call_later(self.limit_s, self._close)

    def _is_opening(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None

    def _close(self) -> None:
        self._opening = None
        if self._is_opening():
            self.transport.close()


def opening_timeout(seconds: float) -> type[asyncio.Protocol]:
    """The protocol class with a limit of `seconds`, and never more than `LONGEST_S`."""
    chosen = min(seconds, LONGEST_S)
    return type("ChosenOpeningTimeout", (OpeningTimeout,), {"limit_s": chosen})
