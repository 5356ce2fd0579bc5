"""What says who calls and whom to believe: tokens of past logins, kept in a file of the user's own and renewed before
they end, and the authority that signed the server's certificate.

`LIMIQUANTIX_TOKEN`, an API key or an access token, wins over the file. Nothing is ever sent where others could read it:
to plain HTTP beyond this machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import stat
from collections.abc import AsyncGenerator, Generator, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from controlplane.cli.failures import Failure

TOKEN_VARIABLE: Final = "LIMIQUANTIX_TOKEN"  # noqa: S105 - a name, no secret
_AUTH: Final = "/limiquantix.compute.v1.AuthService/"
_REFRESH: Final = f"{_AUTH}Refresh"
_ANONYMOUS: Final = frozenset({_REFRESH, *(f"{_AUTH}{name}" for name in ("Login", "ExchangeToken", "ListIssuers"))})
"""Calls that carry what proves who calls in themselves; an old token beside it would only have them refused."""
_RENEW_BEFORE: Final = timedelta(seconds=60)
_PRIVATE: Final = 0o600
_CREDENTIALS: Final = "servers"
_AUTHORITIES: Final = "authorities"
"""Parts of the file, each by server."""


@dataclass(frozen=True, slots=True)
class Credential:
    """Tokens of one login."""

    user: str
    access_token: str
    access_expires_at: str
    refresh_token: str

    @classmethod
    def of_answer(cls, tokens: dict[str, Any]) -> Credential:
        """Read what Login, Refresh or ExchangeToken answered."""
        return cls(
            user=str(tokens.get("user", {}).get("name", "")),
            access_token=str(tokens.get("accessToken", "")),
            access_expires_at=str(tokens.get("accessExpiresAt", "")),
            refresh_token=str(tokens.get("refreshToken", "")),
        )

    def ends_soon(self, now: datetime) -> bool:
        """Whether the access token is over, or nearly."""
        try:
            return datetime.fromisoformat(self.access_expires_at) - now < _RENEW_BEFORE
        except (ValueError, TypeError):
            return True


class CredentialFile:
    """Credentials by server, for the owner's eyes only."""

    def __init__(self, path: Path | None = None) -> None:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        self.path = path or home / "limiquantix" / "credentials.json"

    def get(self, server: str) -> Credential | None:
        """Return the credential for a server; None without one.

        Raises:
            Failure: others can read the file, or it is damaged.
        """
        found = self._read().get(server)
        try:
            return None if found is None else Credential(**found)
        except TypeError as error:
            raise self._damaged() from error

    def authority(self, server: str) -> str | None:
        """Return the authority (PEM) whose servers are believed to be this one; None for those the system trusts.

        Raises:
            Failure: see `get`.
        """
        found = self._read(_AUTHORITIES).get(server)
        return None if found is None else str(found)

    def keep(self, server: str, credential: Credential | None, authority: str | None = None) -> None:
        """Write the credential for a server, or remove it.

        Args:
            authority: PEM of who signed its certificate; None leaves what is known.
        """
        with self.locked():
            self.put(server, credential, authority)

    def forget(self, server: str) -> None:
        """Remove all that is known of a server."""
        with self.locked():
            self._write(server, None, None)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands of the same user from changing the file: a refresh token is good for one of them."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def put(self, server: str, credential: Credential | None, authority: str | None = None) -> None:
        """As `keep`, for who holds the lock."""
        self._write(server, credential, authority or self.authority(server))

    def _write(self, server: str, credential: Credential | None, authority: str | None) -> None:
        credentials = {name: value for name, value in self._read().items() if name != server}
        authorities = {name: value for name, value in self._read(_AUTHORITIES).items() if name != server}
        if credential is not None:
            credentials[server] = asdict(credential)
        if authority is not None:
            authorities[server] = authority
        scratch = self.path.with_suffix(".new")
        scratch.unlink(missing_ok=True)
        with open(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _PRIVATE), "w") as file:
            json.dump({_CREDENTIALS: credentials, _AUTHORITIES: authorities}, file, indent=1)
        scratch.replace(self.path)

    def _read(self, part: str = _CREDENTIALS) -> dict[str, Any]:
        try:
            with open(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)) as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Failure(f"{self.path} cannot be read: {error.strerror}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Failure(f"others can read {self.path}, which holds tokens", hint=f"chmod 600 {self.path}")
        try:
            document = {_AUTHORITIES: {}} | json.loads(text)
            servers = document[part]
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged() from error
        if not isinstance(servers, dict):
            raise self._damaged()
        return servers

    def _damaged(self) -> Failure:
        return Failure(f"{self.path} is damaged", hint="remove it and log in again")


class BearerAuth(httpx.Auth):
    """Adds what says who calls to each request, and renews it: before its end, or when the server says it has ended.

    Args:
        server: whose credential it is.
    """

    def __init__(self, server: str, file: CredentialFile | None = None) -> None:
        self._server = server
        self._file = file or CredentialFile()

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request; see httpx.Auth. Reads the answers to its own ones only: others may be streams."""
        flow = self._flow(request)
        sent = next(flow)
        while True:
            response = yield sent
            if sent is not request:
                response.read()
            try:
                sent = flow.send(response)
            except StopIteration:
                return

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """As `sync_auth_flow`, for asynchronous clients, which wait for other commands' locks."""
        flow = self._flow(request)
        sent = next(flow)
        while True:
            response = yield sent
            if sent is not request:
                await response.aread()
            try:
                sent = flow.send(response)
            except StopIteration:
                return

    def _flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        credential = None if token or request.url.path in _ANONYMOUS else self._file.get(self._server)
        if request.url.path in _ANONYMOUS or not (token or credential):
            yield request
            return
        self._require_private()
        if credential is None:
            request.headers["authorization"] = f"Bearer {token}"
            yield request
            return
        was_renewed = credential.ends_soon(datetime.now(UTC))
        if was_renewed:
            credential = yield from self._renewed(request, credential)
        _carry(request, credential)
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED and credential is not None and not was_renewed:
            # Without a new one this has the refusal, which was the answer to the renewal otherwise.
            _carry(request, (yield from self._renewed(request, credential)))
            yield request

    def _renewed(
        self, request: httpx.Request, old: Credential
    ) -> Generator[httpx.Request, httpx.Response, Credential | None]:
        """Get new tokens, unless another command just did; None if the session is over, which is forgotten then."""
        with self._file.locked():
            current = self._file.get(self._server)
            if current is None or current.refresh_token != old.refresh_token:
                return current
            response = yield httpx.Request(
                "POST", request.url.copy_with(path=_REFRESH), json={"refreshToken": current.refresh_token}
            )
            if response.status_code == httpx.codes.UNAUTHORIZED:
                self._file.put(self._server, None)
                return None
            if not response.is_success:
                return current
            renewed = Credential.of_answer(response.json())
            self._file.put(self._server, renewed)
            return renewed

    def _require_private(self) -> None:
        url = httpx.URL(self._server)
        if url.scheme != "https" and not is_this_machine(url.host):
            raise Failure(
                f"no token is sent to {self._server}: over plain HTTP others could read it",
                hint="name the server by https://",
            )


def _carry(request: httpx.Request, credential: Credential | None) -> None:
    request.headers.pop("authorization", None)
    if credential is not None:
        request.headers["authorization"] = f"Bearer {credential.access_token}"


def is_this_machine(host: str) -> bool:
    """Whether a host is this machine's loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
