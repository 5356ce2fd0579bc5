"""Node daemons, as real processes, over libvirt hosts between which guests migrate."""

from __future__ import annotations

import asyncio
import re
import shutil
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from controlplane.cli.dev.guest_image import build_guest_image
from limiquantix.node.v1 import node_daemon_pb2 as pb
from limiquantix.rpc.status import from_rpc_error
from tests.support import serial_guests
from tests.support.libvirt_hosts import MigrationHost
from tests.support.node_daemon_process import NodeDaemonProcess, client, node_daemon
from tests.support.private_libvirt_host import TEST_CACHE_DIR, eventually

CALL_DEADLINE_S = 60.0
DEADLINE_S = 60.0
COUNTING_SCRIPT = "i=0; while :; do echo LINE $i > /dev/ttyS0; i=$((i+1)); usleep 20000; done"


class Wire:
    """A daemon's methods over the wire, called as a servicer's are; errors come as the daemon meant them."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def __getattr__(self, name: str) -> Callable[[Any, Any], Any]:
        method = getattr(self._stub, name)
        return (lambda request, _: _stream(method, request)) if name == "MigrateVM" else _unary(method)


def _unary(method: Any) -> Callable[[Any, Any], Any]:
    async def call(request: Any, _: Any) -> Any:
        try:
            return await method(Empty() if request is None else request, timeout=CALL_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer="node daemon") from error

    return call


async def _stream(method: Any, request: Any) -> AsyncGenerator[Any, None]:
    call = method(request)
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, peer="node daemon") from error
    finally:
        call.cancel()


@dataclass
class LibvirtNode:
    """One host with its daemon."""

    host: MigrationHost
    directory: Path
    storage: Path
    hostname: str = "test-host"
    control_plane: str = ""
    daemon: NodeDaemonProcess | None = None
    servicer: Any = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def data_dir(self) -> Path:
        """What its daemon keeps: who it is, too."""
        return self.directory / "data"

    async def start(self) -> None:
        """Run the daemon."""
        self.directory.mkdir(parents=True, exist_ok=True)
        hypervisor = {
            "backend": "libvirt",
            "libvirt_uri": self.host.uri,
            "storage_path": str(self.storage),
            "accelerator": "tcg",
        }
        migration = {"uri": self.host.tls_uri, "pki_path": str(self.host.pki)}
        self.daemon = await self._stack.enter_async_context(
            node_daemon(
                self.directory,
                self.control_plane,
                hypervisor=hypervisor,
                migration=migration,
                node={"hostname": self.hostname, "data_dir": str(self.data_dir)},
            )
        )
        self.servicer = Wire(await self._stack.enter_async_context(client(self.daemon)))

    async def until_certified(self) -> None:
        """Wait until its hypervisor has what the control plane issued since the daemon was started first."""

        async def look() -> bool | None:
            assert self.daemon is not None
            log = await asyncio.to_thread(self.daemon.log_path.read_text)
            return True if '"event":"migration_certificate_renewed"' in log else None

        await eventually(look, f"a certificate of {self.hostname} for moving VMs", DEADLINE_S)

    async def kill(self) -> None:
        """Kill the daemon as `kill -9` does."""
        assert self.daemon is not None
        await self.daemon.kill()
        await self.stop()

    async def stop(self) -> None:
        """Let go of the daemon."""
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    def console(self, vm_id: str) -> list[str]:
        """Whole lines that the guest wrote on this host."""
        text = self.console_bytes(vm_id).decode(errors="replace")
        return [line.rstrip("\r") for line in text.split("\n")[:-1]]

    def console_bytes(self, vm_id: str) -> bytes:
        """Everything that the guest wrote on this host."""
        path = self.data_dir / "console" / f"{vm_id}.log"
        return path.read_bytes() if path.exists() else b""


@asynccontextmanager
async def libvirt_nodes(
    hosts: tuple[MigrationHost, MigrationHost], directory: Path, *, shared: bool
) -> AsyncIterator[tuple[LibvirtNode, LibvirtNode]]:
    """Run a daemon on each of two hosts."""
    roots = [directory / ("images" if shared else f"images-{number}") for number in (1, 2)]
    nodes = [
        LibvirtNode(host, directory / f"n{number}", root)
        for number, (host, root) in enumerate(zip(hosts, roots, strict=True))
    ]
    for root in roots:
        root.mkdir(parents=True, exist_ok=True)
        serial_guests.write_disk(root / "counter.raw", serial_guests.COUNTER)
        serial_guests.write_disk(root / "heavy.raw", serial_guests.HEAVY_COUNTER)
    try:
        for node in nodes:
            await node.start()
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            await node.stop()


async def clean(node: LibvirtNode) -> None:
    """Remove every VM."""
    for vm in (await node.servicer.ListVMs(None, None)).vms:
        request = pb.VMIdRequest(vm_id=vm.vm_id)
        await node.servicer.ForceStopVM(request, None)
        await node.servicer.DeleteVM(request, None)


def counter_spec(*, heavy: bool = False, **fields: Any) -> pb.VMSpec:
    """A VM that boots a counting boot sector from a disk of its own."""
    name = "heavy.raw" if heavy else "counter.raw"
    disk = pb.DiskSpec(
        id=str(uuid.uuid4()), source_file=name, source_format=pb.SOURCE_FORMAT_RAW, format=pb.DISK_FORMAT_QCOW2
    )
    return pb.VMSpec(cpu_cores=1, memory_mib=16, disks=[disk], **fields)


async def linux_spec(nodes: tuple[LibvirtNode, LibvirtNode], memory_mib: int = 128) -> pb.VMSpec:
    """A VM that boots a small Linux with a guest agent, whose kernel lies in each host's storage."""
    image = await asyncio.to_thread(build_guest_image, TEST_CACHE_DIR / "guest", print)
    for node in nodes:
        for file, name in ((image.kernel, "kernel"), (image.initrd, "initrd")):
            await asyncio.to_thread(shutil.copy, file, node.storage / name)
    cmdline = f"{image.kernel_arguments} hostname=linux"
    boot = pb.DirectKernelBoot(kernel_path="kernel", initrd_path="initrd", cmdline=cmdline)
    return pb.VMSpec(cpu_cores=1, memory_mib=memory_mib, direct_boot=boot)


async def run(node: LibvirtNode, spec: pb.VMSpec) -> str:
    """Make a VM and start it; returns its id."""
    vm_id = str(uuid.uuid4())
    definition = pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec, generation=1)
    await node.servicer.CreateVM(definition, None)
    await node.servicer.StartVM(pb.VMIdRequest(vm_id=vm_id, generation=2), None)
    return vm_id


async def counted(node: LibvirtNode, vm_id: str, line_count: int) -> None:
    """Wait until the guest wrote that many lines on a host."""

    async def look() -> bool | None:
        return True if len(node.console(vm_id)) >= line_count else None

    await eventually(look, f"{line_count} lines on the console", DEADLINE_S)


async def begin_counting(node: LibvirtNode, vm_id: str) -> None:
    """Wait for a Linux guest's agent and have it count on its console for ever."""

    async def ping() -> bool | None:
        try:
            await node.servicer.PingGuestAgent(pb.GuestRequest(vm_id=vm_id), None)
        except Exception:  # noqa: BLE001 - not up yet
            return None
        return True

    await eventually(ping, "the guest's agent", DEADLINE_S)
    script = f"({COUNTING_SCRIPT}) >/dev/null 2>&1 &"
    await node.servicer.ExecuteInGuest(
        pb.ExecuteInGuestRequest(vm_id=vm_id, command="/bin/sh", args=["-c", script], wait_for_exit=False), None
    )


def counted_numbers(console: bytes) -> list[int]:
    """What a Linux guest counted; the kernel's own messages may stand before it on a line."""
    return [int(number) for number in re.findall(rb"LINE (\d+)\r?\n", console)]


def lines_between(nodes: tuple[LibvirtNode, LibvirtNode], vm_id: str) -> list[str]:
    """What the guest counted, on the source first."""
    return nodes[0].console(vm_id) + nodes[1].console(vm_id)
