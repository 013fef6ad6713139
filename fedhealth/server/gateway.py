"""The gateway: the only thing that sites can reach. TLS; `POST /v1/fleet/*` and `GET /health`, nothing else.

Flower's SuperLink serves its Control and Runtime APIs, which know no authentication, on the same port as the
Fleet API (docs/adr/0005). The gateway re-encrypts to the SuperLink on loopback, caps bodies, cuts off slow
requests, follows no redirect, counts bytes per node key, and writes down who was refused.

Run as `python -m fedhealth.server.gateway --home DIR --upstream PORT`.
"""

import argparse
import asyncio
import base64
import binascii
import hashlib
import json
import logging
import re
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fedhealth.server.home import ServerHome
from fedhealth.server.opening import opening_timeout
from fedhealth.server.roster import read_roster
from fedhealth.supervision.die_with_parent import die_with_parent

log = logging.getLogger("fedhealth.gateway")
FLEET_PREFIX: Final = "/v1/fleet/"
PUBLIC_KEY_HEADER: Final = "flwr-public-key"
PASSED_REQUEST_HEADERS: Final = ("content-type", "accept", "user-agent")
FLEET_METHOD: Final = re.compile(r"/v1/fleet/[a-z0-9-]{1,60}")
HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}
)
# Flower reads 403 as "the run is over" and goes on asking, and 401 also as a node id of an earlier server.
NOT_ADMITTED_STATUS: Final = 410
MAX_UNIX_PATH: Final = 100  # sun_path holds 108 bytes
MAX_EVENTS_PER_MINUTE: Final = 60
MEGABYTE: Final = 1_000_000


class WireCounters:
    """Bytes in and out per node key, as they crossed the gateway (bodies, without TLS and headers)."""

    def __init__(self) -> None:
        self._bytes: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, key_id: str, *, received: int = 0, sent: int = 0) -> None:
        """Count one transfer."""
        self._bytes[key_id][0] += received
        self._bytes[key_id][1] += sent

    async def tell(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer any connection on the local socket with the counters."""
        writer.write(json.dumps(self._bytes).encode())
        await writer.drain()
        writer.close()


class Gateway:
    """The ASGI application behind uvicorn."""

    def __init__(self, home: ServerHome, upstream_port: int) -> None:
        _, config = home.require()
        self._home = home
        self._max_body = config.max_body_mb * MEGABYTE
        self._timeout_s = config.request_timeout_s
        self._counters = WireCounters()
        self._events: list[float] = []
        self._roster_written = -1
        self._admitted_keys: frozenset[str] = frozenset()
        context = ssl.create_default_context(cafile=str(home.keys / "ca.crt"))
        self._upstream = httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{upstream_port}",
            verify=context,
            timeout=httpx.Timeout(config.request_timeout_s),
            follow_redirects=False,
            trust_env=False,
        )

    def application(self) -> Starlette:
        """Two routes; every other path and method is 403."""
        return Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route(FLEET_PREFIX + "{rest:path}", self._fleet, methods=["POST"]),
                Route(
                    "/{rest:path}", _forbidden, methods=["GET", "POST", "PUT", "DELETE", "PATCH"]
                ),
            ],
            lifespan=self._lifespan,
            exception_handlers={404: _forbidden, 405: _forbidden},
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        path = self._home.wire_counters
        path.unlink(missing_ok=True)
        async with self._upstream:
            if len(str(path)) > MAX_UNIX_PATH:
                log.warning("home path too long for the byte counters: records will not have them")
                yield
                return
            async with await asyncio.start_unix_server(self._counters.tell, path=str(path)):
                path.chmod(0o600)
                yield

    async def _health(self, _request: Request) -> Response:
        return PlainTextResponse("ok")

    async def _fleet(self, request: Request) -> Response:  # noqa: PLR0911 - one return a refusal
        if not FLEET_METHOD.fullmatch(request.url.path) or request.url.query:
            return await _forbidden(request)
        key_id = node_key_of(request)
        if key_id not in self._admitted():
            self._event("site_not_admitted", key_id)
            return PlainTextResponse(
                "this key is not admitted to the study", status_code=NOT_ADMITTED_STATUS
            )
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._max_body:
            self._event("body_too_large", key_id)
            return PlainTextResponse("request body too large", status_code=413)
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await _read(request, self._max_body)
                if body is None:
                    self._event("body_too_large", key_id)
                    return PlainTextResponse("request body too large", status_code=413)
                answer = await self._upstream.post(
                    request.url.path, content=body, headers=_passed(request)
                )
        except (TimeoutError, httpx.TimeoutException):
            self._event("timeout", key_id)
            return PlainTextResponse("timed out", status_code=504)
        except httpx.HTTPError:
            return PlainTextResponse("server is not ready", status_code=503)
        self._counters.add(key_id, received=len(body), sent=len(answer.content))
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
        return StreamingResponse(
            iter([answer.content]), status_code=answer.status_code, headers=headers
        )

    def _admitted(self) -> frozenset[str]:
        """Node keys on the roster. A claimed key proves nothing yet: the SuperLink checks its signature."""
        path = self._home.roster
        written = path.stat().st_mtime_ns if path.exists() else 0
        if written != self._roster_written:
            lines = read_roster(path).admitted
            self._admitted_keys = frozenset(line.entry.node_key_id for line in lines)
            self._roster_written = written
        return self._admitted_keys

    def _event(self, what: str, key_id: str) -> None:
        """One line for `server run` and `server status`; flooding cannot fill the disk."""
        now = time.time()
        self._events = [at for at in self._events if now - at < 60]  # noqa: PLR2004 - one minute
        if len(self._events) >= MAX_EVENTS_PER_MINUTE:
            return
        self._events.append(now)
        known = {line.entry.node_key_id: line for line in read_roster(self._home.roster).lines}
        line = known.get(key_id)
        entry = {
            "at": now,
            "event": what,
            "node_key_id": key_id,
            "site_id": line.entry.site_id if line else None,
            "state": line.state if line else "unknown",
        }
        with self._home.gateway_events.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def node_key_of(request: Request) -> str:
    """SHA-256 of the node key that the request claims (Flower's header holds its PEM in base64)."""
    try:
        pem = base64.b64decode(request.headers.get(PUBLIC_KEY_HEADER, ""), validate=True)
    except binascii.Error:
        pem = b""
    return hashlib.sha256(pem).hexdigest()


async def _read(request: Request, limit: int) -> bytes | None:
    """The body, or None as soon as it is larger than the limit."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _passed(request: Request) -> dict[str, str]:
    """Flower's own headers and the content type; cookies, forwarding headers and the rest stay outside.

    Of a header that comes twice the first one passes, which is the one that was checked here.
    """
    return {
        name: request.headers[name]
        for name in request.headers
        if name in PASSED_REQUEST_HEADERS or name.startswith("flwr-")
    }


async def _forbidden(_request: Request, _error: Exception | None = None) -> Response:
    return PlainTextResponse("forbidden: sites may use /v1/fleet/ only", status_code=403)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the gateway process."""
    parser = argparse.ArgumentParser(prog="fedhealth-gateway")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--upstream", type=int, required=True)
    args = parser.parse_args(arguments)
    die_with_parent()
    home = ServerHome(args.home)
    _, config = home.require()
    gateway = Gateway(home, args.upstream)
    uvicorn.run(
        gateway.application(),
        host=config.listen_host,
        port=config.port,
        http=opening_timeout(config.request_timeout_s),
        ssl_certfile=str(home.keys / "server.crt"),
        ssl_keyfile=str(home.keys / "server.key"),
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        limit_concurrency=1000,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
