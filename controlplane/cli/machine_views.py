"""What tables show of machines: hardware of VMs, changes that wait, and what a node's machines and devices are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.cli.output import Column
from controlplane.cli.sizes import format_bytes

Document = Mapping[str, Any]
Fields = list[tuple[str, str]]

_MIB = 2**20

DEVICE_COLUMNS = tuple(Column(title) for title in ("ADDRESS", "KIND", "DEVICE", "IDS", "DRIVER", "GROUP", "FOR VMS"))


def pending_text(vm: Document) -> str:
    """Say which changes wait for a VM's next start, and why; "" if none do."""
    status = vm.get("status", {})
    paths = ", ".join(str(path).removeprefix("spec.") for path in status.get("pendingChanges", ()))
    reasons = "; ".join(str(reason) for reason in status.get("pendingReasons", ()))
    return f"{paths} ({reasons})" if paths and reasons else paths


def pending_fields(vm: Document) -> Fields:
    """Make titles and values of what waits, and of the size that runs meanwhile."""
    status = vm.get("status", {})
    vcpus, memory_mib = status.get("runningVcpus"), status.get("runningMemoryMib")
    runs = [f"{vcpus} vCPUs"] if vcpus else []
    runs += [format_bytes(int(memory_mib) * _MIB)] if memory_mib else []
    return [("At the next start", pending_text(vm)), ("Runs with", ", ".join(runs))]


def hardware_fields(spec: Document) -> Fields:
    """Make titles and values of the machine beyond processors, memory and devices; empty ones for what is not there."""
    cpu, memory, display = spec.get("cpu", {}), spec.get("memory", {}), spec.get("display", {})
    family = str(spec.get("guestOs", {}).get("family", "")).removeprefix("GUEST_OS_FAMILY_")
    watchdog, tpm = spec.get("watchdog", {}), spec.get("tpm", {})
    passed = [str(device.get("hostAddress", "")) for device in spec.get("pciDevices", ())]
    passed += [_usb(device) for device in spec.get("usbDevices", ())]
    passed += [str(device.get("gpuUuid", "")) for device in spec.get("vgpuDevices", ())]
    return [
        ("Guest system", family.lower().replace("_", " ")),
        ("Most vCPUs", str(cpu.get("maxVcpus", "") or "")),
        ("Most memory", format_bytes(int(memory["maxMemoryMib"]) * _MIB) if memory.get("maxMemoryMib") else ""),
        (
            "TPM",
            str(tpm.get("version", "TPM_1_2")).removeprefix("TPM_").replace("_", ".") if tpm.get("enabled") else "",
        ),
        ("Watchdog", str(watchdog.get("action", "RESET")).lower() if watchdog.get("enabled") else ""),
        ("Display", "" if display.get("type", "VNC") == "VNC" else str(display["type"])),
        ("Host devices", ", ".join(passed)),
    ]


def _usb(device: Document) -> str:
    if device.get("vendorId"):
        return f"{device['vendorId']}:{device.get('productId', '')}"
    return f"{device.get('hostBus', '')}:{device.get('hostDevice', '')}"


def machine_fields(node: Document) -> Fields:
    """Make titles and values of what the machines of a node's VMs can have; none if its daemon did not say."""
    machine = node.get("spec", {}).get("machine")
    if machine is None:
        return []
    pages = machine.get("hugePages", {})
    counts = [
        f"{pages.get(f'pages{key}Free', 0)} of {pages[f'pages{key}Total']} of {size}"
        for key, size in (("2mb", "2 MiB"), ("1gb", "1 GiB"))
        if int(pages.get(f"pages{key}Total", 0))
    ]
    abilities = (
        ("UEFI", "supportsUefi"),
        ("secure boot", "supportsSecureBoot"),
        ("nested VMs", "supportsNestedVirtualization"),
        ("PCI pass-through", "hasIommu"),
        ("adding vCPUs", "canAddVcpus"),
        ("removing vCPUs", "canRemoveVcpus"),
        ("adding memory", "canAddMemory"),
    )
    return [
        ("Can", ", ".join(words for words, key in abilities if machine.get(key))),
        ("TPM", ", ".join(machine.get("tpmVersions", ()))),
        ("Displays", ", ".join(machine.get("displays", ()))),
        ("CPU models", ", ".join(machine.get("cpuModels", ()))),
        ("Huge pages free", ", ".join(counts)),
        ("Devices", str(len(node.get("spec", {}).get("devices", ())) or "")),
    ]


def reach_fields(node: Document) -> Fields:
    """Make titles and values of the storage and networks that a node's VMs can have."""
    spec = node.get("spec", {})
    domains = [
        f"{domain.get('path', '')} ({domain.get('id', '')}), {format_bytes(int(domain.get('freeBytes', 0)))} free of "
        f"{format_bytes(int(domain.get('totalBytes', 0)))} at registration"
        for domain in spec.get("storageDomains", ())
    ]
    return [
        ("Storage", "; ".join(domains)),
        ("Bridges", ", ".join(spec.get("bridges", ()))),
        ("Virtual networks", ", ".join(spec.get("hostNetworks", ()))),
        ("Live migration", "yes" if spec.get("supportsLiveMigration") else ""),
    ]


def device_row(device: Document) -> list[str]:
    """Make the row of one device of a node."""
    words = " ".join(filter(None, (str(device.get("vendor", "")), str(device.get("product", "")))))
    ids = ":".join(filter(None, (str(device.get("vendorId", "")), str(device.get("productId", "")))))
    profiles = ", ".join(device.get("profiles", ()))
    return [
        str(device.get("address", "")),
        str(device.get("kind", "")).lower(),
        words or profiles,
        ids,
        str(device.get("driver", "")),
        str(device.get("iommuGroup", "")),
        f"no: {device['obstacle']}" if device.get("obstacle") else "yes",
    ]
