"""Turn what the hypervisor layer and the host say into messages of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from hypervisor.abilities import HostDevice
from hypervisor.types import Accelerator, Capabilities, PowerState
from limiquantix.compute.v1 import node_pb2, node_service_pb2
from limiquantix.inventory import state_hash
from limiquantix.node.v1 import node_daemon_pb2
from nodedaemon.encode_machine import to_host_devices, to_huge_pages, to_machine, to_numa_nodes
from nodedaemon.guest_facts import GuestFacts
from nodedaemon.observer import GoneVm, ObservedVm
from nodedaemon.storage_domains import StorageDomainFacts
from telemetry.host import CpuFacts, DiskFacts, HostFacts, HostUsage, NicFacts, SystemFacts

MIB = 2**20
_MAX_NAME_CHARS = 255
_MAX_NETWORK_COUNT = 1024
_MAX_VCPU_COUNT, _MAX_MEMORY_MIB = 2**16, 2**40
"""What a report may say; one odd VM of another tool must not make the whole inventory invalid."""

STATUS_STATES = {
    PowerState.UNKNOWN: node_daemon_pb2.POWER_STATE_UNKNOWN,
    PowerState.RUNNING: node_daemon_pb2.POWER_STATE_RUNNING,
    PowerState.STOPPED: node_daemon_pb2.POWER_STATE_STOPPED,
    PowerState.PAUSED: node_daemon_pb2.POWER_STATE_PAUSED,
    PowerState.SUSPENDED: node_daemon_pb2.POWER_STATE_SUSPENDED,
    PowerState.CRASHED: node_daemon_pb2.POWER_STATE_CRASHED,
}
_REPORT_STATES = {
    PowerState.UNKNOWN: node_service_pb2.VM_POWER_STATE_UNKNOWN,
    PowerState.RUNNING: node_service_pb2.VM_POWER_STATE_RUNNING,
    PowerState.STOPPED: node_service_pb2.VM_POWER_STATE_STOPPED,
    PowerState.PAUSED: node_service_pb2.VM_POWER_STATE_PAUSED,
    PowerState.SUSPENDED: node_service_pb2.VM_POWER_STATE_SUSPENDED,
    PowerState.CRASHED: node_service_pb2.VM_POWER_STATE_CRASHED,
}


def timestamp(unix_s: float) -> Timestamp:
    """Encode Unix time."""
    stamp = Timestamp()
    stamp.FromNanoseconds(int(unix_s * 1e9))
    return stamp


def to_status(vm: ObservedVm) -> node_daemon_pb2.VMStatusResponse:
    """Answer what a VM is now."""
    status = vm.status
    response = node_daemon_pb2.VMStatusResponse(
        vm_id=status.vm_id,
        name=status.name,
        state=STATUS_STATES[status.state],
        resource_usage=node_daemon_pb2.ResourceUsage(
            cpu_usage_percent=vm.cpu_percent,
            cpu_time_ns=status.cpu_time_ns,
            memory_used_bytes=status.memory_used_bytes,
            memory_total_bytes=status.memory_total_bytes,
        ),
        state_change_count=vm.change.count,
    )
    if status.started_at_s is not None:
        response.started_at.CopyFrom(timestamp(status.started_at_s))
    changed_at_s = _changed_at_s(vm)
    if changed_at_s is not None:
        response.state_changed_at.CopyFrom(timestamp(changed_at_s))
    return response


def to_report(vm: ObservedVm | GoneVm) -> node_service_pb2.VMStatusReport:
    """Report a VM, or that it is gone."""
    if isinstance(vm, GoneVm):
        return node_service_pb2.VMStatusReport(
            id=vm.vm_id,
            state=node_service_pb2.VM_POWER_STATE_UNKNOWN,
            state_change_count=vm.change.count,
            state_changed_at_unix=int(vm.change.changed_at_s or 0),
            generation=vm.generation,
        )
    report = node_service_pb2.VMStatusReport(
        id=vm.status.vm_id,
        name=vm.status.name[:_MAX_NAME_CHARS],
        state=_REPORT_STATES[vm.status.state],
        state_change_count=vm.change.count,
        cpu_usage_percent=vm.cpu_percent,
        memory_used_bytes=vm.status.memory_used_bytes,
        state_changed_at_unix=int(_changed_at_s(vm) or 0),
        vcpu_count=min(vm.status.vcpu_count, _MAX_VCPU_COUNT),
        memory_mib=min(vm.status.memory_mib, _MAX_MEMORY_MIB),
        is_managed=vm.status.is_managed,
        generation=vm.generation,
    )
    if vm.guest is not None:
        report.ip_addresses.extend(vm.guest.ip_addresses)
        report.guest.CopyFrom(_guest(vm.guest))
    return report


def _guest(facts: GuestFacts) -> node_service_pb2.GuestReport:
    system = facts.system
    return node_service_pb2.GuestReport(
        os_name=system.os_name,
        os_version=system.os_version,
        kernel_version=system.kernel_version,
        hostname=system.hostname,
        agent_version=system.agent_version,
        uptime_seconds=int(facts.uptime_s),
        as_of_unix=int(facts.as_of_s),
    )


def inventory_hash(vms: Iterable[ObservedVm]) -> str:
    """Digest the inventory that these VMs are, as both sides of a heartbeat do."""
    return state_hash({vm.status.vm_id: _REPORT_STATES[vm.status.state] for vm in vms})


def to_notification(node_id: str, vm: ObservedVm | GoneVm, now_s: float) -> node_service_pb2.VMChangeNotification:
    """Tell of one change."""
    if isinstance(vm, GoneVm):
        event_type = node_service_pb2.VM_CHANGE_DELETED
    elif vm.change.previous is None:
        event_type = node_service_pb2.VM_CHANGE_CREATED
    else:
        event_type = node_service_pb2.VM_CHANGE_UPDATED
    return node_service_pb2.VMChangeNotification(
        node_id=node_id,
        vm=to_report(vm),
        event_type=event_type,
        timestamp_unix=int(now_s),
        previous_state=_REPORT_STATES[vm.change.previous or PowerState.UNKNOWN],
    )


def _changed_at_s(vm: ObservedVm) -> float | None:
    """When the state began; one that is older than this daemon is known only for a running VM."""
    if vm.change.changed_at_s is None and vm.status.state is PowerState.RUNNING:
        return vm.status.started_at_s
    return vm.change.changed_at_s


def to_capabilities(capabilities: Capabilities) -> node_daemon_pb2.HypervisorCapabilities:
    """Say what the backend can do."""
    return node_daemon_pb2.HypervisorCapabilities(
        name=capabilities.name,
        version=capabilities.version,
        supports_live_migration=capabilities.supports_live_migration,
        supports_snapshots=capabilities.supports_snapshots,
        supports_hotplug=capabilities.supports_hotplug,
        max_vcpus=min(capabilities.max_vcpus, 2**32 - 1),
        max_memory_bytes=capabilities.max_memory_bytes,
        accelerator=capabilities.accelerator.value,
        supports_gpu_passthrough=capabilities.abilities.has_gpu_passthrough,
        supports_nested_virtualization=capabilities.abilities.has_nested_virtualization,
        machine=to_machine(capabilities),
    )


def to_registration(
    facts: HostFacts,
    capabilities: Capabilities,
    labels: dict[str, str],
    hostname: str,
    agent_version: str,
    devices: Sequence[HostDevice] = (),
) -> node_service_pb2.RegisterNodeRequest:
    """Describe this host to the control plane; `agent_endpoint` is left to the caller."""
    is_simulated = capabilities.accelerator is Accelerator.SIMULATED
    memory_bytes = capabilities.max_memory_bytes if is_simulated else facts.memory_total_bytes
    cpu_info = _cpu(_simulated_cpu(capabilities) if is_simulated else facts.cpu)
    cpu_info.numa_nodes.extend(to_numa_nodes(capabilities))
    return node_service_pb2.RegisterNodeRequest(
        hostname=hostname,
        management_ip=facts.management_ip,
        labels=labels,
        role=node_pb2.NodeRole(compute=True),
        cpu_info=cpu_info,
        memory_info=node_pb2.MemoryInfo(
            total_bytes=memory_bytes, allocatable_bytes=memory_bytes, huge_pages=to_huge_pages(capabilities)
        ),
        storage_devices=[_disk(disk) for disk in facts.disks],
        network_devices=[_nic(nic, facts.management_ip) for nic in facts.nics],
        system=_system(facts.system, capabilities, agent_version),
        devices=to_host_devices(devices),
        machine=to_machine(capabilities),
        bridges=(facts.bridges if capabilities.bridges is None else capabilities.bridges)[:_MAX_NETWORK_COUNT],
        host_networks=[name for name in capabilities.host_networks if _is_name(name)][:_MAX_NETWORK_COUNT],
        supports_live_migration=capabilities.supports_live_migration,
    )


def _is_name(name: str) -> bool:
    """Whether a name of the host's may be told; one odd network must not make the whole registration invalid."""
    return 0 < len(name) <= _MAX_NAME_CHARS and name.isprintable()


def to_storage_domains(domains: Iterable[StorageDomainFacts]) -> list[node_pb2.StorageDomain]:
    """Tell where disks of VMs are kept."""
    return [
        node_pb2.StorageDomain(
            id=domain.id, path=str(domain.path), total_bytes=domain.total_bytes, free_bytes=domain.free_bytes
        )
        for domain in domains
    ]


def to_node_info(
    facts: HostFacts,
    usage: HostUsage,
    capabilities: Capabilities,
    node_id: str,
    hostname: str,
    devices: Sequence[HostDevice] = (),
) -> node_daemon_pb2.NodeInfoResponse:
    """Describe this host to whoever asks the daemon itself."""
    cpu = facts.cpu
    return node_daemon_pb2.NodeInfoResponse(
        node_id=node_id,
        hostname=hostname,
        management_ip=facts.management_ip,
        cpu=node_daemon_pb2.CpuInfo(
            model=cpu.model,
            sockets=cpu.socket_count,
            cores_per_socket=cpu.cores_per_socket,
            threads_per_core=cpu.threads_per_core,
            total_threads=cpu.thread_count,
            frequency_mhz=cpu.frequency_mhz,
            features=cpu.features,
        ),
        memory=node_daemon_pb2.MemoryInfo(
            total_bytes=usage.memory_total_bytes,
            available_bytes=usage.memory_available_bytes,
            used_bytes=usage.memory_used_bytes,
        ),
        storage=[
            node_daemon_pb2.StorageInfo(
                device=filesystem.device,
                mount_point=filesystem.mount_point,
                total_bytes=filesystem.total_bytes,
                used_bytes=filesystem.used_bytes,
                available_bytes=filesystem.available_bytes,
                filesystem=filesystem.kind,
            )
            for filesystem in facts.filesystems
        ],
        network=[
            node_daemon_pb2.NetworkInfo(
                name=nic.name,
                mac_address=nic.mac_address,
                ip_addresses=nic.ip_addresses,
                speed_mbps=nic.speed_mbps,
                up=nic.is_up,
            )
            for nic in facts.nics
        ],
        capabilities=to_capabilities(capabilities),
        devices=to_host_devices(devices),
    )


def _simulated_cpu(capabilities: Capabilities) -> CpuFacts:
    return CpuFacts(
        model="simulated",
        socket_count=1,
        cores_per_socket=capabilities.max_vcpus,
        threads_per_core=1,
        thread_count=capabilities.max_vcpus,
        frequency_mhz=0,
        features=(),
    )


def _cpu(cpu: CpuFacts) -> node_pb2.CpuInfo:
    return node_pb2.CpuInfo(
        model=cpu.model,
        sockets=cpu.socket_count,
        cores_per_socket=cpu.cores_per_socket,
        threads_per_core=cpu.threads_per_core,
        total_threads=cpu.thread_count,
        frequency_mhz=cpu.frequency_mhz,
        features=cpu.features,
    )


def _disk(disk: DiskFacts) -> node_pb2.StorageDevice:
    if disk.path.startswith("/dev/nvme"):
        kind = node_pb2.StorageDevice.NVME
    else:
        kind = node_pb2.StorageDevice.HDD if disk.is_rotational else node_pb2.StorageDevice.SSD
    return node_pb2.StorageDevice(
        path=disk.path,
        model=disk.model,
        serial=disk.serial,
        size_bytes=disk.size_bytes,
        type=kind,
        available=not disk.is_mounted,
        usage="host" if disk.is_mounted else "",
    )


def _nic(nic: NicFacts, management_ip: str) -> node_pb2.NetworkDevice:
    is_management = management_ip in nic.ip_addresses
    return node_pb2.NetworkDevice(
        name=nic.name,
        mac_address=nic.mac_address,
        driver=nic.driver,
        speed_mbps=nic.speed_mbps,
        mtu=nic.mtu,
        config=node_pb2.NetworkDeviceConfig(
            role=node_pb2.NetworkDeviceConfig.MANAGEMENT if is_management else node_pb2.NetworkDeviceConfig.UNUSED,
            ip_addresses=nic.ip_addresses,
        ),
    )


def _system(system: SystemFacts, capabilities: Capabilities, agent_version: str) -> node_pb2.SystemInfo:
    return node_pb2.SystemInfo(
        os_name=system.os_name,
        os_version=system.os_version,
        kernel_version=system.kernel_version,
        hypervisor=capabilities.name,
        hypervisor_version=capabilities.version,
        agent_version=agent_version,
        boot_time=timestamp(system.boot_time_s),
    )
