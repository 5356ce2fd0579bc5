"""The file of power controllers: one entry a host. Passwords stay in files of their own."""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from controlplane.power.agent import AgentFailed

MAX_PASSWORD_BYTES = 4096
"""No password is longer; a wrong path, such as that of a disk, must not be read whole."""

_Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[^\s\x00-\x1f]+$")]
_Line = Annotated[str, Field(max_length=1024, pattern=r"^[^\r\n\x00]*$")]
_Key = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


class DevicesUnusable(Exception):
    """The file of power controllers cannot be used; the message names it and says what is wrong."""


class _Device(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: _Name
    """Hostname of the node, as `limiquantix node list` shows it."""
    address: _Name
    username: _Line = ""
    password_file: Path | None = None
    """Only the owner may read it (mode 0600); its first line is the password."""

    @field_validator("password_file")
    @classmethod
    def _is_absolute(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError("must be an absolute path")
        return path

    def password(self) -> str:
        """Read the password; "" if no file is configured.

        Raises:
            AgentFailed: the file cannot be read, or others may read it.
        """
        return "" if self.password_file is None else _read_password(self.password_file)


class RedfishDevice(_Device):
    """A controller that speaks Redfish. `system_id` is needed only if it has several systems."""

    agent: Literal["redfish"]
    system_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]*$")] = ""
    ca_path: Path | None = None
    """PEM file of who signed its certificate; without it, those that the system trusts."""
    verify_tls: bool = True
    allow_plain_http: bool = False
    """Whether the password may be sent unencrypted to another machine."""

    @model_validator(mode="after")
    def _is_address_safe(self) -> Self:
        url = urlsplit(self.address)
        if url.scheme not in ("http", "https") or not url.hostname or url.path not in ("", "/") or url.query:
            raise ValueError('address must be like "https://10.0.0.7"')
        if url.username is not None or url.password is not None:
            raise ValueError("address must hold no user and password: use username and password_file")
        if url.scheme == "http" and not (self.allow_plain_http or _is_this_machine(url.hostname)):
            raise ValueError("address is plain http, which shows the password: use https, or say allow_plain_http")
        return self


class IpmiDevice(_Device):
    """A controller that speaks IPMI 2.0 over LAN; the program ipmitool asks it."""

    agent: Literal["ipmi"]
    port: Annotated[int, Field(ge=1, le=65_535)] = 623
    executable: Path = Path("/usr/bin/ipmitool")

    @field_validator("executable")
    @classmethod
    def _is_program_absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError("must be an absolute path")
        return path

    @model_validator(mode="after")
    def _is_no_option(self) -> Self:
        if self.address.startswith("-"):
            raise ValueError("address must be a name or an IP address")
        return self


class CommandDevice(_Device):
    """Any program that behaves as the fence agents of ClusterLabs do; `parameters` are given to it as they are."""

    agent: Literal["command"]
    executable: Path
    parameters: dict[_Key, _Line] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if not self.executable.is_absolute():
            raise ValueError("executable must be an absolute path")
        own = {"action", "ip", "username", "password"} & self.parameters.keys()
        if own:
            raise ValueError(f"parameters must not hold {', '.join(sorted(own))}: there are settings for them")
        return self


Device = Annotated[RedfishDevice | IpmiDevice | CommandDevice, Field(discriminator="agent")]


class _DevicesFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    controllers: list[Device]

    @model_validator(mode="after")
    def _is_unambiguous(self) -> Self:
        hosts = [device.host for device in self.controllers]
        twice = sorted({host for host in hosts if hosts.count(host) > 1})
        if twice:
            raise ValueError(f"more than one controller of {', '.join(twice)}")
        return self


def load_devices(path: Path) -> dict[str, RedfishDevice | IpmiDevice | CommandDevice]:
    """Read the file; by hostname.

    Raises:
        DevicesUnusable: it cannot be read or says something wrong.
    """
    try:
        document = yaml.safe_load(path.read_bytes())
        return {device.host: device for device in _DevicesFile.model_validate(document).controllers}
    except OSError as error:
        raise DevicesUnusable(f"power controllers {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # its own words quote the line, in which somebody may have written a password
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise DevicesUnusable(f"power controllers {path} is not YAML{where}") from None
    except ValidationError as error:
        raise DevicesUnusable(f"power controllers {path}: {error}") from error


def _read_password(path: Path) -> str:
    try:
        # without O_NONBLOCK a FIFO in its place would stop the whole process
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise AgentFailed(f"password file {path} is no regular file", is_final=True)
            if status.st_mode & 0o077:
                raise AgentFailed(f"password file {path} may be read by others: chmod 600 it", is_final=True)
            lines = file.read(MAX_PASSWORD_BYTES).decode().splitlines()
    except OSError as error:
        raise AgentFailed(f"password file {path} cannot be read: {error.strerror}", is_final=True) from error
    except UnicodeDecodeError:
        raise AgentFailed(f"password file {path} is not UTF-8 text", is_final=True) from None
    if not lines or not lines[0]:
        raise AgentFailed(f"password file {path} is empty", is_final=True)
    return lines[0]


def _is_this_machine(hostname: str) -> bool:
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return hostname == "localhost"
