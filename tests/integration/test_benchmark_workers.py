"""The benchmark's processes: they do as they are told, measure what happens, and are gone afterwards."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from google.protobuf.empty_pb2 import Empty

from benchmarks.bare_server import SERVICE, running_bare_server
from benchmarks.workers import ask_all, running_workers
from limiquantix.compute.v1.vm_service_pb2 import VMUpdate
from limiquantix.rpc.channel import open_channel


def processes_of(module: str) -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if f"benchmarks.{module}" in each.cmdline()]


async def test_watchers_tell_how_late_each_message_was(tmp_path: Path) -> None:
    async with (
        running_bare_server(tmp_path / "bare", {}) as address,
        open_channel(address) as channel,
        running_workers("watch_worker", 2) as workers,
    ):
        publish = channel.unary_unary(f"/{SERVICE}/Publish", VMUpdate.SerializeToString, Empty.FromString)
        await ask_all(workers, do="open", address=address, method=f"/{SERVICE}/Watch", count=3)
        message = VMUpdate(type=VMUpdate.MODIFIED)
        for _ in range(4):
            message.vm.description = str(time.monotonic_ns() - 1_000_000_000)  # a second ago
            await publish(message, timeout=10)
        answers = await ask_all(workers, do="collect", count=12)
        assert len(processes_of("watch_worker")) == 2
    assert [len(answer["late_ms"]) for answer in answers] == [12, 12]
    assert all(1_000 <= late_ms < 10_000 for answer in answers for late_ms in answer["late_ms"])
    assert processes_of("watch_worker") == []


async def test_worker_that_fails_is_told_and_gone() -> None:
    async with running_workers("watch_worker", 1) as workers:
        with pytest.raises(RuntimeError, match="ended early"):
            await workers[0].ask(do="nothing it knows")
    assert processes_of("watch_worker") == []
