"""The least a grpc.aio server can do: answer every call with bytes it was given at its start.

No contract, no validation, no metrics, no database. What it reaches is what gRPC on this machine allows; it is the
reference for the API's figures and, as the smallest useful daemon, for memory.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import grpc
import uvloop

from benchmarks.cluster import tell
from controlplane.cli.dev.processes import DaemonProcess

SERVICE = "benchmarks.Bare"
_START_TIMEOUT_S = 20.0
_POLL_INTERVAL_S = 0.02
_STOP_GRACE_S = 1.0


class _Answers(grpc.GenericRpcHandler):
    """Answers /benchmarks.Bare/<name> with the bytes of that name; what is sent to Publish, every Watch gets."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self._watching: set[asyncio.Queue[bytes]] = set()
        self._handlers: dict[str, Any] = {
            f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(_answering(answer))
            for name, answer in answers.items()
        }
        self._handlers[f"/{SERVICE}/Publish"] = grpc.unary_unary_rpc_method_handler(self._publish)
        self._handlers[f"/{SERVICE}/Watch"] = grpc.unary_stream_rpc_method_handler(self._watch)

    async def _publish(self, message: bytes, context: Any) -> bytes:
        for queue in self._watching:
            queue.put_nowait(message)
        return b""

    async def _watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Send at once what was asked with, to show that it listens, then what is published."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._watching.add(queue)
        try:
            yield request
            while True:
                yield await queue.get()
        finally:
            self._watching.discard(queue)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Find the handler of a method."""
        return self._handlers.get(handler_call_details.method)


def _answering(answer: bytes) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def handle(request: bytes, context: Any) -> bytes:
        return answer

    return handle


async def serve(answers: dict[str, bytes], port_file: Path) -> None:
    """Serve each answer as a method until SIGTERM; the port is written to a file."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server(handlers=[_Answers(answers)], options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(_publish, port_file, str(port))
    await stop.wait()
    await server.stop(_STOP_GRACE_S)


def _publish(path: Path, text: str) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(text)
    scratch.replace(path)


@asynccontextmanager
async def running_bare_server(directory: Path, answers: dict[str, bytes]) -> AsyncIterator[str]:
    """Run the server in a process of its own; yields its address.

    Raises:
        RuntimeError: it does not start.
    """
    await asyncio.to_thread(_write_answers, directory, answers)
    command = [sys.executable, "-m", "benchmarks.bare_server", str(directory)]
    daemon = DaemonProcess("bare gRPC server", command, directory / "log", tell)
    await daemon.start()
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not (directory / "port").exists():
                if daemon.failed():
                    raise RuntimeError(f"the bare gRPC server ended at once:\n{daemon.tail()}")
                await asyncio.sleep(_POLL_INTERVAL_S)
        yield f"127.0.0.1:{(directory / 'port').read_text()}"
    finally:
        await daemon.stop()


def _write_answers(directory: Path, answers: dict[str, bytes]) -> None:
    directory.mkdir(parents=True)
    for name, answer in answers.items():
        (directory / f"{name}.bin").write_bytes(answer)


@click.command()
@click.argument("answers_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(answers_dir: Path) -> None:
    """Serve the files *.bin of ANSWERS_DIR."""
    answers = {path.stem: path.read_bytes() for path in answers_dir.glob("*.bin")}
    uvloop.run(serve(answers, answers_dir / "port"))


if __name__ == "__main__":
    main()
