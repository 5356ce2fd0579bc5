"""Parts of a highly available cluster, in networks of their own: control planes, and hosts that can come to harm."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import yaml

from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceStub
from limiquantix.compute.v1.join_service_pb2_grpc import JoinServiceStub
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.operation_service_pb2_grpc import OperationServiceStub
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from nodedaemon.identity.files import IdentityFile
from tests.support import node_daemon_process
from tests.support.entry import Entry, authority_of
from tests.support.ha_witness import Watched
from tests.support.libvirt_hosts import MigrationHost
from tests.support.namespaces import kill_all_in, run_tool
from tests.support.node_daemon_process import NodeDaemonProcess, node_daemon
from tests.support.private_libvirt_host import virsh

PLANES_ADDRESS: Final = "10.97.0.250"
NODE_PORT: Final = 9090
CALL_S: Final = 30.0
DEADLINE_S: Final = 90.0
_PEOPLE_FROM: Final = 8081
_HTTP_FROM: Final = 8181
_HOSTS_FROM: Final = 8281
_POLL_S: Final = 0.05

FoundT = TypeVar("FoundT")


async def until(find: Callable[[], Awaitable[FoundT | None]], what: str, deadline_s: float = DEADLINE_S) -> FoundT:
    """Return what `find` finds; a control plane that is not there just now finds nothing."""
    until_s = time.monotonic() + deadline_s
    seen: grpc.aio.AioRpcError | None = None
    while time.monotonic() < until_s:
        try:
            if (found := await find()) is not None:
                return found
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            seen = error
        await asyncio.sleep(_POLL_S)
    raise AssertionError(f"{what}: not within {deadline_s:.0f} s; last error: {seen}")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a control plane listens, by its number, in the network of all of them."""

    number: int

    @property
    def people(self) -> str:
        """Where people and programs call it."""
        return f"{PLANES_ADDRESS}:{_PEOPLE_FROM + self.number}"

    @property
    def http(self) -> str:
        """Where they call it over HTTP."""
        return f"{PLANES_ADDRESS}:{_HTTP_FROM + self.number}"

    @property
    def hosts(self) -> str:
        """Where hosts call it."""
        return f"{PLANES_ADDRESS}:{_HOSTS_FROM + self.number}"


@dataclass
class Plane:
    """A control plane's process, which can be killed and started again where it was.

    Attributes:
        token: what this process calls it with, through doors to its ports for people.
        program: the module that it is started as.
        environment: what that is told beside the usual.
    """

    directory: Path
    namespace: str
    ports: Ports
    settings: Mapping[str, Any]
    database_url: str
    token: str
    door: str
    http_door: str
    program: str = "controlplane"
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    channel: grpc.aio.Channel | None = None

    async def start(self) -> None:
        """Run it, and wait until it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        ready, config = self.directory / "ready.json", self.directory / "controlplane.yaml"
        ready.unlink(missing_ok=True)
        config.write_text(yaml.safe_dump(dict(self.settings)))
        flags = ("--config", config, "--database-url", self.database_url, "--ready-file", ready)
        listen = ("--http-listen", self.ports.http, "--grpc-listen", self.ports.people)
        program = (sys.executable, "-m", self.program, *map(str, flags), *listen)
        words = ("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.namespace, *program)
        self._spawn(words)

        async def serves() -> Any:
            assert self.process is not None
            assert self.process.poll() is None, (self.directory / "control-plane.log").read_text()[-3000:]
            return json.loads(ready.read_text()) if ready.exists() else None

        await until(serves, "a control plane")
        authority = await asyncio.to_thread(authority_of, self.database_url)
        self.entry = Entry(f"https://{self.http_door}", self.door, self.ports.hosts, authority, self.token)
        self.channel = self.entry.channel(
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        )
        self.ha = HaServiceStub(self.channel)
        self.joining = JoinServiceStub(self.channel)
        self.vms = VMServiceStub(self.channel)
        self.nodes = NodeServiceStub(self.channel)
        self.operations = OperationServiceStub(self.channel)

    def _spawn(self, words: Sequence[str]) -> None:
        with (self.directory / "control-plane.log").open("ab") as log:
            environment = node_daemon_process.environment() | self.environment
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)

    def took_lead(self, leader_id: str) -> bool:
        """Whether this process, or one before it, has logged that it decides by this id, which each start has anew."""
        lines = (self.directory / "control-plane.log").read_text().splitlines()
        return any("ha_leadership_taken" in line and leader_id in line for line in lines)

    def send_signal(self, number: signal.Signals) -> None:
        """Stop it, or have it go on."""
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped, as by SIGSTOP."""
        assert self.process is not None
        return "T (stopped)" in Path(f"/proc/{self.process.pid}/status").read_text()

    def kill(self) -> None:
        """Kill it as `kill -9` does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def stop(self) -> None:
        """End it."""
        if self.channel is not None:
            await self.channel.close()
        self.kill()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None


@dataclass
class HaHost:
    """One host with its daemon and guard, and what can happen to them."""

    name: str
    host: MigrationHost
    directory: Path
    storage: Path
    control_planes: str
    fences_itself: bool = True
    daemon: NodeDaemonProcess | None = None
    boot_count: int = 0
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def watched(self) -> Watched:
        """Where a witness looks."""
        return Watched(self.host.pid_dir, self.data_dir / "console")

    @property
    def data_dir(self) -> Path:
        """What its daemon keeps, which outlives boots: who it is, too."""
        return self.directory / "data"

    @property
    def guard_dir(self) -> Path:
        """Where daemon and guard meet, which is empty after each boot."""
        return self.directory / f"guard-{self.boot_count}"

    @property
    def _boot_id(self) -> Path:
        return self.directory / "boot_id"

    @property
    def _going_down(self) -> Path:
        return self.directory / "going-down"

    async def boot(self) -> None:
        """Run its libvirt, if it does not, and its daemon."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.host.reaper_pid is None:
            await self.host.start()
        self._boot_id.write_text(f"{uuid.uuid4()}\n")
        self.boot_count += 1
        await self.start_daemon()

    async def start_daemon(self) -> None:
        """Run the daemon, in the boot that this is."""
        hypervisor = {
            "backend": "libvirt",
            "libvirt_uri": self.host.uri,
            "storage_path": str(self.storage),
            "accelerator": "tcg",
        }
        node = {"hostname": self.name, "data_dir": str(self.data_dir), "boot_id_path": str(self._boot_id)}
        self.daemon = await self._stack.enter_async_context(
            node_daemon(
                self.directory,
                self.control_planes,
                namespace=self.host.namespace,
                hypervisor=hypervisor,
                migration={"uri": self.host.tls_uri, "pki_path": str(self.host.pki)},
                node=node,
                server={"listen_address": f"{self.host.address}:{NODE_PORT}", "metrics_port": 0},
                self_fencing={"run_dir": str(self.guard_dir), "enabled": self.fences_itself},
                shutdown={"marker_path": str(self._going_down), "vm_stop_secs": 1},
            )
        )

    async def join_again(self, entry: Entry) -> None:
        """Have it join as the node that it was, after its certificate was revoked; it is not booted for that."""
        assert self.daemon is not None
        await self._stack.aclose()
        IdentityFile.under(self.data_dir).path.unlink()
        await entry.admit(self.data_dir, self.name, node_id=self.daemon.node_id)
        await self.start_daemon()

    async def die(self) -> None:
        """Lose the power: QEMUs, libvirtd, daemon and guard are gone at once. `boot` brings it back."""
        await asyncio.to_thread(kill_all_in, self.host.namespace)
        await self.let_go()

    async def shut_down(self, how: str) -> None:
        """Go down as a machine does on purpose, "poweroff" or "reboot": the daemon is asked to end first."""
        await self.end_daemon(how)
        await self.die()

    async def end_daemon(self, how: str) -> None:
        """Have the daemon do what it does before that, and no more: the machine does not go."""
        assert self.daemon is not None
        self._going_down.write_text(how)
        try:
            assert await self.daemon.stop() == 0
        finally:
            self._going_down.unlink()

    def hear(self, *, may: bool) -> None:
        """Drop, or no longer drop, all that it asks of control planes; they reach it."""
        ports = f"{_HOSTS_FROM}:{_HOSTS_FROM + 9}"
        rule = ("OUTPUT", "-p", "tcp", "--dport", ports, "-j", "DROP")
        run_tool("ip", "netns", "exec", self.host.namespace, "iptables", "-D" if may else "-A", *rule)

    async def let_go(self) -> None:
        """Wait for the ends of what was killed."""
        if self.daemon is not None:
            await self.daemon.process.wait()
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        await self.host.stop()

    def signal_daemon(self, number: signal.Signals) -> None:
        """Send the daemon, and not its guard, a signal."""
        assert self.daemon is not None
        self.daemon.process.send_signal(number)

    def lose_packets(self, *, outgoing: bool, lost: bool) -> None:
        """Drop, or no longer drop, everything that it sends, or that is sent to it."""
        fabric, number = self.host.fabric_namespace, self.host.namespace.rpartition("h")[2]
        namespace, device = (self.host.namespace, "eth0") if outgoing else (fabric, f"{fabric}v{number}")
        what = ("replace", "dev", device, "root", "pfifo", "limit", "0") if lost else ("del", "dev", device, "root")
        run_tool("tc", "-n", namespace, "qdisc", *what)

    async def defined_vm_ids(self) -> set[str]:
        """Ask its libvirt which VMs it has."""
        return set((await virsh(self.host.uri, "list", "--all", "--uuid")).split())
