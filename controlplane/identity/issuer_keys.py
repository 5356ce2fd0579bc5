"""The keys of an OpenID Connect issuer: found through its discovery document, kept for a while, looked for again.

What is fetched is told by the configuration and by what the issuer says, so a request goes only where TLS proves who
answers (or to this machine's loopback address, if the issuer itself is there), follows nowhere, and ends soon.

Sources: OpenID Connect Discovery 1.0, RFC 7517 (JSON Web Key).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import jwt

from controlplane.domain import identity_errors
from controlplane.identity.settings import IssuerSettings, is_loopback_url

_LIMIT_S: Final = 5.0
_MAX_DOCUMENT_BYTES: Final = 256 * 1024
_KEPT_S: Final = 3600.0
_LOOKS_AGAIN_S: Final = 30.0
"""A key that is not known may be new, but anybody can name one that never was."""
_FIRST_AGAIN_S: Final = 3.0
"""The same while no key is known, so that callers do not queue for an issuer that does not answer."""
_KEPT_WHILE_AWAY_S: Final = 24 * 3600.0
"""Old keys serve while the issuer does not answer, but not for ever: one of them may have been withdrawn."""
_KIND_OF: Final = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}

_log = logging.getLogger(__name__)


class FetchError(Exception):
    """A document was not got; the message says why."""


@dataclass(frozen=True, slots=True)
class _Key:
    """One key; `key_id` is None for one without a name."""

    key_id: str | None
    kind: str
    public: Any


class IssuerKeys:
    """The keys of one issuer. Owned by the event loop's thread.

    Args:
        transport: carries requests instead of the network.
        clock: seconds that only ever grow.
        limit_s: for one document, from asking to its last byte.
    """

    def __init__(
        self,
        settings: IssuerSettings,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        limit_s: float = _LIMIT_S,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._clock = clock
        self._limit_s = limit_s
        self._keys: tuple[_Key, ...] = ()
        self._read_s = float("-inf")
        self._tried_s = float("-inf")
        self._turn = asyncio.Lock()

    async def find(self, algorithm: str, key_id: str | None) -> Any | None:
        """Return the public key for an algorithm, of that name or, for a token that names none, the only one.

        Raises:
            Unavailable: the issuer does not answer, and nothing young enough is known.
        """
        kind = _KIND_OF[algorithm]
        found = self._known(kind, key_id) if self._clock() - self._read_s < _KEPT_S else None
        if found is None:
            await self._look()
            found = self._known(kind, key_id)
        return found

    def _known(self, kind: str, key_id: str | None) -> Any | None:
        fitting = [key for key in self._keys if key.kind == kind and (key_id is None or key.key_id == key_id)]
        return fitting[0].public if len(fitting) == 1 else None

    async def _look(self) -> None:
        async with self._turn:
            now_s = self._clock()
            if now_s - self._tried_s < (_LOOKS_AGAIN_S if self._keys else _FIRST_AGAIN_S):
                if self._keys:
                    return
                raise identity_errors.issuer_unavailable(self._settings.name, "it had none a moment ago")
            self._tried_s = now_s
            try:
                self._keys = await self._fetched()
                self._read_s = now_s
            except FetchError as error:
                _log.warning("keys of issuer %s cannot be read: %s", self._settings.name, error)
                if now_s - self._read_s > _KEPT_WHILE_AWAY_S:
                    self._keys = ()
                    raise identity_errors.issuer_unavailable(self._settings.name, str(error)) from error

    async def _fetched(self) -> tuple[_Key, ...]:
        discovery = await self._document(f"{self._settings.url.rstrip('/')}/.well-known/openid-configuration")
        if discovery.get("issuer") != self._settings.url:
            raise FetchError("its discovery document is another issuer's")
        keys_url = discovery.get("jwks_uri")
        if not isinstance(keys_url, str):
            raise FetchError("its discovery document names no keys (jwks_uri)")
        listed = (await self._document(keys_url)).get("keys")
        if not isinstance(listed, list):
            raise FetchError("what it gives for its keys is no key set")
        return tuple(key for each in listed if (key := _key_of(each)) is not None)

    async def _document(self, url: str) -> dict[str, Any]:
        """Fetch a JSON object.

        Raises:
            FetchError: the URL is none to ask, or there is no such answer in time.
        """
        self._require_askable(url)
        try:
            async with asyncio.timeout(self._limit_s):
                body = await self._body(url)
        except TimeoutError as error:
            raise FetchError(f"no answer within {self._limit_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise FetchError(f"no answer: {type(error).__name__}") from error
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise FetchError("the answer is no JSON") from error
        if not isinstance(document, dict):
            raise FetchError("the answer is no JSON object")
        return document

    async def _body(self, url: str) -> bytes:
        body = b""
        async with (
            httpx.AsyncClient(
                transport=self._transport,
                follow_redirects=False,
                timeout=self._limit_s,
                trust_env=not is_loopback_url(url),
                headers={"accept": "application/json", "accept-encoding": "identity"},
            ) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise FetchError(f"the answer is HTTP {response.status_code}")
            async for part in response.aiter_raw():
                body += part
                if len(body) > _MAX_DOCUMENT_BYTES:
                    raise FetchError(f"the answer has more than {_MAX_DOCUMENT_BYTES} bytes")
        return body

    def _require_askable(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            is_plain = bool(parts.hostname) and parts.username is None and parts.port != 0
        except ValueError:
            is_plain = False
        if not is_plain:
            raise FetchError("it names an address that is none")
        if is_loopback_url(url):
            if not is_loopback_url(self._settings.url):
                raise FetchError("it names an address of this machine")
        elif parts.scheme != "https":
            raise FetchError("it names an address without TLS")


def _key_of(document: Any) -> _Key | None:
    """Read one key; None for one that is not for signatures, or of a kind that is not known."""
    if not isinstance(document, dict) or document.get("use", "sig") != "sig":
        return None
    key_id = document.get("kid")
    algorithm, kind = next(((name, of) for name, of in _KIND_OF.items() if of == document.get("kty")), (None, ""))
    if algorithm is None or document.get("alg", algorithm) != algorithm or "d" in document:
        return None
    try:
        public = jwt.PyJWK(document, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return _Key(key_id if isinstance(key_id, str) else None, kind, public)
