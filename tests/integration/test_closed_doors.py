"""Known ways in, tried on the real ports of a control plane: forged tokens, tokens of hosts, browsers' tricks."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import grpc
import httpx
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from controlplane.access.limits import CallRates
from limiquantix import join_token
from limiquantix.compute.v1 import vm_service_pb2
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.errors import ApiError, Code, Reason
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from limiquantix.rpc.status import from_rpc_error
from nodedaemon.identity.joining import JoinFailed, join
from tests.support.closed_cluster import ADMINISTRATOR, DEADLINE_S, ClosedCluster, closed_cluster
from tests.support.private_libvirt_host import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIST = "/limiquantix.compute.v1.VMService/ListVMs"


@dataclass(frozen=True)
class Doors:
    """Two clusters that know nothing of each other, and a channel to the first one's port for people."""

    cluster: ClosedCluster
    other: ClosedCluster
    channel: grpc.aio.Channel

    async def error_of(self, *metadata: tuple[str, str], request: bytes = b"", **options: Any) -> ApiError:
        """Call over gRPC what must fail."""
        call = self.channel.unary_unary(LIST, lambda data: data, vm_service_pb2.ListVMsResponse.FromString)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request, timeout=DEADLINE_S, metadata=metadata, **options)
        return from_rpc_error(refused.value, peer="the control plane")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    directories = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    async with closed_cluster(directories[0]) as cluster, closed_cluster(directories[1]) as other:
        trusting = grpc.ssl_channel_credentials(cluster.authority_pem)
        # Not as our own programs open it: theirs refuse to send too much.
        unbounded = ("grpc.max_send_message_length", -1)
        options = (("grpc.ssl_target_name_override", CONTROL_PLANE_SERVER_NAME), unbounded)
        async with grpc.aio.secure_channel(cluster.addresses.grpc, trusting, options) as channel:
            yield Doors(cluster, other, channel)


# -- tokens of people


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def forgeries(good: str) -> dict[str, str]:
    """Make tokens that say what a good one says, or more, and are not signed by the cluster."""
    header, claims = jwt.get_unverified_header(good), jwt.decode(good, options={"verify_signature": False})
    mine = Ed25519PrivateKey.generate()

    def signed(**changes: Any) -> str:
        return jwt.encode(claims, mine, "EdDSA", headers={**header, **changes})

    hmacs = {}
    for name, secret in {"key's name": header["kid"], "empty": "", "file": "/dev/null"}.items():
        text = f"{part({**header, 'alg': 'HS256'})}.{part(claims)}"
        mac = hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()
        hmacs[f"HS256 by {name}"] = f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    later = {**claims, "exp": claims["exp"] + 10**6}
    first, _, last = good.split(".")
    return {
        "none": f"{part({**header, 'alg': 'none'})}.{part(claims)}.",
        "none with its signature": f"{part({**header, 'alg': 'none'})}.{part(claims)}.{last}",
        "other claims": f"{first}.{part(later)}.{last}",
        "key of my own": signed(),
        "unknown key": signed(kid="f" * 32),
        "path as key": signed(kid="../../../../dev/null"),
        "SQL as key": signed(kid="x' UNION SELECT 1 --"),
        "zero in key": signed(kid="a\0b"),
        "key by URL": signed(jku="https://127.0.0.1:1/keys", x5u="file:///etc/passwd"),
        "9 KiB": signed(padding="x" * 9 * 1024),
        "deep": base64.urlsafe_b64encode(b"[" * 2_500).rstrip(b"=").decode() + ".e30.AAAA",
        **hmacs,
    }


async def test_forged_access_token_lets_nobody_in_on_either_wire(doors: Doors) -> None:
    assert (await doors.cluster.post("VMService/ListVMs", {})).status == 200
    for name, token in forgeries(doors.cluster.token).items():
        answer = await doors.cluster.post("VMService/ListVMs", {}, token)
        error = await doors.error_of(("authorization", f"Bearer {token}"))
        assert (answer.status, error.code) == (401, Code.UNAUTHENTICATED), name
        assert token[:20] not in json.dumps(answer.document) + error.message, name


async def test_token_of_another_cluster_lets_nobody_in(doors: Doors) -> None:
    assert (await doors.other.post("VMService/ListVMs", {})).status == 200
    for credential in (doors.other.token, await doors.other.new_key()):
        assert (await doors.cluster.post("VMService/ListVMs", {}, credential)).status == 401


async def test_header_that_is_no_token_at_all_is_refused_and_breaks_nothing(doors: Doors) -> None:
    for value in ("Bearer", "Basic cm9vdDpyb290", "bearer x y", "Bearer " + "x" * 60_000):
        answer = await doors.cluster.post("VMService/ListVMs", {}, "", authorization=value)
        assert answer.status == 401, value[:20]
    assert (await doors.error_of(("authorization", "Bearer " + "x" * 60_000))).code is Code.RESOURCE_EXHAUSTED


async def test_login_with_the_session_of_another_in_hand_begins_one_of_its_own(doors: Doors) -> None:
    cluster = doors.cluster
    eve = await cluster.new_user("eve")
    body = {"name": ADMINISTRATOR, "password": "correct horse battery staple"}
    logged_in = await cluster.done("AuthService/Login", body, eve)
    sessions = {}
    for who, token in (("eve", eve), ("root", logged_in["accessToken"])):
        me = await cluster.done("AuthService/WhoAmI", {}, token)
        sessions[me["name"]] = me["sessionId"]
        assert me["name"] == who
    assert sessions["eve"] != sessions["root"]


async def test_login_tells_by_neither_words_nor_time_whether_there_is_such_a_user(doors: Doors) -> None:
    await doors.cluster.new_user("grace")
    seen: dict[str, list[float]] = {"grace": [], "nobody-of-that-name": []}
    answers = set()
    for _ in range(4):
        for name, took in seen.items():
            began = time.process_time()  # the server is in this process, and other ones take none of its time
            answer = await doors.cluster.post("AuthService/Login", {"name": name, "password": "wrong-password-1"}, "")
            took.append(time.process_time() - began)
            answers.add((answer.status, json.dumps(answer.document)))
    assert len(answers) == 1, answers
    there, absent = (min(took) for took in seen.values())
    assert absent > there / 2, "a password is compared in any case, which is what takes the time"


# -- tokens of hosts


async def test_join_token_of_another_cluster_is_of_no_use_here(doors: Doors) -> None:
    made = await doors.other.done("JoinService/CreateJoinToken", {})
    foreign = join_token.decode(made["token"])
    with pytest.raises(JoinFailed, match="no control plane of the token's cluster answers"):
        await join(foreign, "host-x", [doors.cluster.addresses.grpc])
    authority = ssl.PEM_cert_to_DER_cert(doors.cluster.authority_pem.decode())
    with pytest.raises(JoinFailed, match="the join token is not good"):
        await join(replace(foreign, authority_der=authority), "host-x", [doors.cluster.addresses.grpc])


async def test_join_token_used_by_fifty_at_once_lets_in_one(doors: Doors) -> None:
    made = await doors.other.done("JoinService/CreateJoinToken", {})
    token = join_token.decode(made["token"])
    tries = (join(token, f"host-{number}", [doors.other.addresses.grpc]) for number in range(50))
    results = await asyncio.gather(*tries, return_exceptions=True)
    joined = [each for each in results if not isinstance(each, BaseException)]
    assert len(joined) == 1
    assert all(isinstance(each, JoinFailed) for each in results if each is not joined[0]), results
    tokens = (await doors.other.done("JoinService/ListJoinTokens", {}))["tokens"]
    assert [each.get("usedByNodeId") for each in tokens if each["id"] == token.id] == [joined[0].machine.id]


# -- bodies


async def test_packed_request_that_unpacks_to_more_is_refused_on_both_wires(doors: Doors) -> None:
    size_bytes = 32 * 2**20
    packed = gzip.compress(b" " * size_bytes)
    answer = await doors.cluster.post("VMService/ListVMs", packed, **{"content-encoding": "gzip"})
    error = await doors.error_of(
        ("authorization", f"Bearer {doors.cluster.token}"), request=bytes(size_bytes), compression=grpc.Compression.Gzip
    )
    assert answer.code == "resource_exhausted"
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert error.reason != Reason.REQUEST_TOO_LARGE, "the library stops unpacking; we would see what it has unpacked"


# -- many


async def test_streams_of_one_user_leave_calls_to_others_and_end_when_the_user_leaves(doors: Doors) -> None:
    cluster, most = doors.cluster, CallRates().people.at_a_time_count
    greedy, other = await cluster.new_user("mallory"), await cluster.new_user("oscar")

    async def answered(token: str) -> bool | None:
        answer = await cluster.post("AuthService/WhoAmI", {}, token)
        assert answer.status in (200, 429), answer.document
        return True if answer.status == 200 else None

    async with AsyncExitStack() as stack:
        trusting = grpc.ssl_channel_credentials(cluster.authority_pem)
        options = (
            ("grpc.ssl_target_name_override", CONTROL_PLANE_SERVER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
        )
        channels = [
            await stack.enter_async_context(grpc.aio.secure_channel(cluster.addresses.grpc, trusting, options))
            for _ in range(most // 100 + 1)
        ]
        metadata = (("authorization", f"Bearer {greedy}"),)
        watches = [
            HealthStub(channels[number % len(channels)]).Watch(
                HealthCheckRequest(), metadata=metadata, timeout=DEADLINE_S
            )
            for number in range(most + 20)
        ]
        first = await asyncio.gather(*(watch.read() for watch in watches), return_exceptions=True)
        refused = [each for each in first if isinstance(each, grpc.aio.AioRpcError)]
        assert len(refused) == 20
        assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "streams open" in (refused[0].details() or "")
        assert not await answered(greedy)
        assert await answered(other)
    await eventually(lambda: answered(greedy), "the user being answered again", DEADLINE_S)


# -- browsers


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/health", {}, 200),
        ("GET", "/nothing", {}, 404),
        ("GET", LIST, {}, 405),
        ("POST", LIST, {"content-type": "application/json"}, 401),
        ("POST", LIST, {"content-type": "text/plain"}, 415),
        ("POST", f"{LIST}x", {"content-type": "application/json"}, 404),
        ("POST", LIST, {"content-type": "application/json", "host": "evil.example"}, 400),
        ("OPTIONS", LIST, {"origin": "https://evil.example", "access-control-request-method": "POST"}, 405),
    ],
)
async def test_every_answer_has_safe_headers_and_opens_itself_to_no_other_origin(
    doors: Doors, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = await doors.cluster.http.request(method, path, headers=headers, content=b"{}")

    assert answer.status_code == status, answer.text
    assert {name: answer.headers.get_list(name) for name in SAFE} == {name: [value] for name, value in SAFE.items()}
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert "server" not in answer.headers


SAFE = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "strict-transport-security": "max-age=31536000",
}


async def test_cookies_and_passwords_in_the_address_log_nobody_in(doors: Doors) -> None:
    token, address = doors.cluster.token, doors.cluster.addresses.http
    url = f"https://root:{token}@{address}{LIST}?access_token={token}&authorization=Bearer%20{token}"
    sent = {"content-type": "application/json", "cookie": f"authorization={token}; access_token={token}"}
    async with httpx.AsyncClient(verify=doors.cluster.trust, timeout=DEADLINE_S) as client:
        assert (await client.post(url, content="{}", headers=sent)).status_code == 401


async def test_good_call_still_works_after_all_that(doors: Doors) -> None:
    bearer = (("authorization", f"Bearer {doors.cluster.token}"),)
    await VMServiceStub(doors.channel).ListVMs(vm_service_pb2.ListVMsRequest(), timeout=DEADLINE_S, metadata=bearer)
