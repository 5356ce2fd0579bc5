"""A whole cluster on one machine, of real processes on 127.0.0.1: control plane, node daemons, libvirt if need be."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import yaml

from controlplane.cli.credentials import CredentialFile
from controlplane.cli.dev.access import ADMIN, Access, AccessFailed
from controlplane.cli.dev.api import Api, ApiCallError
from controlplane.cli.dev.demo import BootFiles
from controlplane.cli.dev.guest_image import GuestImage, GuestImageError, build_guest_image
from controlplane.cli.dev.libvirt_choice import LibvirtChoice, LibvirtKind, find_libvirt
from controlplane.cli.dev.libvirtd import PrivateLibvirt, PrivateLibvirtError
from controlplane.cli.dev.processes import DaemonProcess, ProcessFailed, free_port, require_free_port
from controlplane.cli.failures import Failure

START_TIMEOUT_S = 60.0
HEARTBEAT_INTERVAL_S = 5
CPU_OVERCOMMIT_RATIO = 8.0
_POLL_INTERVAL_S = 0.05
_NODE_PORT = 9090
_METRICS_PORT = 9091
_HOSTS_PORT = 8082
_JOINING_AT_ONCE = 4


class HypervisorChoice(StrEnum):
    """What runs the VMs of the first node; `auto` takes libvirt where it can be had, else the mock."""

    AUTO = "auto"
    MOCK = "mock"
    LIBVIRT = "libvirt"


class ClusterFailed(Exception):
    """The cluster cannot be had; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What the user asked for. Ports 0 take free ones; nodes beyond the first are simulated."""

    data_dir: Path
    cache_dir: Path
    hypervisor: HypervisorChoice = HypervisorChoice.AUTO
    node_count: int = 1
    http_port: int = 8080
    grpc_port: int = 8081


class Cluster:
    """Use it as `async with Cluster(options, tell) as cluster`; on the way out everything it started is gone."""

    def __init__(self, options: ClusterOptions, tell: Callable[[str], None]) -> None:
        self._options = options
        self._tell = tell
        self._cleanup = AsyncExitStack()
        self._daemons: list[DaemonProcess] = []
        self._supervisors: list[asyncio.Task[None]] = []
        self.http_url = ""
        self.grpc_address = ""
        self._hosts_address = ""
        self.first_node: dict[str, Any] = {}
        self.boot_files: BootFiles | None = None
        self.libvirt_uri: str | None = None
        self.api: Api

    @property
    def authority_path(self) -> Path:
        """Where the certificate of the cluster's authority is, for programs that call it."""
        return self._options.data_dir / "ca.pem"

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except (AccessFailed, Failure) as error:
            await self._cleanup.aclose()
            raise ClusterFailed(str(error)) from error
        except BaseException:
            await self._cleanup.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cleanup.aclose()

    async def _start(self) -> None:
        options = self._options
        await asyncio.to_thread(options.data_dir.mkdir, mode=0o755, parents=True, exist_ok=True)
        http_port = require_free_port(options.http_port, "--http-port")
        grpc_port = require_free_port(options.grpc_port, "--grpc-port")
        self.http_url = f"https://127.0.0.1:{http_port}"
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        self.libvirt_uri = await self._provide_libvirt()
        started_at = datetime.now(UTC)
        access = await self._start_control_plane(http_port, grpc_port)
        slots = asyncio.Semaphore(_JOINING_AT_ONCE)
        await asyncio.gather(*(self._start_node(number, access, slots) for number in range(1, options.node_count + 1)))
        await self._wait_for_nodes(started_at)
        self._supervisors = [asyncio.get_running_loop().create_task(daemon.supervise()) for daemon in self._daemons]
        self._cleanup.push_async_callback(self._stop_vms)

    # -- hypervisor

    async def _provide_libvirt(self) -> str | None:
        """Decide what runs the VMs; None is the mock."""
        options = self._options
        if options.hypervisor is HypervisorChoice.MOCK:
            return None
        choice = await find_libvirt(options.data_dir)
        try:
            uri = await self._open_libvirt(choice)
            self.boot_files = await self._provide_guest_image()
        except (PrivateLibvirtError, GuestImageError) as error:
            if options.hypervisor is HypervisorChoice.LIBVIRT:
                raise ClusterFailed(str(error)) from error
            self._tell(f"{error}; VMs are simulated instead")
            return None
        return uri

    async def _open_libvirt(self, choice: LibvirtChoice) -> str:
        if choice.kind is LibvirtKind.NONE:
            raise PrivateLibvirtError(choice.reason)
        self._tell(f"libvirt: {choice.reason}")
        if choice.kind is LibvirtKind.PRIVATE:
            private = PrivateLibvirt(self._options.data_dir / "libvirt", tell=self._tell)
            return (await self._cleanup.enter_async_context(private)).uri
        assert choice.uri is not None  # noqa: S101 - every other kind has one
        return choice.uri

    async def _provide_guest_image(self) -> BootFiles:
        image = await asyncio.to_thread(build_guest_image, self._options.cache_dir, self._tell)
        kernel, initrd = await asyncio.to_thread(_copy_image, image, self._storage_path(1) / "boot")
        return BootFiles(str(kernel), str(initrd), image.kernel_arguments)

    # -- processes

    def _storage_path(self, number: int) -> Path:
        return self._options.data_dir / f"node-{number}" / "images"

    async def _start_control_plane(self, http_port: int, grpc_port: int) -> Access:
        """Start it, and log in to it; `api` works from then on."""
        directory = self._options.data_dir / "controlplane"
        self._hosts_address = f"127.0.0.1:{self._daemon_port(_HOSTS_PORT, 1) or free_port(0)}"
        config = {
            "http": {"listen_address": f"127.0.0.1:{http_port}"},
            "grpc": {"listen_address": f"127.0.0.1:{grpc_port}"},
            "security": {
                "hosts_listen_address": self._hosts_address,
                "addresses": [f"127.0.0.1:{grpc_port}"],
                "runtime_dir": str(directory / "run"),
                "open_reflection": True,
            },
            "secrets": {"key_file": str(directory / "secret.key")},
            "database": {"url": f"sqlite:///{directory / 'limiquantix.db'}"},
            "nodes": {"heartbeat_interval_s": HEARTBEAT_INTERVAL_S},
            # By the usual ratios a laptop of two cores has room for the demo's VM and one more.
            "scheduler": {"cpu_overcommit_ratio": CPU_OVERCOMMIT_RATIO, "reserved_cores": 0},
        }
        path = await asyncio.to_thread(self._write_config, "controlplane", config)
        ready = directory / "ready.json"
        await asyncio.to_thread(ready.unlink, missing_ok=True)
        command = [sys.executable, "-m", "controlplane", "--config", str(path), "--migrate", "--ready-file", str(ready)]
        process = await self._start_daemon("control plane", command, "controlplane")

        async def listens() -> bool:
            return await asyncio.to_thread(ready.exists)

        await self._wait(listens, process, "the control plane does not listen")
        access = Access(
            ("controlplane", "--config", str(path)),
            self.authority_path,
            (CredentialFile(directory / "credentials.json"), CredentialFile()),
        )
        trust, password = await access.open()
        self.api = await self._cleanup.enter_async_context(Api(self.http_url, trust, access.auth(self.http_url)))
        self._cleanup.push_async_callback(access.log_out, self.http_url)
        await access.log_in(self.api, self.http_url, password)
        await self._wait(self.api.is_ready, process, "the control plane is not ready")
        self._tell(f"control plane ready at {self.http_url}; `limiquantix` is logged in to it as {ADMIN}")
        return access

    async def _start_node(self, number: int, access: Access, slots: asyncio.Semaphore) -> None:
        """Have a host join, if it did not, and its daemon run."""
        uses_libvirt = number == 1 and self.libvirt_uri is not None
        name = f"node-{number}"
        hypervisor: dict[str, Any] = {"storage_path": str(self._storage_path(number)), "backend": "mock"}
        if uses_libvirt:
            hypervisor |= {"backend": "libvirt", "libvirt_uri": self.libvirt_uri}
        hostname, data_dir = _host_name() if number == 1 else f"mock-{number}", self._options.data_dir / name
        config = {
            "node": {"hostname": hostname, "data_dir": str(data_dir)},
            "server": {
                "listen_address": f"127.0.0.1:{self._daemon_port(_NODE_PORT, number)}",
                "metrics_port": self._daemon_port(_METRICS_PORT, number),
            },
            "hypervisor": hypervisor,
            "control_plane": {"address": self._hosts_address, "heartbeat_interval_secs": HEARTBEAT_INTERVAL_S},
            "self_fencing": {"run_dir": str(data_dir / "guard")},  # nothing is left in /run
            "migration": {"pki_path": None},  # nor in /etc: its libvirt has no others of its kind
        }
        path = await asyncio.to_thread(self._write_config, name, config)
        command = ("nodedaemon", "--config", str(path))
        async with slots:
            await access.join(self.api, command, data_dir, hostname)
        await self._start_daemon(f"node daemon {number}", [sys.executable, "-m", *command], name)

    def _daemon_port(self, first: int, number: int) -> int:
        """Choose a node daemon's port: a known one for people, a free one for whoever asked for free ones."""
        return 0 if self._options.grpc_port == 0 else free_port(first + 10 * (number - 1))

    def _write_config(self, name: str, config: dict[str, Any]) -> Path:
        path = self._options.data_dir / name / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# Written by `limiquantix dev` at every start; changes are lost.\n{yaml.safe_dump(config)}")
        return path

    async def _start_daemon(self, title: str, command: list[str], name: str) -> DaemonProcess:
        daemon = DaemonProcess(title, command, self._options.data_dir / "log" / f"{name}.log", self._tell)
        self._cleanup.push_async_callback(daemon.stop)
        await daemon.start()
        self._daemons.append(daemon)
        return daemon

    async def _wait_for_nodes(self, started_at: datetime) -> None:
        async def all_ready() -> bool:
            ready = [node for node in await self.api.nodes() if _is_ready_since(node, started_at)]
            self.first_node = next((node for node in ready if node["hostname"] == _host_name()), {})
            return len(ready) >= self._options.node_count and bool(self.first_node)

        await self._wait(all_ready, self._daemons[-1], "not every node registered")
        self._tell(f"{self._options.node_count} node(s) registered")

    async def _wait(self, condition: Callable[[], Any], process: DaemonProcess, complaint: str) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await _holds(condition):
                    for daemon in self._daemons:
                        if daemon.failed():
                            raise ClusterFailed(f"{daemon.name} ended at once:\n{daemon.tail()}")
                    await asyncio.sleep(_POLL_INTERVAL_S)
        except TimeoutError:
            raise ClusterFailed(f"{complaint} after {START_TIMEOUT_S:g} s:\n{process.tail()}") from None

    async def run_until_failure(self) -> None:
        """Keep the processes running.

        Raises:
            ProcessFailed: one cannot be kept running.
        """
        await asyncio.gather(*self._supervisors)

    async def _stop_vms(self) -> None:
        """Stop what runs, so that the hypervisor has nothing of ours when this program is gone."""
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                alive = [vm for vm in await self.api.vms() if vm["status"]["state"] in {"RUNNING", "PAUSED"}]
                for vm in alive:
                    await self.api.call("VMService", "StopVM", id=vm["id"], force=True)
        except (ApiCallError, TimeoutError) as error:
            self._tell(f"VMs could not be stopped: {error}")


async def _holds(condition: Callable[[], Any]) -> bool:
    try:
        return bool(await condition())
    except ApiCallError:
        return False


def _is_ready_since(node: dict[str, Any], started_at: datetime) -> bool:
    heard = node["status"].get("lastHeartbeat")
    return node["status"]["phase"] == "READY" and heard is not None and datetime.fromisoformat(heard) >= started_at


def _copy_image(image: GuestImage, directory: Path) -> tuple[Path, Path]:
    """Put the image where the node's VMs may boot from; a VM defined earlier finds its files again."""
    directory.mkdir(parents=True, exist_ok=True)
    copies = []
    for source in (image.kernel, image.initrd):
        target = directory / source.name
        scratch = target.with_suffix(".new")
        shutil.copyfile(source, scratch)
        scratch.replace(target)
        copies.append(target)
    return copies[0], copies[1]


def _host_name() -> str:
    """This machine's name, reduced to what may name a node."""
    name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip("-.")
    return name or "localhost"


__all__ = ["Cluster", "ClusterFailed", "ClusterOptions", "HypervisorChoice", "ProcessFailed"]
