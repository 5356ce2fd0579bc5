"""What a machine of the cluster shows, and whom it believes; replaced while it serves and calls, without a restart.

Connections that stand go on with the certificate they were made with. New ones, in either direction, use the newest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import grpc

from limiquantix.rpc.channel import CONNECT_LIMIT_MS, open_channel

StubT = TypeVar("StubT")

CLOSE_GRACE_S: Final = 1.0
_KEPT_CHANNELS: Final = 2
"""The newest and the one before it."""


@dataclass(frozen=True, slots=True)
class MachineCertificate:
    """A certificate with its key, and that of the authority that must have signed the other side's; all PEM."""

    certificate_pem: bytes
    key_pem: bytes
    authority_pem: bytes

    def __repr__(self) -> str:
        return "MachineCertificate(...)"


class MachineCredentials:
    """The newest certificate of this machine. Replaced in the event loop's thread, read from threads of gRPC too."""

    def __init__(self, first: MachineCertificate) -> None:
        self._current = first

    @property
    def current(self) -> MachineCertificate:
        """What is shown from now on."""
        return self._current

    def replace(self, newer: MachineCertificate) -> None:
        """Show another certificate on connections that are made from now on."""
        self._current = newer

    def server(self, *, asks_for_certificate: bool) -> grpc.ServerCredentials:
        """Make credentials of a listening port.

        Args:
            asks_for_certificate: whether clients must show a certificate that the authority signed.
        """
        served = self._current

        def newer() -> grpc.ServerCertificateConfiguration | None:
            """Return what to serve with if it changed; called at every handshake, by a thread of gRPC's."""
            nonlocal served
            current = self._current
            if current is served:
                return None
            served = current
            return _configuration(current)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(served),
            newer,  # type: ignore[arg-type] # its stub omits None, which means no change
            require_client_authentication=asks_for_certificate,
        )

    def channel(self) -> grpc.ChannelCredentials:
        """Make credentials of connections that are opened now."""
        current = self._current
        return grpc.ssl_channel_credentials(current.authority_pem, current.key_pem, current.certificate_pem)


Tls = MachineCredentials | None
"""How a connection is made: with what this machine was given, or, between parts of a single process, in plain text."""


class LastingStub(Generic[StubT]):
    """A stub for one address, over a channel that is opened anew for later calls when the certificate was replaced.

    A channel that was left is closed when the next one is left: calls on it have half a certificate's life to end.

    Args:
        make: the class of the stub.
        server_name: what the certificate of the other side must name; "" for the host of the address.
        connect_limit_ms: how long an attempt to connect may take, the handshake included.
    """

    def __init__(
        self,
        make: Callable[[grpc.aio.Channel], StubT],
        address: str,
        tls: Tls,
        server_name: str = "",
        connect_limit_ms: int = CONNECT_LIMIT_MS,
    ) -> None:
        self._make = make
        self._address = address
        self._tls = tls
        self._server_name = server_name
        self._connect_limit_ms = connect_limit_ms
        self._shown: MachineCertificate | None = None
        self._stub: StubT | None = None
        self._channels: list[grpc.aio.Channel] = []
        self._closing: set[asyncio.Task[None]] = set()

    def get(self) -> StubT:
        """Return the stub to begin a call on; it connects when it is used first."""
        shown = self._tls.current if self._tls is not None else None
        if self._stub is None or shown is not self._shown:
            tls = self._tls.channel() if self._tls is not None else None
            channel = open_channel(self._address, tls, self._server_name, self._connect_limit_ms)
            self._stub, self._shown = self._make(channel), shown
            self._channels.append(channel)
            if len(self._channels) > _KEPT_CHANNELS:
                self._close_soon(self._channels.pop(0))
        return self._stub

    def close_soon(self) -> asyncio.Task[None]:
        """Begin to close all; calls under way get a second to finish. The task ends when all is closed."""
        channels, self._channels, self._stub = self._channels, [], None
        for channel in channels:
            self._close_soon(channel)
        return asyncio.get_running_loop().create_task(self._closed(), name=f"close-{self._address}")

    def _close_soon(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(CLOSE_GRACE_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _closed(self) -> None:
        while self._closing:
            await asyncio.wait(set(self._closing))


def _configuration(certificate: MachineCertificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key_pem, certificate.certificate_pem)], certificate.authority_pem
    )
