"""What this host tells of itself and its VMs: registration, heartbeat, full inventory, node info."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from hypervisor.abilities import HostDevice
from hypervisor.base import Hypervisor
from hypervisor.errors import HypervisorError
from hypervisor.errors import Unavailable as HypervisorUnavailable
from hypervisor.types import Capabilities, PowerState
from limiquantix.compute.v1.node_service_pb2 import (
    HostInfo,
    RegisterNodeRequest,
    SyncFullStateRequest,
    UpdateHeartbeatRequest,
)
from limiquantix.errors import ApiError
from limiquantix.node.v1.node_daemon_pb2 import HealthCheckResponse, NodeInfoResponse
from nodedaemon import encode
from nodedaemon.config import join_address, split_address
from nodedaemon.errors import hypervisor_errors
from nodedaemon.host_meter import HostMeter
from nodedaemon.observer import READ_DEADLINE_S, ObservedVm, VmObserver
from nodedaemon.storage_domains import StorageDomainFacts, StorageIdUnusable, read_storage_domain
from telemetry.host import HostUsage, read_host_facts

TELEMETRY_DEADLINE_S = 10.0
"""Reading the host takes milliseconds; a dead network mount must not keep the daemon from registering."""

HEARTBEAT_READ_S = 1.0
"""A heartbeat goes without what cannot be had in this time: the lease of the host hangs on it."""

_MIN_USAGE_INTERVAL_S = 1.0

AGENT_VERSION = version("limiquantix")

_log = structlog.get_logger(__name__)

_WILDCARDS = ("0.0.0.0", "::", "*")  # noqa: S104 - recognised here, not listened on


class HostReport:
    """Builds the messages; reads the host and the hypervisor anew each time.

    Args:
        hostname: what the control plane knows this host by.
        node_id: as the host was told when it joined; "" until the control plane assigns one.
        storage_root: where it keeps disks of VMs; None tells of none.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        observer: VmObserver,
        meter: HostMeter,
        *,
        hostname: str,
        labels: dict[str, str],
        node_id: str,
        storage_root: Path | None = None,
    ) -> None:
        self._storage_root = storage_root
        self._hypervisor = hypervisor
        self._observer = observer
        self._meter = meter
        self._hostname = hostname
        self._labels = labels
        self.node_id = node_id
        self._endpoint = ""
        self._find_templates: Callable[[], Awaitable[Collection[str]]] | None = None
        self._find_lost_storage: Callable[[], Sequence[str]] = tuple
        self._sampling: asyncio.Future[HostUsage] | None = None
        self._sampled_s = 0.0
        self._usage_before: HostUsage | None = None
        self._domains_before: Sequence[StorageDomainFacts] = ()
        self._templates_before: Collection[str] = ()
        self._running_count = 0

    def serve_at(self, listen_address: str, port: int, advertise_address: str) -> None:
        """Set where the control plane finds the daemon; a wildcard address becomes the management IP when asked."""
        host, advertised_port = split_address(advertise_address or listen_address)
        self._endpoint = join_address(host, (advertised_port if advertise_address else 0) or port)

    def tell_templates(self, find: Callable[[], Awaitable[Collection[str]]]) -> None:
        """Say from now on in full states which VMs, as `find` names them, are templates."""
        self._find_templates = find

    def tell_lost_storage(self, find: Callable[[], Sequence[str]]) -> None:
        """Say from now on in heartbeats which storage domains, as `find` names them, are lost."""
        self._find_lost_storage = find

    async def registration(self) -> RegisterNodeRequest:
        """Describe this host.

        Raises:
            Unavailable: the hypervisor does not answer, so there is nothing to register yet.
        """
        capabilities = await self.capabilities()
        async with asyncio.timeout(TELEMETRY_DEADLINE_S):
            facts = await asyncio.to_thread(read_host_facts)
        devices = await self.devices()
        request = encode.to_registration(facts, capabilities, self._labels, self._hostname, AGENT_VERSION, devices)
        request.storage_domains.extend(encode.to_storage_domains(await self._storage_domains()))
        if (migration := self._hypervisor.migration) is not None:
            request.migration_address = urlsplit(migration.peer_uri).hostname or ""
        host, port = split_address(self._endpoint)
        request.agent_endpoint = join_address(facts.management_ip if host in _WILDCARDS else host, port)
        return request

    async def heartbeat(self) -> UpdateHeartbeatRequest:
        """Say how busy this host is; while the hypervisor does not answer, nothing new is said of VMs.

        Takes no longer than two seconds, whatever hangs: old figures, or none, are better than silence.
        """
        usage = await self._newest_usage()
        try:
            async with asyncio.timeout(HEARTBEAT_READ_S):
                vms: list[ObservedVm] | None = await self._observer.read_all()
        except (ApiError, TimeoutError):
            vms = None
        if vms is not None:
            self._running_count = sum(vm.status.state is PowerState.RUNNING for vm in vms)
        return UpdateHeartbeatRequest(
            node_id=self.node_id,
            cpu_usage_percent=usage.cpu_percent,
            memory_used_mib=usage.memory_used_bytes // encode.MIB,
            memory_total_mib=usage.memory_total_bytes // encode.MIB,
            running_vm_count=self._running_count,
            disk_used_bytes=usage.disk_used_bytes,
            disk_total_bytes=usage.disk_total_bytes,
            load_1m=usage.load_1m,
            load_5m=usage.load_5m,
            load_15m=usage.load_15m,
            state_hash=encode.inventory_hash(vms) if vms is not None else "",
            lost_storage_ids=self._find_lost_storage(),
        )

    async def full_state(self) -> SyncFullStateRequest:
        """List everything this host has.

        Raises:
            Unavailable: the hypervisor does not answer; an empty inventory would declare every VM lost.
        """
        as_of = self._observer.position
        vms = await self._observer.read_all()
        usage = await self._newest_usage()
        async with asyncio.timeout(TELEMETRY_DEADLINE_S):
            facts = await asyncio.to_thread(read_host_facts)
        reports = [encode.to_report(vm) for vm in vms]
        templates = await self._templates()
        for report in reports:
            report.is_template = report.id in templates
        return SyncFullStateRequest(
            node_id=self.node_id,
            host_info=HostInfo(
                hostname=self._hostname,
                management_ip=facts.management_ip,
                memory_total_bytes=usage.memory_total_bytes,
                memory_available_bytes=usage.memory_available_bytes,
                cpu_cores=facts.cpu.socket_count * facts.cpu.cores_per_socket,
                cpu_usage_percent=usage.cpu_percent,
            ),
            vms=reports,
            state_hash=encode.inventory_hash(vms),
            as_of_change_count=as_of,
        )

    async def health(self, uptime_s: int) -> HealthCheckResponse:
        """Say whether this daemon and its hypervisor work; answers even when they do not."""
        response = HealthCheckResponse(version=AGENT_VERSION, uptime_seconds=uptime_s)
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                response.healthy = (await self._hypervisor.health()).healthy
                capabilities = await self._hypervisor.capabilities()
            response.hypervisor, response.hypervisor_version = capabilities.name, capabilities.version
        except (HypervisorUnavailable, TimeoutError):
            response.healthy = False
        return response

    async def node_info(self) -> NodeInfoResponse:
        """Describe this host and its hypervisor."""
        capabilities = await self.capabilities()
        async with asyncio.timeout(TELEMETRY_DEADLINE_S):
            facts = await asyncio.to_thread(read_host_facts)
        devices = await self.devices()
        usage = await self._newest_usage()
        return encode.to_node_info(facts, usage, capabilities, self.node_id, self._hostname, devices)

    async def capabilities(self) -> Capabilities:
        """Ask the hypervisor what it can do."""
        with hypervisor_errors():
            async with asyncio.timeout(TELEMETRY_DEADLINE_S):
                return await self._hypervisor.capabilities()

    async def devices(self) -> Sequence[HostDevice]:
        """List what VMs might get of the host's devices; none if the hypervisor cannot tell, or not in time."""
        if self._hypervisor.host_devices is None:
            return ()
        try:
            async with asyncio.timeout(TELEMETRY_DEADLINE_S):
                return await self._hypervisor.host_devices.list()
        except (HypervisorError, TimeoutError) as error:
            _log.warning("host_devices_not_listed", error=str(error))
            return ()

    async def _storage_domains(self) -> Sequence[StorageDomainFacts]:
        """Look at the storage; as it was read last while it cannot be, and none before it ever was: never a guess.

        Storage that is known to be lost is not looked at: each look at one that hangs would keep a thread.
        """
        if self._storage_root is None or self._find_lost_storage():
            return self._domains_before
        try:
            async with asyncio.timeout(TELEMETRY_DEADLINE_S):
                self._domains_before = (await asyncio.to_thread(read_storage_domain, self._storage_root),)
        except (StorageIdUnusable, TimeoutError) as error:
            _log.error("storage_domain_unknown", error=str(error) or "time-out", path=str(self._storage_root))
        return self._domains_before

    async def _templates(self) -> Collection[str]:
        """Find which VMs are templates, which their storage says; as it said last while it does not answer."""
        if self._find_templates is None or self._find_lost_storage():
            return self._templates_before
        try:
            async with asyncio.timeout(TELEMETRY_DEADLINE_S):
                self._templates_before = await self._find_templates()
        except OSError as error:  # a time-out too
            _log.warning("templates_unknown", error=str(error) or "time-out")
        return self._templates_before

    async def _newest_usage(self) -> HostUsage:
        """Measure, if that is quick; else return what was measured last, or nothing at all."""
        try:
            return await self._usage(HEARTBEAT_READ_S)
        except OSError:  # a time-out too; whoever looks after storage tells of it once
            return self._usage_before or HostUsage(0, 0, 0, 0, 0, 0, 0, 0, 0)

    async def _usage(self, limit_s: float) -> HostUsage:
        """Measure, or repeat what was measured a moment ago: CPU use over a few milliseconds means nothing.

        One that hangs, as on storage that is gone, is waited for and not joined by others.

        Raises:
            TimeoutError: it takes longer than `limit_s`.
            OSError: the machine does not tell.
        """
        now_s = asyncio.get_running_loop().time()
        if self._usage_before is not None and now_s - self._sampled_s < _MIN_USAGE_INTERVAL_S:
            return self._usage_before
        if self._sampling is None or self._sampling.done():
            self._sampling = asyncio.ensure_future(self._meter.sample())
        async with asyncio.timeout(limit_s):
            usage = await asyncio.shield(self._sampling)
        if usage is not self._usage_before:
            self._usage_before, self._sampled_s = usage, now_s
        return usage
