"""The table of what every caller may do with every method, and how each way of calling is tried.

The table is written by hand, from what the roles mean, so that the product's own table is not its own judge.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import httpx
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo

from controlplane.api.callers import WAIT
from controlplane.cli.connect_stream import STREAM_TYPE, envelope
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from limiquantix.rpc.status import from_rpc_error
from tests.support.running_control_plane import JsonAnswer

COLUMNS: Final = (
    *("nobody", "unbound", "other viewer", "viewer", "operator", "cluster viewer", "cluster operator", "admin", "key"),
    *("node", "another node", "revoked node"),
)
"""Who calls. Roles without a word before them are bound at the project that the requests name."""
LET_IN: Final = frozenset({"yes", "shown", "blank"})
WORDS: Final = LET_IN | {"login", "denied", "hidden", "away"}

DEADLINE_S: Final = 40.0
QUIET_S: Final = 0.15
"""A stream that may be watched and says nothing for so long waits for something to happen."""

_HIDING: Final = frozenset(
    f"{thing}_NOT_FOUND" for thing in ("VM", "NODE", "PROJECT", "FOLDER", "OPERATION", "BINDING", "API_KEY")
)
_PROOFS: Final = frozenset({"LOGIN_FAILED", "SESSION_ENDED", "JOIN_REFUSED"})
"""Refusals of what the request itself holds, by methods that ask nobody who calls."""
_END: Final = 2
"""In the first byte of the envelope that ends a stream."""
_ROW: Final = re.compile(r"^  (\w+) +([a-z ]+?) *(\{.*\})$")


@dataclass(frozen=True)
class Row:
    """What becomes of a request of a method, "Service/Method", by each column's caller."""

    method: str
    words: Mapping[str, str]
    body: Mapping[str, Any]


def read_table(path: Path) -> list[Row]:
    """Read the table; methods that can be asked in several ways have several rows."""
    rows: list[Row] = []
    service = ""
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if not line.startswith(" "):
            service = line
            continue
        match = _ROW.match(line)
        assert match is not None, f"this is no row: {line}"
        words = match[2].split()
        assert len(words) == len(COLUMNS), f"somebody is left out: {line}"
        assert set(words) <= WORDS, f"some of these words mean nothing: {line}"
        rows.append(Row(f"{service}/{match[1]}", dict(zip(COLUMNS, words, strict=True)), json.loads(match[3])))
    return rows


@dataclass(frozen=True)
class Answer:
    """What came back. `said` is all of it, as bytes that can be compared."""

    code: str
    said: bytes
    reason: str = ""


def fault(word: str, answer: Answer, marks: frozenset[str]) -> str:
    """Say what is wrong with an answer to a method of which the table says `word`; "" if nothing is.

    Args:
        marks: ids and names of things that only who sees the project may learn of.
    """
    is_told = any(mark.encode() in answer.said for mark in marks)
    match word:
        case "login":
            is_right = answer.code == "UNAUTHENTICATED" and answer.reason not in _PROOFS
        case "denied":
            is_right = answer.code == "PERMISSION_DENIED" and answer.reason not in _PROOFS
        case "hidden":
            is_right = answer.code == "NOT_FOUND" and answer.reason in _HIDING
        case "away":
            is_right = answer.code == "UNIMPLEMENTED" and answer.reason == "UNKNOWN"  # the words of gRPC, not ours
        case "shown":
            is_right = answer.code == "OK" and is_told
        case "blank":
            is_right = answer.code == "OK" and not is_told
        case _:
            is_right = _passed(answer)
    return "" if is_right else f"{answer.code} {answer.reason} {answer.said[:300]!r}"


def _passed(answer: Answer) -> bool:
    """Tell whether the gate was passed, whatever the service made of it but that the request was not sound."""
    if answer.code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return answer.reason in _PROOFS
    if answer.code == "NOT_FOUND":
        return answer.reason not in _HIDING
    return answer.code not in ("INVALID_ARGUMENT", "INTERNAL", "UNKNOWN") and answer.reason != "TOO_MANY_REQUESTS"


class Door(Protocol):
    """A way to call, as one caller."""

    def as_another(self, token: str) -> Door:
        """The same way, with another token."""
        ...

    async def call(self, method: MethodDescriptor, request: Message, word: str) -> Answer:
        """Call a method, of which the table says `word`; that tells how long a stream is listened to."""
        ...


@dataclass(frozen=True)
class GrpcDoor:
    """A connection of either gRPC port."""

    channel: grpc.aio.Channel
    token: str = ""

    def as_another(self, token: str) -> GrpcDoor:
        """See `Door`."""
        return GrpcDoor(self.channel, token)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The credential that goes with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    async def call(self, method: MethodDescriptor, request: Message, word: str) -> Answer:
        """See `Door`."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        metadata = [(WAIT, "false"), *self.metadata]
        body = request.SerializeToString()
        try:
            if not method.server_streaming:
                unary: Any = self.channel.unary_unary(path)
                return Answer("OK", await unary(body, timeout=DEADLINE_S, metadata=metadata))
            begin: Any = self.channel.unary_stream(path)
            stream = begin(body, timeout=DEADLINE_S, metadata=metadata)
            try:
                return await _heard(aiter(stream), word)
            finally:
                stream.cancel()
        except grpc.aio.AioRpcError as error:
            details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
            packed = details if isinstance(details, bytes) else details.encode()
            said = f"{error.code().name} {error.details()} ".encode() + packed
            return Answer(error.code().name, said, from_rpc_error(error, peer="the control plane").reason)


async def _heard(messages: AsyncIterator[bytes | Answer], word: str) -> Answer:
    """Listen to a stream: to its end or its first message, or, if it must not tell of something, for a while."""
    said = b""
    try:
        async with asyncio.timeout(QUIET_S if word in ("yes", "blank") else DEADLINE_S):
            async for message in messages:
                if isinstance(message, Answer):
                    return message
                said += message
                if word != "blank":
                    break
    except TimeoutError:
        assert word in ("yes", "blank"), f"it should be {word}, and is neither a refusal nor a message"
    return Answer("OK", said)


@dataclass(frozen=True)
class JsonDoor:
    """A connection of the HTTP port."""

    http: httpx.AsyncClient
    token: str = ""

    def as_another(self, token: str) -> JsonDoor:
        """See `Door`."""
        return JsonDoor(self.http, token)

    async def call(self, method: MethodDescriptor, request: Message, word: str) -> Answer:
        """See `Door`."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        headers = {"content-type": "application/json", WAIT: "false"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        document = json_format.MessageToDict(request)
        if not method.server_streaming:
            answer = await self.http.post(path, json=document, headers=headers)
            if answer.status_code == 200:
                return Answer("OK", answer.content)
            return _refused(answer.json(), answer)
        headers["content-type"] = STREAM_TYPE
        async with aclosing(self._stream(path, envelope(document), headers)) as messages:
            return await _heard(messages, word)

    async def _stream(self, path: str, content: bytes, headers: dict[str, str]) -> AsyncGenerator[bytes | Answer, None]:
        """Call; yields messages, and an answer if the call is refused."""
        data = b""
        async with self.http.stream("POST", path, content=content, headers=headers) as streamed:
            async for piece in streamed.aiter_bytes():
                data += piece
                while len(data) >= 5 and len(data) >= (end := 5 + int.from_bytes(data[1:5])):
                    one, data = data[:end], data[end:]
                    document = json.loads(one[5:] or b"{}")
                    if not one[0] & _END:
                        yield one[5:]
                    elif "error" in document:
                        yield _refused(document["error"], streamed)


def _refused(document: dict[str, Any], response: httpx.Response) -> Answer:
    """Make an answer of an error, with the details' bytes out of their base64, in which no id can be found."""
    refused = JsonAnswer(response.status_code, document, response.headers)
    readable = [
        {**each, "value": base64.b64decode(each["value"] + "==").decode("latin-1")} for each in document["details"]
    ]
    said = json.dumps({**document, "details": readable, "status": response.status_code}).encode()
    return Answer(str(document["code"]).upper(), said, refused.detail(ErrorInfo).reason)


_source_numbers = count(2)


def another_address() -> str:
    """Give an address of this machine that nobody called from: so many strangers are refused of each."""
    number = next(_source_numbers)
    return f"127.66.{number // 250}.{number % 250 + 1}"


@asynccontextmanager
async def way_to(address: str) -> AsyncIterator[str]:
    """Open a port that leads to "host:port" from another address of this machine; gRPC cannot choose its own."""
    host, _, port = address.rpartition(":")
    source = another_address()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass_on(reader, back))
            group.create_task(_pass_on(there, writer))

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(2**16):
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass
    finally:
        target.close()


@dataclass
class Doors:
    """Opens ways to call, all of which end with it."""

    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def grpc(self, address: str, tls: grpc.ChannelCredentials, token: str = "") -> GrpcDoor:
        """Open a gRPC connection."""
        leading = await self.stack.enter_async_context(way_to(address))
        channel = open_channel(leading, tls, CONTROL_PLANE_SERVER_NAME)
        return GrpcDoor(await self.stack.enter_async_context(channel), token)

    async def json(self, address: str, trust: Any, token: str = "") -> JsonDoor:
        """Open an HTTP connection."""
        transport = httpx.AsyncHTTPTransport(verify=trust, local_address=another_address())
        http = httpx.AsyncClient(transport=transport, base_url=f"https://{address}", timeout=DEADLINE_S)
        return JsonDoor(await self.stack.enter_async_context(http), token)


def names_in(value: Any) -> Iterator[str]:
    """Find the things, written as "$name", that a request's body names."""
    if isinstance(value, str):
        if value.startswith("$"):
            yield value[1:]
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from names_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from names_in(each)


def filled(value: Any, things: Mapping[str, str]) -> Any:
    """Put things into a body."""
    if isinstance(value, str):
        return things[value[1:]] if value.startswith("$") else value
    if isinstance(value, Mapping):
        return {key: filled(each, things) for key, each in value.items()}
    return [filled(each, things) for each in value] if isinstance(value, list) else value
