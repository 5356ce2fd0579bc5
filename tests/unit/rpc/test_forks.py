"""Programs that are started beside calls leave the calls alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CALLS_BESIDE_PROGRAMS = """
import {program}.__main__
import asyncio

import grpc
import uvloop

async def echo(data, context):
    await asyncio.sleep(0.001)
    return data

async def call(address):
    for _ in range(20):
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            for _ in range(10):
                await channel.unary_unary("/a.b/Echo")(b"x", timeout=30)

async def start_programs():
    for _ in range(200):
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0

async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.b", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.gather(start_programs(), *(call(f"127.0.0.1:{port}") for _ in range(3)))
    await server.stop(0)

uvloop.run(main())
"""


@pytest.mark.parametrize("program", ["controlplane", "nodedaemon"])
def test_programs_started_by_uvloop_break_no_call_and_get_no_word_of_grpc(program: str) -> None:
    script = CALLS_BESIDE_PROGRAMS.replace("{program}", program)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}

    ended = subprocess.run(
        [sys.executable, "-c", script], env=kept, capture_output=True, text=True, timeout=120, check=False
    )

    assert (ended.returncode, ended.stderr) == (0, "")
