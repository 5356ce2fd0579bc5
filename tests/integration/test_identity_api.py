"""Logging in over real servers of both kinds, behind the real guard; and the command line that uses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from click.testing import CliRunner, Result
from google.protobuf.message import Message

from controlplane.access.authorizer import Authorizer
from controlplane.access.guard import Guard
from controlplane.access.limits import CallLimits
from controlplane.access.memory import AccessMemory
from controlplane.api.api_key_servicer import ApiKeyServicer
from controlplane.api.auth_servicer import AuthServicer
from controlplane.api.http.application import build_application
from controlplane.api.http.connect import ServiceApplication
from controlplane.api.http.server import HttpServer
from controlplane.api.user_servicer import UserServicer
from controlplane.cli.main import cli
from controlplane.domain.access import THE_CLUSTER, Binding, Permission, Role
from controlplane.domain.principal import Principal
from controlplane.identity.administrators import Administrators
from controlplane.identity.api_keys import ApiKeyService
from controlplane.identity.issuer_keys import IssuerKeys
from controlplane.identity.oidc import IssuerTokens
from controlplane.identity.settings import IssuerSettings
from controlplane.identity.users import UserService
from controlplane.state.interface import Transaction
from limiquantix.compute.v1 import api_key_service_pb2, auth_service_pb2, user_service_pb2
from limiquantix.compute.v1.api_key_service_pb2_grpc import add_ApiKeyServiceServicer_to_server
from limiquantix.compute.v1.auth_service_pb2_grpc import AuthServiceStub, add_AuthServiceServicer_to_server
from limiquantix.compute.v1.user_service_pb2_grpc import UserServiceStub, add_UserServiceServicer_to_server
from limiquantix.errors import ApiError, Code, Reason
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.pipeline import CallOrigin, CallPipeline
from limiquantix.rpc.server import RpcServer
from limiquantix.rpc.status import from_rpc_error
from tests.support.databases import fresh_sqlite
from tests.support.identity_scene import PASSWORD, Clock, Plane
from tests.support.oidc_issuer import CLIENT, Issuer, running_issuer
from tests.support.stores import open_store

AUTH = "limiquantix.compute.v1.AuthService"
USERS = "limiquantix.compute.v1.UserService"
KEYS = "limiquantix.compute.v1.ApiKeyService"
DEADLINE_S = 30.0


class Quiet:
    """Observes, records and checks nothing."""

    def call_finished(self, method: str, code: int, duration_s: float) -> None:
        """Take no note."""

    async def begin(
        self, principal: Principal | None, method: str, request: Message, resource: str, origin: CallOrigin
    ) -> str:
        return ""

    async def end(self, record_id: str, code: int, message: str) -> None:
        """Take no note."""

    async def refused(self, *arguments: object) -> None:
        """Take no note."""

    async def require_own(self, principal: Principal, method: str, request: Message) -> None:
        """Let pass."""


@dataclass(frozen=True)
class Api:
    """A control plane's services for people, on free ports."""

    plane: Plane
    memory: AccessMemory
    http: str
    channel: grpc.aio.Channel

    async def json(self, service: str, method: str, request: Any, token: str = "") -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(base_url=f"http://{self.http}") as client:
            answer = await client.post(f"/{service}/{method}", json=request, headers=headers, timeout=DEADLINE_S)
        return answer.status_code, answer.json()

    async def login(self, name: str, password: str = PASSWORD) -> str:
        status, tokens = await self.json(AUTH, "Login", {"name": name, "password": password})
        assert status == 200, tokens
        return str(tokens["accessToken"])


@asynccontextmanager
async def running_api(directory: Path, issuers: Mapping[str, IssuerTokens]) -> AsyncIterator[Api]:
    async with open_store(fresh_sqlite(directory)) as store:
        plane, quiet = Plane(store, Clock()), Quiet()
        await Administrators(store, plane.passwords, plane.clock).create("root", PASSWORD)
        memory = AccessMemory(store)

        async def covers(first: Principal, second: Principal) -> bool:
            return (await memory.tree()).covers(first, second)

        def may_manage(principal: Principal) -> bool:
            return Permission.USER_UPDATE in memory.latest.permissions(principal, THE_CLUSTER)

        guard = Guard(plane.authenticator, Authorizer(memory, store), quiet, CallLimits(), quiet)
        users = UserService(store, plane.passwords, plane.callers, covers, plane.clock)
        keys = ApiKeyService(store, plane.callers, may_manage, covers, plane.clock)
        servicers: list[tuple[Any, Any, Any]] = [
            (auth_service_pb2, AuthServicer(plane.sessions, issuers), add_AuthServiceServicer_to_server),
            (user_service_pb2, UserServicer(users), add_UserServiceServicer_to_server),
            (api_key_service_pb2, ApiKeyServicer(keys), add_ApiKeyServiceServicer_to_server),
        ]
        pipeline = CallPipeline({}, quiet, guard)
        descriptors = [next(iter(module.DESCRIPTOR.services_by_name.values())) for module, _, _ in servicers]

        def add(server: Any) -> None:
            for _, servicer, add_to in servicers:
                add_to(servicer, server)

        rpc = RpcServer(pipeline, [each.full_name for each in descriptors], add)
        applications = [
            ServiceApplication(descriptor, servicer, pipeline)
            for descriptor, (_, servicer, _) in zip(descriptors, servicers, strict=True)
        ]
        http = HttpServer(build_application(applications, [], ()))
        rpc_port, http_port = await rpc.start("127.0.0.1:0"), await http.start("127.0.0.1:0")
        try:
            async with open_channel(f"127.0.0.1:{rpc_port}") as channel:
                yield Api(plane, memory, f"127.0.0.1:{http_port}", channel)
        finally:
            await http.stop()
            await rpc.stop(1.0)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        yield running


@pytest.fixture
async def api(tmp_path: Path, issuer: Issuer) -> AsyncIterator[Api]:
    settings = IssuerSettings(name="corp", url=issuer.url, client_id=CLIENT)
    async with running_api(tmp_path, {"corp": IssuerTokens(settings, IssuerKeys(settings))}) as running:
        yield running


async def refusal_of(call: Any) -> ApiError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value, peer="control plane")


def bearing(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


async def test_login_says_who_calls_on_both_transports(api: Api) -> None:
    stub = AuthServiceStub(api.channel)
    refusal = await refusal_of(stub.WhoAmI(auth_service_pb2.WhoAmIRequest(), timeout=DEADLINE_S))
    assert (refusal.code, refusal.reason) == (Code.UNAUTHENTICATED, Reason.NOT_LOGGED_IN)
    assert (await api.json(AUTH, "WhoAmI", {}))[0] == 401

    token = await api.login("root")
    _, who = await api.json(AUTH, "WhoAmI", {}, token)
    assert (who["kind"], who["name"]) == ("user", "root")
    same = await stub.WhoAmI(auth_service_pb2.WhoAmIRequest(), metadata=bearing(token), timeout=DEADLINE_S)
    assert same.session_id == who["sessionId"]

    assert await api.json(AUTH, "Logout", {}, token) == (200, {})
    refusal = await refusal_of(
        stub.WhoAmI(auth_service_pb2.WhoAmIRequest(), metadata=bearing(token), timeout=DEADLINE_S)
    )
    assert refusal.reason == Reason.SESSION_ENDED


async def test_failed_logins_are_told_when_to_come_again_on_both_transports(api: Api) -> None:
    stub = AuthServiceStub(api.channel)
    request = auth_service_pb2.LoginRequest(name="root", password="wrong")
    for _ in range(5):
        assert (await refusal_of(stub.Login(request, timeout=DEADLINE_S))).reason == Reason.LOGIN_FAILED
    refusal = await refusal_of(stub.Login(request, timeout=DEADLINE_S))
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, Reason.TOO_MANY_LOGINS)
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s >= 1
    status, answer = await api.json(AUTH, "Login", {"name": "root", "password": PASSWORD})
    assert (status, answer["code"]) == (429, "resource_exhausted")
    assert any("retryDelay" in detail.get("debug", {}) for detail in answer["details"])


async def test_user_manager_cannot_become_an_administrator(api: Api) -> None:
    root = await api.login("root")
    password = {"password": PASSWORD}
    assert (await api.json(USERS, "CreateUser", {"name": "helpdesk", **password}, root))[0] == 200
    assert (await api.json(USERS, "CreateUser", {"name": "alice", **password}, root))[0] == 200
    helper = await api.login("helpdesk")
    assert (await api.json(USERS, "CreateUser", {"name": "mallory", **password}, helper))[0] == 403
    await _give(api, "helpdesk", {"user.read", "user.create", "user.update", "user.delete", "role.bind"})

    assert (await api.json(USERS, "ResetPassword", {"id": "alice"}, helper))[0] == 200
    for method in ("ResetPassword", "DisableUser", "DeleteUser", "RevokeSessions"):
        status, answer = await api.json(USERS, method, {"id": "root"}, helper)
        assert (status, answer["code"]) == (403, "permission_denied"), method
    assert (await api.json(USERS, "DisableUser", {"id": "alice"}, helper))[0] == 200
    assert (await api.json(AUTH, "WhoAmI", {}, root))[0] == 200


async def _give(api: Api, name: str, permissions: set[str]) -> None:
    """Give a user a role of these permissions at the cluster."""
    user = await api.plane.users.get(name)

    async def work(tx: Transaction) -> None:
        await tx.begin_access_change()
        await tx.insert_role(Role("r1", "helper", frozenset(permissions), created_at=api.plane.clock()))
        await tx.insert_binding(Binding("b1", f"user:{user.id}", f"user:{name}", "r1", THE_CLUSTER, api.plane.clock()))

    await api.plane.store.run(work)
    await api.memory.refresh()


async def test_key_does_what_its_scope_allows_and_makes_no_other(api: Api) -> None:
    root = await api.login("root")
    request = {"name": "ci", "expiresAt": "2126-01-01T00:00:00Z", "permissions": ["user.read"]}
    assert (await api.json(KEYS, "CreateApiKey", request, root))[0] == 400
    ends = (api.plane.clock().replace(microsecond=0)).replace(year=api.plane.clock().year + 1, day=1)
    request["expiresAt"] = ends.isoformat().replace("+00:00", "Z")
    status, made = await api.json(KEYS, "CreateApiKey", request, root)
    assert status == 200, made
    key = made["secret"]
    assert (await api.json(USERS, "ListUsers", {}, key))[0] == 200
    assert (await api.json(USERS, "CreateUser", {"name": "mallory", "password": PASSWORD}, key))[0] == 403
    assert (await api.json(KEYS, "CreateApiKey", request, key))[0] == 403
    _, who = await api.json(AUTH, "WhoAmI", {}, key)
    assert (who["kind"], who["name"], who["permissions"]) == ("api-key", "root/ci", ["user.read"])
    assert key not in str(await api.json(KEYS, "ListApiKeys", {}, root))
    assert (await api.json(KEYS, "RevokeApiKey", {"id": made["apiKey"]["id"]}, root))[0] == 200
    assert (await api.json(USERS, "ListUsers", {}, key))[0] == 401


async def test_faults_of_a_request_never_repeat_a_password(api: Api) -> None:
    root = await api.login("root")
    for service, method, request in (
        (USERS, "CreateUser", {"name": "Bad Name", "password": "hunter2"}),
        (USERS, "ResetPassword", {"id": "root", "newPassword": "hunter2"}),
        (AUTH, "Login", {"name": "\u0000", "password": "hunter2"}),
        (AUTH, "ChangePassword", {"currentPassword": "hunter2", "newPassword": "hunter2"}),
    ):
        status, answer = await api.json(service, method, request, root)
        assert status == 400, (method, answer)
        assert "hunter2" not in str(answer)


async def test_names_that_databases_choke_on_are_refused(api: Api) -> None:
    root = await api.login("root")
    for name in ("a\u0000b", "\u0000", "a\nb", "", "x" * 129):
        for method in ("GetUser", "DisableUser", "DeleteUser"):
            assert (await api.json(USERS, method, {"id": name}, root))[0] == 400, (method, name)
    assert (await api.json(USERS, "GetUser", {"id": "' OR 1=1 --"}, root))[0] == 404


async def test_token_of_an_issuer_begins_a_session(api: Api, issuer: Issuer) -> None:
    _, listed = await api.json(AUTH, "ListIssuers", {})
    assert [(each["name"], each["clientId"]) for each in listed["issuers"]] == [("corp", CLIENT)]
    status, tokens = await api.json(AUTH, "ExchangeToken", {"issuer": "corp", "idToken": issuer.token()})
    assert status == 200, tokens
    _, who = await api.json(AUTH, "WhoAmI", {}, tokens["accessToken"])
    assert (who["name"], who["groups"]) == ("alice@corp", ["corp:operators"])
    status, answer = await api.json(AUTH, "ExchangeToken", {"issuer": "corp", "idToken": issuer.token(aud="x")})
    assert (status, answer["code"]) == (401, "unauthenticated")
    assert (await api.json(AUTH, "ExchangeToken", {"issuer": "other", "idToken": "x"}))[0] == 404
    status, _ = await api.json(USERS, "ListUsers", {}, tokens["accessToken"])
    assert status == 403


async def test_command_line_from_login_to_logout(api: Api, tmp_path: Path) -> None:
    environment = {
        "LIMIQUANTIX_SERVER": f"http://{api.http}",
        "LIMIQUANTIX_OUTPUT": None,
        "LIMIQUANTIX_TOKEN": None,
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }

    async def run(*arguments: str, text: str = "", token: str | None = None) -> Result:
        runner = CliRunner(env={**environment, "LIMIQUANTIX_TOKEN": token})
        return await asyncio.to_thread(runner.invoke, cli, list(arguments), input=text)

    refused = await run("whoami")
    assert refused.exit_code == 1
    assert "limiquantix login" in refused.output
    assert (await run("login", "root", text="wrong\n")).exit_code == 1
    assert (await run("login", "root", text=f"{PASSWORD}\n")).exit_code == 0
    assert "root" in (await run("whoami")).output
    assert (await run("user", "create", "alice", "--group", "ops", text=f"{PASSWORD}\n")).exit_code == 0
    assert "alice" in (await run("user", "list")).output
    made = await run("api-key", "create", "ci", "--days", "30", "--permission", "user.read")
    key = made.output.splitlines()[-1]
    assert "root/ci" in (await run("whoami", token=key)).output
    assert (await run("user", "disable", "alice", token=key)).exit_code == 1
    assert (await run("user", "disable", "alice")).exit_code == 0
    assert (await run("login", "--issuer", "corp")).exit_code == 0
    assert "alice@corp" in (await run("whoami")).output
    assert "logged out" in (await run("logout")).output
    assert (await run("whoami")).exit_code == 1


async def test_user_service_answers_over_grpc(api: Api) -> None:
    token = bearing(await api.login("root"))
    stub = UserServiceStub(api.channel)
    request = user_service_pb2.CreateUserRequest(name="alice", password=PASSWORD)
    made = await stub.CreateUser(request, metadata=token, timeout=DEADLINE_S)
    assert (made.name, made.password_changed_at.seconds > 0) == ("alice", True)
    refusal = await refusal_of(stub.CreateUser(request, metadata=token, timeout=DEADLINE_S))
    assert (refusal.code, refusal.reason) == (Code.ALREADY_EXISTS, Reason.USER_NAME_TAKEN)
