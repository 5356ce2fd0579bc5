"""How the control plane's gRPC waits for its connections: a switch of the library's, which it may stop to know."""

from __future__ import annotations

import subprocess
import sys

SERVE_AND_CALL = """
import asyncio, os
import controlplane.__main__
import grpc

CALLS = 1000

class Answering(grpc.GenericRpcHandler):
    def service(self, details):
        async def answer(request, context):
            return b""
        return grpc.unary_unary_rpc_method_handler(answer)

def spent_by(name):
    ticks = 0
    for task in os.listdir("/proc/self/task"):
        head, _, tail = open(f"/proc/self/task/{task}/stat").read().rpartition(")")
        if name in head:
            ticks += sum(map(int, tail.split()[11:13]))
    return ticks

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Answering(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/any.Service/Method")
        for _ in range(CALLS):
            await call(b"")
    print(spent_by("event_engine"), spent_by("python"))
    await server.stop(0)

asyncio.run(main())
"""


def test_messages_do_not_pass_through_threads_of_the_librarys_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE_AND_CALL], check=True, capture_output=True, text=True, timeout=120
    )
    of_the_library, ours = map(int, done.stdout.split())
    assert ours > 10 * of_the_library, done.stdout
    assert "experiment" not in done.stderr, "it does not know the switch any more"
