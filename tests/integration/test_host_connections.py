"""How hosts connect to a control plane to which all of them connect at once."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatRequest
from limiquantix.errors import ApiError
from limiquantix.rpc.channel import CONNECT_LIMIT_MS, CROWD_CONNECT_LIMIT_MS
from nodedaemon.control_plane import GrpcControlPlane
from tests.support.own_cluster import control_plane_credentials


async def test_host_whose_handshake_waits_in_line_keeps_its_place() -> None:
    assert CONNECT_LIMIT_MS + 2_000 < CROWD_CONNECT_LIMIT_MS
    connected: list[asyncio.StreamWriter] = []
    taken = asyncio.Event()

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer nothing, as a server does that has thousands of others to answer first."""
        connected.append(writer)
        taken.set()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    control = GrpcControlPlane([address], control_plane_credentials())

    async def beat() -> None:
        while True:
            with contextlib.suppress(ApiError):
                await control.heartbeat(UpdateHeartbeatRequest())
            await asyncio.sleep(0.2)

    beating = asyncio.create_task(beat())
    try:
        async with asyncio.timeout(30):
            await taken.wait()
        await asyncio.sleep((CONNECT_LIMIT_MS + 1_500) / 1000)  # any other client has given up, and has come again
        assert not beating.done()
        assert len(connected) == 1
    finally:
        beating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beating
        await control.close()
        for writer in connected:
            writer.close()
        server.close()
        await server.wait_closed()
