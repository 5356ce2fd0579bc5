"""The section `identity` of the control plane's configuration."""

from __future__ import annotations

import enum
import ipaddress
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class TokenAlgorithm(enum.StrEnum):
    """What ID tokens may be signed with; shared secrets are not among it."""

    RS256 = "RS256"
    ES256 = "ES256"
    EDDSA = "EdDSA"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IssuerSettings(_Section):
    """An OpenID Connect issuer whose ID tokens begin sessions.

    Users of it are called "<username_claim>@<name>" and their groups "<name>:<group>", so neither is ever taken for a
    local one.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    url: str
    """As its tokens have it in `iss`, to the letter. HTTPS, but for one on this machine's loopback address."""
    client_id: Annotated[str, Field(min_length=1, max_length=256)]
    audience: str = ""
    """What tokens must have in `aud`; empty for the client id."""
    username_claim: Annotated[str, Field(min_length=1)] = "preferred_username"
    groups_claim: str = "groups"
    """Empty: tokens tell no groups."""
    algorithms: Annotated[frozenset[TokenAlgorithm], Field(min_length=1)] = frozenset({TokenAlgorithm.RS256})
    creates_users: bool = True
    """Whether whoever logs in first is made a user, who may do nothing yet but for groups that have roles."""
    scopes: tuple[str, ...] = ("openid", "profile", "groups")
    """What the command line asks for."""

    @field_validator("url")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.query or parts.fragment or parts.username is not None or not parts.hostname:
            raise ValueError(f"{value!r} is not the URL of an issuer")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback_url(value)):
            raise ValueError(f"{value!r} must begin with https://")
        return value

    @property
    def wanted_audience(self) -> str:
        """What tokens must have in `aud`."""
        return self.audience or self.client_id


class IdentitySettings(_Section):
    """People and programs."""

    issuers: tuple[IssuerSettings, ...] = ()
    audience: Annotated[str, Field(min_length=1)] = "limiquantix"
    """What access tokens have in `aud`; tokens for another audience are refused."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for kind in ("name", "url"):
            values = [getattr(issuer, kind) for issuer in self.issuers]
            if len(set(values)) != len(values):
                raise ValueError(f"two issuers have the same {kind}")
        return self


def is_loopback_url(url: str) -> bool:
    """Whether a URL names this machine's loopback address, as a number or as "localhost"."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
