"""The section `security` of the control plane's configuration: who may call, and how machines prove who they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FilePath, field_validator, model_validator

from controlplane.listen_address import check_address

DEFAULT_HOSTS_ADDRESS = "127.0.0.1:8082"


class SecuritySettings(BaseModel):
    """What a control plane needs to be told to know whom it serves.

    Attributes:
        name: of this control plane among its like; its host's name if empty.
        names: host names and IP addresses by which people, programs and hosts call it.
        hosts_listen_address: of the port for hosts, which asks for a certificate of the cluster's authority.
        addresses: "host:port" of every control plane's port for people and programs (gRPC), for join tokens; its own
            listener if empty.
        hosts_addresses: the same of the ports for hosts, told to hosts when they join.
        runtime_dir: where the certificate of the HTTPS listener is kept, best in memory.
        open_reflection: whether the gRPC port describes its services, which are public, to strangers too; for those who
            develop against it.
        authority_cert_path: of an authority of one's own (PEM); needs its key too. One is made if there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(max_length=253, pattern=r"^([A-Za-z0-9][A-Za-z0-9.-]*)?$")] = ""
    names: tuple[Annotated[str, Field(min_length=1, max_length=253)], ...] = ("localhost", "127.0.0.1", "::1")
    hosts_listen_address: str = DEFAULT_HOSTS_ADDRESS
    addresses: tuple[str, ...] = ()
    hosts_addresses: tuple[str, ...] = ()
    runtime_dir: Path = Path("/run/limiquantix/controlplane")
    open_reflection: bool = False
    authority_cert_path: FilePath | None = None
    authority_key_path: FilePath | None = None

    @field_validator("hosts_listen_address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return check_address(value)

    @model_validator(mode="after")
    def _authority_is_complete(self) -> Self:
        if (self.authority_cert_path is None) != (self.authority_key_path is None):
            raise ValueError("authority_cert_path and authority_key_path go together")
        return self
