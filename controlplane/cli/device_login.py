"""Logs in at an OpenID Connect issuer, with a browser on any machine: the device flow.

Source: RFC 8628 (device authorization grant).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import httpx

from controlplane.cli.credentials import is_this_machine
from controlplane.cli.failures import Failure

_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_LIMIT_S: Final = 10.0
_LONGEST_S: Final = 900.0
_SLOWER_BY_S: Final = 5.0


def id_token_of(
    issuer: dict[str, Any],
    tell: Callable[[str], None],
    pause: Callable[[float], None],
    transport: httpx.BaseTransport | None = None,
) -> str:
    """Have the person agree in a browser, and return the issuer's ID token.

    Args:
        issuer: as ListIssuers has it.
        tell: told where to go and what to enter there.
        pause: waits some seconds.

    Raises:
        Failure: the issuer does not offer this, does not answer, or the person did not agree.
    """
    url, client = str(issuer.get("url", "")), {"client_id": str(issuer.get("clientId", ""))}
    with httpx.Client(transport=transport, timeout=_LIMIT_S, follow_redirects=False) as http:
        discovery = _asked(http, "GET", f"{url.rstrip('/')}/.well-known/openid-configuration")
        if discovery.get("issuer") != url or "device_authorization_endpoint" not in discovery:
            raise Failure(f"issuer {url} does not offer to log in by a device code")
        begun = _asked(
            http,
            "POST",
            discovery["device_authorization_endpoint"],
            {**client, "scope": " ".join(issuer.get("scopes") or ("openid",))},
        )
        where = begun.get("verification_uri_complete") or begun.get("verification_uri")
        tell(f"open {where} in a browser and enter the code {begun.get('user_code')}")
        form = {**client, "grant_type": _GRANT, "device_code": str(begun.get("device_code", ""))}
        return _polled(http, str(discovery.get("token_endpoint", "")), form, begun, pause)


def _polled(
    http: httpx.Client, url: str, form: dict[str, str], begun: dict[str, Any], pause: Callable[[float], None]
) -> str:
    interval_s = max(float(begun.get("interval", 5)), 1.0)
    ends_s = time.monotonic() + min(float(begun.get("expires_in", _LONGEST_S)), _LONGEST_S)
    while time.monotonic() < ends_s:
        pause(interval_s)
        answer = _asked(http, "POST", url, form, may_refuse=True)
        match answer.get("error"):
            case None:
                if not answer.get("id_token"):
                    raise Failure("the issuer gave no ID token", hint="its scopes must hold openid")
                return str(answer["id_token"])
            case "authorization_pending":
                continue
            case "slow_down":
                interval_s += _SLOWER_BY_S
            case refusal:
                raise Failure(f"the issuer refused: {answer.get('error_description') or refusal}")
    raise Failure("nobody agreed in time", hint="repeat the command")


def _asked(
    http: httpx.Client, verb: str, url: str, form: dict[str, str] | None = None, *, may_refuse: bool = False
) -> dict[str, Any]:
    try:
        address = httpx.URL(url)
        if address.scheme != "https" and not is_this_machine(address.host):
            raise Failure(f"{url} is not asked: over plain HTTP others could read the answer")
        response = http.request(verb, url, data=form)
        document = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise Failure(f"the issuer at {url} does not answer: {type(error).__name__}") from error
    if not isinstance(document, dict) or not (response.is_success or (may_refuse and "error" in document)):
        raise Failure(f"the issuer at {url} answers HTTP {response.status_code}")
    return document
