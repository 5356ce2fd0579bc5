"""A node daemon as a real process, and a client of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import yaml

from limiquantix.errors import ApiError
from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceStub
from limiquantix.rpc.status import from_rpc_error
from tests.support import own_cluster

if TYPE_CHECKING:  # the asynchronous stub's type exists for type checkers only
    from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceAsyncStub

DEADLINE_S = 60


@dataclass
class NodeDaemonProcess:
    """A running `limiquantix-node`; `listening` is what it said when it was up, `node_id` who it is."""

    process: asyncio.subprocess.Process
    listening: dict[str, Any]
    log_path: Path
    node_id: str

    @property
    def address(self) -> str:
        return str(self.listening["grpc_address"])

    async def kill(self) -> None:
        """Kill it as `kill -9` does."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """Ask it to end; returns its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self.process.wait()
        except TimeoutError:
            await self.kill()
            raise


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "nodedaemon", *flags]


def environment(program_dir: Path | None = None) -> dict[str, str]:
    """Ours, without settings that would reach the daemon."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIMIQUANTIX_")}
    if program_dir is not None:
        kept["PATH"] = f"{program_dir}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return kept


@asynccontextmanager
async def node_daemon(
    directory: Path,
    control_plane: str,
    *flags: str,
    hypervisor: dict[str, Any] | None = None,
    program_dir: Path | None = None,
    namespace: str = "",
    **sections: Any,
) -> AsyncIterator[NodeDaemonProcess]:
    """Run one on free ports with all its data below `directory`, which outlives it.

    It is the node that it joined as, if there is an identity in its data; else one of the tests' own cluster.

    Args:
        control_plane: addresses where control planes take calls of hosts; "" for none.
        program_dir: where it finds programs, such as qemu-img, before it looks at the usual places.
        namespace: name of the network it runs in; "" for ours.
    """
    config: dict[str, Any] = {
        "node": {"hostname": "test-host", "data_dir": str(directory / "data"), "labels": {"rack": "r1"}},
        "server": {"listen_address": "127.0.0.1:0", "metrics_port": 0},
        "hypervisor": {"storage_path": str(directory / "images"), "backend": "mock"} | (hypervisor or {}),
        "control_plane": {
            "address": control_plane,
            "registration_enabled": bool(control_plane),
            "heartbeat_interval_secs": 1,
        },
        "migration": {"pki_path": None},  # nothing shall be written to /etc
        "self_fencing": {"run_dir": str(directory / "guard")},
    } | sections
    config_path = directory / "node.yaml"
    config_path.write_text(yaml.safe_dump(config))
    node_id = own_cluster.admit(Path(config["node"]["data_dir"]))
    log_path = directory / "node.log"
    words = command("--config", str(config_path), *flags)
    if namespace:
        words = ["ip", "netns", "exec", namespace, *words]
    with log_path.open("ab") as log:
        offset = log.tell()
        process = await asyncio.create_subprocess_exec(*words, stderr=log, env=environment(program_dir))
    daemon = NodeDaemonProcess(process, {}, log_path, node_id)
    try:
        daemon.listening = await _wait_until_listening(process, log_path, offset)
        yield daemon
    finally:
        if process.returncode is None:
            await daemon.stop()


async def _wait_until_listening(process: asyncio.subprocess.Process, log_path: Path, offset: int) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            text = (await asyncio.to_thread(log_path.read_bytes))[offset:].decode()
            for line in text.splitlines():
                if '"event":"listening"' in line:
                    answer: dict[str, Any] = json.loads(line)
                    return answer
            if process.returncode is not None:
                raise AssertionError(f"the node daemon ended with {process.returncode}:\n{text}")
            await asyncio.sleep(0.02)


@asynccontextmanager
async def client(daemon: NodeDaemonProcess) -> AsyncIterator[NodeDaemonServiceAsyncStub]:
    """Connect to it, as a control plane of the tests' own cluster."""
    async with own_cluster.daemon_channel(daemon.address, daemon.node_id) as channel:
        yield NodeDaemonServiceStub(channel)


async def refusal(call: Any) -> ApiError:
    """Await a call that must fail, and return the error the daemon meant."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, peer="node daemon")
    raise AssertionError("the call succeeded")
