"""server.yaml: where the consortium's server listens and what it lets through."""

from typing import Annotated, Literal

from pydantic import Field

from fedhealth.config.base import ConfigModel
from fedhealth.config.levels import LogLevel

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$")]
"""A host name or an IP address, without scheme, port or brackets."""


class ServerConfig(ConfigModel):
    """The server's gateway and logs. The study is in study.yaml, the sites are in the roster."""

    schema_version: Literal[1] = Field(description="Version of this file's format.")
    public_host: Host = Field(
        description="Host name or IP address that sites dial; it goes into the TLS certificate."
    )
    listen_host: Host = Field(
        "127.0.0.1", description="Address that the gateway binds; 0.0.0.0 for all interfaces."
    )
    port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="TCP port of the gateway; 0: `server init` picks a free one.",
    )
    max_body_mb: int = Field(
        512, ge=1, le=2048, description="Largest request that the gateway accepts, in megabytes."
    )
    request_timeout_s: float = Field(
        60, gt=0, le=3600, description="A request that takes longer is cut off by the gateway."
    )
    stop_grace_s: float = Field(
        20, gt=0, le=600, description="How long processes may take to end before they are killed."
    )
    log_level: LogLevel = Field("info", description="Detail of the server's own log files.")
