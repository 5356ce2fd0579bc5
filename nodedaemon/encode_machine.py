"""Turn what a host can give its VMs into messages of the contract: for its registration, and for its callers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypervisor.abilities import DeviceKind, HostDevice
from hypervisor.types import Capabilities
from limiquantix.compute.v1 import node_pb2

MAX_DEVICE_COUNT = 1024
"""What a report may list; hosts with hundreds of virtual functions come near it."""

_MAX_WORDS_CHARS = 255
_KIB_PER_2MB_PAGE, _KIB_PER_1GB_PAGE = 2048, 1048576
_KINDS = {
    DeviceKind.PCI: node_pb2.HostDevice.PCI,
    DeviceKind.USB: node_pb2.HostDevice.USB,
    DeviceKind.MEDIATED: node_pb2.HostDevice.MEDIATED,
}
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ud800-\udfff\ue000-\uf8ff]")


def to_machine(capabilities: Capabilities) -> node_pb2.MachineCapabilities:
    """Say what the machines of VMs can have."""
    abilities = capabilities.abilities
    machine = node_pb2.MachineCapabilities(
        supports_uefi=abilities.has_uefi,
        supports_secure_boot=abilities.has_secure_boot,
        tpm_versions=[version.value for version in abilities.tpm_versions],
        displays=[display.value for display in abilities.displays],
        video_models=[model.value for model in abilities.video_models],
        cpu_models=abilities.cpu_models,
        hyperv_features=abilities.hyperv_features,
        has_iommu=abilities.has_iommu,
        supports_nested_virtualization=abilities.has_nested_virtualization,
        can_add_vcpus=abilities.can_add_vcpus,
        can_remove_vcpus=abilities.can_remove_vcpus,
        can_add_memory=abilities.can_add_memory,
        huge_pages=to_huge_pages(capabilities),
        max_vcpus=min(capabilities.max_vcpus, 2**32 - 1),
    )
    if abilities.can_limit_cpu is not None:
        machine.can_limit_cpu = abilities.can_limit_cpu
    return machine


def to_huge_pages(capabilities: Capabilities) -> node_pb2.HugePagesInfo:
    """Count the pages that are set aside."""
    pages = {each.size_kib: each for each in capabilities.abilities.huge_pages}
    counts = node_pb2.HugePagesInfo()
    if (small := pages.get(_KIB_PER_2MB_PAGE)) is not None:
        counts.pages_2mb_total, counts.pages_2mb_free = small.total_count, small.free_count
    if (large := pages.get(_KIB_PER_1GB_PAGE)) is not None:
        counts.pages_1gb_total, counts.pages_1gb_free = large.total_count, large.free_count
    return counts


def to_numa_nodes(capabilities: Capabilities) -> list[node_pb2.NumaNodeInfo]:
    """Describe the host's NUMA nodes."""
    return [
        node_pb2.NumaNodeInfo(node_id=node.node_id, cpus=node.cpus, memory_bytes=node.memory_mib * 2**20)
        for node in capabilities.abilities.numa_nodes
    ]


def to_host_devices(devices: Sequence[HostDevice]) -> list[node_pb2.HostDevice]:
    """List devices; what a device calls itself is cut and cleaned, since anybody can build one."""
    return [_device(device) for device in devices[:MAX_DEVICE_COUNT]]


def _device(device: HostDevice) -> node_pb2.HostDevice:
    message = node_pb2.HostDevice(
        kind=_KINDS[device.kind],
        address=device.address,
        vendor_id=device.vendor_id,
        product_id=device.product_id,
        vendor=_words(device.vendor),
        product=_words(device.product),
        class_code=device.class_code,
        driver=_words(device.driver)[:64],
        profiles=[profile[:128] for profile in device.profiles[:256]],
        obstacle=_words(device.obstacle),
        used_by_vm_id=device.used_by,
    )
    if device.iommu_group is not None:
        message.iommu_group = device.iommu_group
    if device.numa_node is not None and device.numa_node >= 0:
        message.numa_node = device.numa_node
    return message


def _words(text: str) -> str:
    return _CONTROL_CHARACTERS.sub(" ", text)[:_MAX_WORDS_CHARS].strip()
