"""Headers that tell a browser to do nothing with an answer but hand it to the program that asked.

The API serves no pages: whatever a browser shows of it was made to look like one by somebody else. The listener puts
them on every answer, those included that it gives without asking the application.

Sources: https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html, "Security Headers"; RFC 6797.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

_ALWAYS = (
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),  # for browsers that do not know frame-ancestors
    ("referrer-policy", "no-referrer"),
)
_OVER_TLS = (("strict-transport-security", "max-age=31536000"),)
"""For a year. Without includeSubDomains: other names of the domain are not ours to decide about."""
_NO_STORE = (b"cache-control", b"no-store")


def safe_headers(*, over_tls: bool) -> Sequence[tuple[str, str]]:
    """List what is on every answer of a listener."""
    return _ALWAYS + (_OVER_TLS if over_tls else ())


def with_no_store(app: ASGIApp) -> ASGIApp:
    """Wrap an application so that none of its answers is kept by a cache, unless it says itself for how long."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name.lower() == _NO_STORE[0] for name, _ in headers):
                    message["headers"] = [*headers, _NO_STORE]
            await send(message)

        await app(scope, receive, send_with_header)

    return wrapped
