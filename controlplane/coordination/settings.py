"""Configuration of coordination: the section `coordination`, a part of `config.ControlPlaneConfig`."""

from __future__ import annotations

import enum
import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FilePath, field_validator, model_validator

_ENDPOINT = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


class Backend(enum.StrEnum):
    """Through what several control planes know of one another."""

    LOCAL = "local"
    """Not at all: there is one only."""
    ETCD = "etcd"


class EtcdTlsSettings(BaseModel):
    """PEM files for endpoints with https. Without `ca_path`, gRPC's own list of CAs counts.

    Where etcd has authentication switched on, the common name of the certificate says who we are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca_path: FilePath | None = None
    cert_path: FilePath | None = None
    key_path: FilePath | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.cert_path is None) != (self.key_path is None):
            raise ValueError("cert_path and key_path go together")
        return self


class CoordinationSettings(BaseModel):
    """How control planes elect who decides, and where marks of fenced nodes are published beside the database."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Backend = Backend.LOCAL
    endpoints: list[str] = Field(default_factory=list)
    """Of etcd's members, such as https://etcd-1.example:2379; any of them may be away."""
    prefix: Annotated[str, Field(pattern=r"^[!-~]*/$", max_length=200)] = "/limiquantix/"
    """Begins every key, ends with a slash. Two clusters that share an etcd have different ones."""
    session_ttl_s: Annotated[int, Field(ge=2, le=60)] = 5
    """How long after the death of the elected process another one may be elected. etcd counts in whole seconds, and
    from 2 on."""
    tls: EtcdTlsSettings = EtcdTlsSettings()

    @field_validator("endpoints")
    @classmethod
    def _are_endpoints(cls, value: list[str]) -> list[str]:
        for endpoint in value:
            match = _ENDPOINT.fullmatch(endpoint)
            if match is None or not 0 < int(match[2]) <= 65_535:
                raise ValueError(f'{endpoint!r} is not "http://host:port" or "https://host:port"')
        if len({endpoint.partition(":")[0] for endpoint in value}) > 1:
            raise ValueError("all endpoints speak TLS (https) or none does")
        if len(set(value)) < len(value):
            raise ValueError("an endpoint is named twice")
        return value

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if self.backend is Backend.ETCD and not self.endpoints:
            raise ValueError("backend etcd needs endpoints, such as [http://127.0.0.1:2379]")
        if self.backend is Backend.LOCAL and self.endpoints:
            raise ValueError("endpoints are of no use to backend local; say backend: etcd")
        has_tls_files = self.tls != EtcdTlsSettings()
        if has_tls_files and any(endpoint.startswith("http:") for endpoint in self.endpoints):
            raise ValueError("tls is of no use to endpoints with http; say https")
        return self
