"""What QEMU and libvirt on this host can give a machine: read from libvirt's documents, and files beside them.

Source: https://libvirt.org/formatdomaincaps.html and formatcaps.html; QEMU's docs/interop/firmware.json for firmware.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from lxml import etree

from hypervisor.abilities import Abilities, DisplayKind, HugePages, NumaNode
from hypervisor.guest_profiles import HYPERV_FEATURES
from hypervisor.hardware import TpmVersion, VideoModel
from hypervisor.types import Accelerator

FIRMWARE_DIRS: Final = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
"""Where descriptions of firmware lie; a file of the first replaces one of that name in the second."""
CPU_FEATURES_PATH: Final = Path("/usr/share/libvirt/cpu_map/x86_features.xml")
IOMMU_GROUPS_PATH: Final = Path("/sys/kernel/iommu_groups")
NESTED_PATHS: Final = (Path("/sys/module/kvm_intel/parameters/nested"), Path("/sys/module/kvm_amd/parameters/nested"))
CPUINFO_PATH: Final = Path("/proc/cpuinfo")

_MAX_FILE_BYTES: Final = 4 * 2**20
_KIB_PER_MIB: Final = 1024
_PAGE_KIB: Final = 4
_HUGE_PAGE_SIZES_KIB: Final = (2 * 1024, 1024 * 1024)
"""What x86-64 has beside its ordinary pages."""


def read_abilities(connection: Any, library: Any, accelerator: Accelerator) -> Abilities:
    """Ask libvirt, in a worker thread, what machines of this host can have; takes some milliseconds."""
    kind = "kvm" if accelerator is Accelerator.KVM else "qemu"
    host = _parse(connection.getCapabilities())
    return abilities_of(
        _parse(connection.getDomainCapabilities(None, "x86_64", "q35", kind)),
        host,
        _free_pages(connection, library, len(host.findall("host/topology/cells/cell"))),
        accelerator,
    )


def abilities_of(
    domain: etree._Element, host: etree._Element, free_pages: dict[int, int], accelerator: Accelerator
) -> Abilities:
    """Put together what libvirt's documents say.

    Args:
        domain: libvirt's `<domainCapabilities>`.
        host: its `<capabilities>`.
        free_pages: how many huge pages are free, by their size in KiB.
    """
    devices = domain.find("devices")
    models = [(model.text or "", model.get("usable") == "yes") for model in domain.iterfind("cpu/mode/model")]
    named = [(name, usable) for name, usable in models if name]
    firmware = firmware_features()
    is_emulated = accelerator is not Accelerator.KVM
    return Abilities(
        has_uefi="efi" in _values(domain.find("os"), "firmware"),
        has_secure_boot=any({"secure-boot", "enrolled-keys", "requires-smm"} <= each for each in firmware),
        tpm_versions=_tpm_versions(devices),
        displays=tuple(kind for kind in DisplayKind if kind.value in _values(_find(devices, "graphics"), "type")),
        video_models=tuple(
            model for model in VideoModel if model.value in _values(_find(devices, "video"), "modelType")
        ),
        cpu_models=tuple(sorted({name for name, usable in named if usable})),
        known_cpu_models=tuple(sorted({name for name, _ in named})),
        known_cpu_features=_known_features(),
        hyperv_features=_hyperv_features(domain),
        huge_pages=_huge_pages(host, free_pages),
        numa_nodes=_numa_nodes(host),
        has_iommu=has_iommu(),
        has_nested_virtualization=is_emulated or _kvm_is_nested(),
        has_gpu_passthrough=has_iommu(),
        can_limit_cpu=None,
        can_add_vcpus=True,
        # QEMU's emulator gets out of step with itself when a processor is taken away, and dies at the next change.
        can_remove_vcpus=not is_emulated,
        can_add_memory=True,
    )


def has_iommu(path: Path = IOMMU_GROUPS_PATH) -> bool:
    """Tell whether the kernel has put devices into IOMMU groups, without which none can be passed through."""
    try:
        return any(path.iterdir())
    except OSError:
        return False


def virtualization_flag(accelerator: Accelerator, cpuinfo_path: Path = CPUINFO_PATH) -> str:
    """Return the processor feature with which a guest runs VMs: the host's own kind, or the one that QEMU emulates."""
    if accelerator is not Accelerator.KVM:
        return "svm"
    try:
        with cpuinfo_path.open(encoding="ascii", errors="replace") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        flags = ""
    return "vmx" if "vmx" in flags.split() else "svm"


def active_networks(connection: Any, library: Any) -> tuple[str, ...]:
    """Name the virtual networks that cards can be plugged into now; none where libvirt has no driver for them."""
    try:
        networks = connection.listAllNetworks(library.VIR_CONNECT_LIST_NETWORKS_ACTIVE)
    except library.libvirtError:
        return ()
    return tuple(sorted(network.name() for network in networks))


def numa_nodes_of(connection: Any) -> tuple[NumaNode, ...]:
    """Read the host's NUMA nodes."""
    return _numa_nodes(_parse(connection.getCapabilities()))


def hyperv_features_of(connection: Any, accelerator: Accelerator) -> tuple[str, ...]:
    """Read which enlightenments the host has; none where guests are emulated, as those that QEMU has are known."""
    if accelerator is not Accelerator.KVM:
        return ()
    return _hyperv_features(_parse(connection.getDomainCapabilities(None, "x86_64", "q35", "kvm")))


def _parse(document: str) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)
    return etree.fromstring(document.encode(), parser)


def _free_pages(connection: Any, library: Any, node_count: int) -> dict[int, int]:
    """Return how many huge pages are free on all nodes together, by size in KiB."""
    free: dict[int, int] = {}
    for size_kib in _HUGE_PAGE_SIZES_KIB:
        try:
            nodes = connection.getFreePages([size_kib], 0, max(node_count, 1))
        except library.libvirtError:
            continue  # the processor has no pages of that size
        free[size_kib] = sum(int(counts.get(size_kib, 0)) for counts in nodes.values())
    return free


def _find(parent: etree._Element | None, path: str) -> etree._Element | None:
    found = None if parent is None else parent.find(path)
    return None if found is None or found.get("supported") == "no" else found


def _values(parent: etree._Element | None, enum: str) -> set[str]:
    if parent is None:
        return set()
    return {value.text or "" for value in parent.iterfind(f"enum[@name='{enum}']/value")}


def _tpm_versions(devices: etree._Element | None) -> tuple[TpmVersion, ...]:
    tpm = _find(devices, "tpm")
    if "emulator" not in _values(tpm, "backendModel"):
        return ()
    # libvirt before 8.10 does not tell versions; swtpm has both.
    told = _values(tpm, "backendVersion") or {version.value for version in TpmVersion}
    return tuple(version for version in TpmVersion if version.value in told)


def _hyperv_features(domain: etree._Element) -> tuple[str, ...]:
    told = _values(_find(domain.find("features"), "hyperv"), "features")
    return tuple(name for name in HYPERV_FEATURES if name in told)


def _huge_pages(host: etree._Element, free_pages: dict[int, int]) -> tuple[HugePages, ...]:
    totals: dict[int, int] = {}
    for pages in host.iterfind("host/topology/cells/cell/pages[@unit='KiB']"):
        size_kib = int(pages.get("size", "0"))
        if size_kib > _PAGE_KIB:
            totals[size_kib] = totals.get(size_kib, 0) + int(pages.text or 0)
    return tuple(HugePages(size, total, free_pages.get(size, 0)) for size, total in sorted(totals.items()))


def _numa_nodes(host: etree._Element) -> tuple[NumaNode, ...]:
    return tuple(
        NumaNode(
            int(cell.get("id", "0")),
            tuple(sorted(int(cpu.get("id", "0")) for cpu in cell.iterfind("cpus/cpu"))),
            int(cell.findtext("memory[@unit='KiB']") or 0) // _KIB_PER_MIB,
        )
        for cell in host.iterfind("host/topology/cells/cell")
    )


def firmware_features(directories: Iterable[Path] = FIRMWARE_DIRS) -> list[set[str]]:
    """Return the features of each UEFI firmware for x86-64 that is described, except those switched off by a file."""
    described: dict[str, Path] = {}
    for directory in directories:
        for path in sorted(directory.glob("*.json")) if directory.is_dir() else ():
            described.setdefault(path.name, path)
    found = []
    for path in described.values():
        try:
            firmware = json.loads(path.read_bytes()[:_MAX_FILE_BYTES] or b"{}")
            targets = {target["architecture"] for target in firmware["targets"]}
            if "uefi" in firmware["interface-types"] and "x86_64" in targets:
                found.append(set(firmware["features"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a description that QEMU or libvirt could read either
    return found


@functools.cache
def _known_features(path: Path = CPU_FEATURES_PATH) -> tuple[str, ...]:
    """Return the names of all processor features that libvirt knows; none if its list cannot be read."""
    try:
        tree = _parse(path.read_text()[:_MAX_FILE_BYTES])
    except (OSError, ValueError, etree.XMLSyntaxError):
        return ()
    return tuple(sorted(name for feature in tree.iterfind("feature") if (name := feature.get("name"))))


def _kvm_is_nested() -> bool:
    for path in NESTED_PATHS:
        try:
            if path.read_text().strip() in ("1", "Y", "y"):
                return True
        except OSError:
            continue
    return False
