"""How tests get into a control plane that runs as a process: whom to believe, as whom to call, how hosts join.

The administrator is made in the database, as the command on a control plane's machine does it, with a hash that costs
nothing; an API key of theirs is what tests call with.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import httpx

from controlplane.domain.principal import Principal, PrincipalKind, Scope
from controlplane.identity.administrators import Administrators
from controlplane.identity.api_keys import ApiKeyService
from controlplane.identity.callers import KnownCallers
from controlplane.identity.passwords import Passwords
from controlplane.state.factory import migrate
from controlplane.state.interface import Store
from limiquantix import join_token
from limiquantix.errors import AlreadyExists
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from nodedaemon.identity.files import IdentityFile
from nodedaemon.identity.joining import join
from tests.support.identity_scene import cheap_hasher
from tests.support.stores import open_store

ADMINISTRATOR: Final = "root"
PASSWORD: Final = "correct horse battery staple"
CALL_S: Final = 60.0


ResultT = TypeVar("ResultT")


def _now() -> datetime:
    return datetime.now(UTC)


async def _covers(first: Principal, second: Principal) -> bool:
    return True


async def make_admin_key(store: Store) -> str:
    """Make the administrator, if there is none yet, and a key of theirs."""
    passwords, callers = Passwords(cheap_hasher()), KnownCallers(store, _now)
    try:
        await Administrators(store, passwords, _now).create(ADMINISTRATOR, PASSWORD)
    except AlreadyExists:
        pass
    finally:
        passwords.close()
    user = await store.read(lambda tx: tx.user_named(ADMINISTRATOR))
    assert user is not None
    keys = ApiKeyService(store, callers, lambda _: True, _covers, _now)
    _, secret = await keys.create(
        Principal(PrincipalKind.USER, user.id, user.name), "tests", _now() + timedelta(days=1), Scope()
    )
    return secret


def prepare(database_url: str) -> str:
    """Bring a database up to date and make the administrator in it; returns a key to call with."""
    migrate(database_url)

    async def work() -> str:
        async with open_store(database_url) as store:
            return await make_admin_key(store)

    return finished(work())


def authority_of(database_url: str) -> str:
    """Read the authority's certificate (PEM), which the first start of a control plane made."""

    async def work() -> str:
        async with open_store(database_url) as store:
            found = await store.read(lambda tx: tx.authority())
        assert found is not None
        return found.certificate_pem

    return finished(work())


def finished(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine to its end, wherever this is called from."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@dataclass(frozen=True, slots=True)
class Entry:
    """A control plane's ports, and what opens them.

    Attributes:
        http_url: such as "https://127.0.0.1:40001".
        authority: PEM.
        token: the administrator's API key.
    """

    http_url: str
    grpc_address: str
    hosts_address: str
    authority: str
    token: str

    @property
    def trust(self) -> ssl.SSLContext:
        """Whom clients believe."""
        return ssl.create_default_context(cadata=self.authority)

    @property
    def headers(self) -> dict[str, str]:
        """What says who calls over HTTP."""
        return {"authorization": f"Bearer {self.token}"}

    def client(self, **options: Any) -> httpx.Client:
        """Make a client that calls as the administrator."""
        return httpx.Client(**self._http(options))

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        """Make an asynchronous one."""
        return httpx.AsyncClient(**self._http(options))

    def _http(self, options: dict[str, Any]) -> dict[str, Any]:
        headers = self.headers | options.pop("headers", {})
        return (
            {"base_url": self.http_url, "timeout": CALL_S, "trust_env": False}
            | options
            | {
                "verify": self.trust,
                "headers": headers,
            }
        )

    def post(self, service: str, method: str, request: Mapping[str, Any]) -> httpx.Response:
        """Call a method of `limiquantix.compute.v1` as JSON."""
        with self.client() as client:
            return client.post(f"/limiquantix.compute.v1.{service}/{method}", json=dict(request))

    def call(self, service: str, method: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Call a method as JSON; any refusal fails the test."""
        answer = self.post(service, method, request)
        assert answer.is_success, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def credentials(self) -> grpc.ChannelCredentials:
        """Make what a channel needs to call as the administrator."""
        return grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self.authority.encode()), grpc.access_token_call_credentials(self.token)
        )

    def channel(self, address: str = "", options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
        """Open a channel that calls as the administrator.

        Args:
            address: instead of the control plane's own, such as that of a door in front of it.
        """
        named = (("grpc.ssl_target_name_override", CONTROL_PLANE_SERVER_NAME), *options)
        return grpc.aio.secure_channel(address or self.grpc_address, self.credentials(), options=named)

    def environment(self, directory: Path, server: str = "") -> dict[str, str]:
        """Make the environment of a command line that calls as the administrator: ours, but for its settings.

        Args:
            directory: for the file of the authority.
            server: instead of the control plane's own URL, such as that of a switchboard before it.
        """
        authority = directory / "ca.pem"
        authority.write_text(self.authority)
        ours = {name: value for name, value in os.environ.items() if not name.startswith("LIMIQUANTIX_")}
        return ours | {
            "LIMIQUANTIX_SERVER": server or self.http_url,
            "LIMIQUANTIX_TOKEN": self.token,
            "LIMIQUANTIX_CA": str(authority),
        }

    def join_token(self, hostname: str = "", node_id: str = "") -> str:
        """Make a token by which a host joins."""
        return str(self.call("JoinService", "CreateJoinToken", {"hostname": hostname, "nodeId": node_id})["token"])

    async def admit(self, data_dir: Path, hostname: str, *, node_id: str = "", address: str = "") -> str:
        """Have a host join whose daemon keeps its data there, unless it did; returns its node's id.

        Args:
            address: of the port for people, instead of the control plane's own.
        """
        file = IdentityFile.under(data_dir)
        known = await asyncio.to_thread(file.load)
        if known is not None and known.certificate.authority_pem == self.authority.encode():
            return known.machine.id
        token = await asyncio.to_thread(self.join_token, hostname, node_id)
        identity = await join(join_token.decode(token), hostname, [address or self.grpc_address])
        await asyncio.to_thread(file.save, identity)
        return identity.machine.id

    def admit_now(self, data_dir: Path, hostname: str, *, node_id: str = "") -> str:
        """As `admit`, for tests that are not asynchronous."""
        return finished(self.admit(data_dir, hostname, node_id=node_id))


def security_settings(directory: Path, key_file: Path, *, hosts_listen: str = "127.0.0.1:0") -> dict[str, Any]:
    """Make the sections of a configuration file that keep everything below a directory.

    Args:
        key_file: the same for all control planes on one database.
    """
    return {
        "security": {"hosts_listen_address": hosts_listen, "runtime_dir": str(directory / "run")},
        "secrets": {"key_file": str(key_file)},
    }
