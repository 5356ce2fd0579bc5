"""The HTTP listener with TLS, its headers, and what it refuses of browsers."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controlplane.api.http.application import build_application
from controlplane.api.http.server import HttpServer
from controlplane.api.http.tls import CertificateUnusable, ServerTls
from tests.support.self_signed import write_self_signed

DEADLINE_S = 60.0


async def _peer(request: Request) -> Response:
    return JSONResponse({"scheme": request.url.scheme, "client": request.client.host if request.client else ""})


async def _fails(_: Request) -> Response:
    raise RuntimeError("inner text")


def _application(*cors_origins: str) -> object:
    return build_application([], [Route("/peer", _peer), Route("/fails", _fails)], cors_origins)


@dataclass
class Listener:
    """A listening server and its files."""

    port: int
    tls: ServerTls
    cert_path: Path
    key_path: Path


@pytest_asyncio.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    cert_path, key_path = tmp_path / "tls.crt", tmp_path / "tls.key"
    write_self_signed(cert_path, key_path, "first")
    tls = ServerTls(cert_path, key_path)
    server = HttpServer(_application(), tls=tls)  # type: ignore[arg-type]
    yield Listener(await server.start("127.0.0.1:0"), tls, cert_path, key_path)
    await server.stop()


def _trusting_anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _get(port: int, path: str, context: ssl.SSLContext | None, *headers: str) -> tuple[bytes, bytes]:
    """Make a request; gives the server's certificate and its answer."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
        if not any(line.lower().startswith("connection") for line in lines):
            lines.append("Connection: close")
        writer.write("\r\n".join([*lines, "", ""]).encode())
        answer = await reader.read()
        tls = writer.get_extra_info("ssl_object")
        writer.close()
    return tls.getpeercert(binary_form=True) if tls is not None else b"", answer


def _name(certificate: bytes) -> str:
    return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()


async def test_requests_are_encrypted_and_answers_say_to_stay_with_it(listener: Listener) -> None:
    certificate, answer = await _get(listener.port, "/peer", _trusting_anybody())

    assert _name(certificate) == "CN=first"
    assert b'"scheme":"https"' in answer
    assert b"strict-transport-security: max-age=31536000" in answer


async def test_plain_request_gets_nothing(listener: Listener) -> None:
    try:
        _, answer = await _get(listener.port, "/peer", None)
    except ConnectionError:
        return
    assert b"scheme" not in answer


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_versions_are_not_spoken(listener: Listener, version: ssl.TLSVersion) -> None:
    context = _trusting_anybody()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")

    with pytest.raises((ssl.SSLError, ConnectionError)):
        await _get(listener.port, "/peer", context)


async def test_renewed_certificate_is_used_by_new_connections_and_old_ones_go_on(listener: Listener) -> None:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=_trusting_anybody())
        write_self_signed(listener.cert_path, listener.key_path, "second")

        assert listener.tls.refresh()
        certificate, _ = await _get(listener.port, "/peer", _trusting_anybody())
        writer.write(b"GET /peer HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")

        assert _name(certificate) == "CN=second"
        assert b"200 OK" in await reader.read()
        assert not listener.tls.refresh()
        writer.close()


async def test_half_a_pair_changes_nothing_until_the_other_half_is_there(listener: Listener, tmp_path: Path) -> None:
    other_cert, other_key = tmp_path / "other.crt", tmp_path / "other.key"
    write_self_signed(other_cert, other_key, "third")
    listener.cert_path.write_bytes(other_cert.read_bytes())

    assert not listener.tls.refresh()
    assert _name((await _get(listener.port, "/peer", _trusting_anybody()))[0]) == "CN=first"

    listener.key_path.write_bytes(other_key.read_bytes())

    assert listener.tls.refresh()
    assert _name((await _get(listener.port, "/peer", _trusting_anybody()))[0]) == "CN=third"


def test_files_that_are_no_pair_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CertificateUnusable, match=r"missing\.crt"):
        ServerTls(tmp_path / "missing.crt", tmp_path / "missing.key")


@pytest.fixture
async def plain_port() -> AsyncIterator[int]:
    server = HttpServer(_application())  # type: ignore[arg-type]
    yield await server.start("127.0.0.1:0")
    await server.stop()


@pytest.mark.parametrize("path", ["/peer", "/missing", "/fails"])
async def test_every_answer_tells_browsers_to_do_nothing_with_it(plain_port: int, path: str) -> None:
    _, answer = await _get(plain_port, path, None)

    for line in (
        b"content-security-policy: default-src 'none'; frame-ancestors 'none'",
        b"x-content-type-options: nosniff",
        b"referrer-policy: no-referrer",
        b"cache-control: no-store",
    ):
        assert line in answer
    assert b"strict-transport-security" not in answer  # without TLS browsers ignore it
    assert b"inner text" not in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"HELO\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["no HTTP", "no host", "two lengths"],
)
async def test_what_is_no_request_gets_an_answer_like_all_others(listener: Listener, request_bytes: bytes) -> None:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=_trusting_anybody())
        writer.write(request_bytes)
        answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 400 ")
    for name in (b"content-security-policy:", b"x-content-type-options:", b"strict-transport-security:"):
        assert answer.count(name) == 1, answer


async def test_headers_that_do_not_end_are_cut_off(listener: Listener) -> None:
    sent_bytes, line = 0, b"X-Filler: " + b"y" * 4_000 + b"\r\n"
    async with asyncio.timeout(DEADLINE_S):
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=_trusting_anybody())
        writer.write(b"GET /peer HTTP/1.1\r\nHost: a\r\n")
        with contextlib.suppress(OSError):
            while sent_bytes < 2**26:
                writer.write(line)
                await writer.drain()
                sent_bytes += len(line)
    assert sent_bytes < 2**25, "what was in the buffers of both sides, and no more"


async def test_page_of_another_origin_may_not_read_answers(plain_port: int) -> None:
    _, answer = await _get(plain_port, "/peer", None, "Origin: https://evil.example")
    assert b"access-control-allow-origin" not in answer


async def test_only_origins_that_were_configured_may_read_answers() -> None:
    server = HttpServer(_application("https://ui.example"))  # type: ignore[arg-type]
    port = await server.start("127.0.0.1:0")
    try:
        _, allowed = await _get(port, "/peer", None, "Origin: https://ui.example")
        _, refused = await _get(port, "/peer", None, "Origin: https://evil.example")
    finally:
        await server.stop()

    assert b"access-control-allow-origin: https://ui.example" in allowed
    assert b"access-control-allow-origin" not in refused


async def test_nobody_can_say_that_a_call_comes_from_elsewhere(plain_port: int) -> None:
    _, answer = await _get(plain_port, "/peer", None, "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https")
    assert b'"client":"127.0.0.1"' in answer
    assert b'"scheme":"http"' in answer


async def test_websockets_are_not_opened(plain_port: int) -> None:
    _, answer = await _get(
        plain_port,
        "/peer",
        None,
        "Connection: upgrade, close",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Origin: https://evil.example",
    )
    assert not answer.startswith(b"HTTP/1.1 101")
    assert answer.startswith(b"HTTP/1.1 ")
