"""Turn the hardware part of a VM of the contract (node.v1) into what the hypervisor layer takes.

What a guest system suggests is filled in here, once: into what the request left at its default, and never over what it
says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from hypervisor.guest_profiles import GuestFamily, profile_of
from hypervisor.hardware import (
    CpuLimits,
    Entropy,
    EntropySource,
    GuestChoices,
    Hardware,
    MediatedDevice,
    NumaCell,
    PciDevice,
    TpmVersion,
    UsbDevice,
    Video,
    VideoModel,
    Watchdog,
    WatchdogAction,
    WatchdogModel,
)
from hypervisor.types import DiskBus, DiskCache, NicModel, VmConfig
from limiquantix.compute.v1 import vm_pb2 as compute
from limiquantix.errors import FieldViolation
from limiquantix.node.v1 import node_daemon_pb2 as pb

KIB_PER_MIB = 1024
MS_PER_S = 1000

_TPM_VERSIONS = {compute.TpmConfig.TPM_1_2: TpmVersion.V1_2, compute.TpmConfig.TPM_2_0: TpmVersion.V2_0}
_WATCHDOG_MODELS = {
    compute.WatchdogConfig.I6300ESB: WatchdogModel.I6300ESB,
    compute.WatchdogConfig.IB700: WatchdogModel.IB700,
}
_WATCHDOG_ACTIONS = {
    compute.WatchdogConfig.RESET: WatchdogAction.RESET,
    compute.WatchdogConfig.SHUTDOWN: WatchdogAction.SHUTDOWN,
    compute.WatchdogConfig.POWEROFF: WatchdogAction.POWER_OFF,
    compute.WatchdogConfig.PAUSE: WatchdogAction.PAUSE,
    compute.WatchdogConfig.NONE: WatchdogAction.NONE,
}
_VIDEO_MODELS = {
    compute.DisplayConfig.VGA: VideoModel.VGA,
    compute.DisplayConfig.CIRRUS: VideoModel.CIRRUS,
    compute.DisplayConfig.QXL: VideoModel.QXL,
    compute.DisplayConfig.VIRTIO_GPU: VideoModel.VIRTIO,
}
_HUGE_PAGE_KIB = {
    compute.HugePagesConfig.SIZE_2MB: 2 * KIB_PER_MIB,
    compute.HugePagesConfig.SIZE_1GB: 1024 * KIB_PER_MIB,
}
_FEATURE_FLAGS = {"aes_ni": "aes", "avx": "avx", "avx2": "avx2", "avx512": "avx512f"}
"""Flags of the contract, by libvirt's names."""
_MACHINES = ("", "q35")

NamedT = TypeVar("NamedT")


class HardwareDecoder:
    """One request's hardware; gathers violations, named by field path from `spec`."""

    def __init__(self, spec: pb.VMSpec) -> None:
        self._spec = spec
        self._overrides = spec.guest_os_overrides
        self.violations: list[FieldViolation] = []

    def decode(self) -> Hardware:
        """Decode it; what is wrong is in `violations`."""
        spec, overrides = self._spec, self._overrides
        if overrides.machine_type not in _MACHINES:
            self._violate("machine_type", "must be q35: every VM's machine is")
        return Hardware(
            secure_boot=self._secure_boot(),
            tpm=self._tpm(),
            watchdog=Watchdog(_WATCHDOG_MODELS[spec.watchdog.model], _WATCHDOG_ACTIONS[spec.watchdog.action])
            if spec.watchdog.enabled
            else None,
            entropy=Entropy(
                EntropySource(spec.rng.backend) if spec.rng.backend else EntropySource.URANDOM,
                spec.rng.rate_bytes,
                spec.rng.period_ms if spec.rng.rate_bytes else 0,
            )
            if self._knows_entropy_source()
            else Entropy(),
            numa=self._numa(),
            huge_page_kib=_HUGE_PAGE_KIB[spec.huge_page_size] if spec.memory_hugepages else 0,
            max_vcpu_count=spec.max_vcpus,
            max_memory_mib=spec.max_memory_mib,
            may_balloon=spec.ballooning_enabled,
            cpu_features=tuple(dict.fromkeys(self._cpu_features())),
            nested_virtualization=True
            if spec.cpu_features.nested_virt
            else _optional(overrides, "nested_virt", overrides.nested_virt),
            cpu_limits=CpuLimits(spec.cpu_shares, spec.cpu_limit_mhz),
            video=self._video(),
            serial_port_count=max(spec.serial.count, len(spec.serial.ports)),
            boot_menu_ms=spec.boot_menu_timeout_sec * MS_PER_S,
            pci_devices=tuple(PciDevice(each.host_address.lower(), each.rom_bar) for each in spec.pci_devices),
            usb_devices=tuple(_usb(each) for each in spec.usb_devices),
            mediated_devices=tuple(MediatedDevice(each.profile, each.gpu_uuid.lower()) for each in spec.vgpu_devices),
            guest=self.family(),
            guest_choices=GuestChoices(
                hpet=_optional(overrides, "hpet_enabled", overrides.hpet_enabled),
                hyperv_features=_optional(overrides, "hyperv_features", overrides.hyperv_features),
                hyperv_timers=_optional(overrides, "hyperv_timers", overrides.hyperv_timers),
                kvmclock=_optional(overrides, "kvmclock", overrides.kvmclock),
            ),
        )

    def family(self) -> GuestFamily:
        """Return the guest's family; a name that is none is a violation."""
        try:
            return GuestFamily(self._spec.guest_os)
        except ValueError:
            known = ", ".join(sorted(family.value for family in GuestFamily if family.value))
            text = f"{self._spec.guest_os!r} names no family of guest systems; there are {known}"
            violation = FieldViolation("spec.guest_os", text)
            if violation not in self.violations:
                self.violations.append(violation)
            return GuestFamily.UNSPECIFIED

    def suited(self, config: VmConfig) -> VmConfig:
        """Put what the guest suggests, or its overrides say, where disks and cards are at their default.

        Only families without drivers for the defaults suggest anything else.
        """
        profile, overrides = profile_of(self.family()), self._overrides
        bus = self._named("disk_bus", overrides.disk_bus or profile.suggested_disk_bus, DiskBus, DiskBus.VIRTIO)
        model = self._named("nic_model", overrides.nic_model or profile.suggested_nic_model, NicModel, NicModel.VIRTIO)
        cache = self._named("disk_cache", overrides.disk_cache or "writeback", DiskCache, DiskCache.WRITEBACK)
        suits_all = profile.has_virtio_drivers
        if suits_all and not overrides.disk_bus:
            bus = DiskBus.VIRTIO
        if suits_all and not overrides.nic_model:
            model = NicModel.VIRTIO
        return replace(
            config,
            disks=tuple(
                replace(
                    disk,
                    bus=bus if disk.bus is DiskBus.VIRTIO else disk.bus,
                    cache=cache if disk.cache is DiskCache.WRITEBACK else disk.cache,
                )
                for disk in config.disks
            ),
            nics=tuple(replace(nic, model=model) if nic.model is NicModel.VIRTIO else nic for nic in config.nics),
        )

    def cpu_model(self) -> str:
        """Return the processors' model: the one asked for, else the overrides'."""
        chosen, override = self._spec.cpu_model, self._overrides.cpu_mode
        if chosen and override and chosen != override:
            self._violate("cpu_mode", f"contradicts the CPU model {chosen}; leave one of them out")
        return chosen or override

    def _violate(self, override: str, description: str) -> None:
        self.violations.append(FieldViolation(f"spec.guest_os_overrides.{override}", description))

    def _secure_boot(self) -> bool:
        spec, overrides = self._spec, self._overrides
        is_secure = spec.firmware == pb.FIRMWARE_UEFI_SECURE_BOOT
        if not overrides.HasField("secure_boot"):
            return is_secure
        if overrides.secure_boot and spec.firmware == pb.FIRMWARE_BIOS:
            self._violate("secure_boot", "needs UEFI firmware; choose it for the VM")
        if is_secure and not overrides.secure_boot:
            self._violate("secure_boot", "contradicts the firmware, which is UEFI with secure boot")
        return overrides.secure_boot

    def _tpm(self) -> TpmVersion | None:
        if self._spec.tpm.enabled:
            return _TPM_VERSIONS[self._spec.tpm.version]
        return TpmVersion.V2_0 if self._overrides.tpm_required else None

    def _knows_entropy_source(self) -> bool:
        known = [source.value for source in EntropySource]
        if self._spec.rng.backend in ("", *known):
            return True
        self.violations.append(FieldViolation("spec.rng.backend", f"must be one of {', '.join(known)}"))
        return False

    def _numa(self) -> tuple[NumaCell, ...]:
        spec = self._spec
        if not spec.numa.enabled:
            return ()
        if spec.numa.nodes:
            return tuple(
                NumaCell(node.node_id, tuple(node.vcpus), node.memory_mib, tuple(node.host_nodes))
                for node in sorted(spec.numa.nodes, key=lambda node: node.node_id)
            )
        return _evenly(spec)

    def _cpu_features(self) -> Iterable[str]:
        features = self._spec.cpu_features
        yield from (name for flag, name in _FEATURE_FLAGS.items() if getattr(features, flag))
        yield from features.custom_flags

    def _video(self) -> Video:
        spec, overrides = self._spec, self._overrides
        model = _VIDEO_MODELS[spec.gpu]
        if model is VideoModel.VGA and overrides.video_model:
            model = self._named("video_model", overrides.video_model, VideoModel, VideoModel.VGA)
        memory_mib, rest = divmod(overrides.video_vram_kb, KIB_PER_MIB)
        if rest:
            self._violate("video_vram_kb", f"must be a multiple of {KIB_PER_MIB}")
        return Video(model, spec.video_memory_mib or memory_mib, spec.displays or 1)

    def _named(self, override: str, name: str, names: type[NamedT], otherwise: NamedT) -> NamedT:
        try:
            return names(name)  # type: ignore[call-arg]
        except ValueError:
            known = ", ".join(each.value for each in names)  # type: ignore[attr-defined]
            self._violate(override, f"{name!r} is none of {known}")
            return otherwise


def _optional(overrides: compute.GuestOSOverrides, name: str, value: bool) -> bool | None:
    return value if overrides.HasField(name) else None  # type: ignore[arg-type]


def _usb(device: compute.UsbDevice) -> UsbDevice:
    return UsbDevice(
        device.vendor_id.lower(), device.product_id.lower(), int(device.host_bus or 0), int(device.host_device or 0)
    )


def _evenly(spec: pb.VMSpec) -> tuple[NumaCell, ...]:
    """Lay the machine out with one NUMA node a socket, as hardware has it; what does not divide goes to the first."""
    sockets = spec.cpu_sockets or 1
    vcpu_count = max(spec.max_vcpus, spec.cpu_cores * sockets * (spec.cpu_threads_per_core or 1))
    vcpus, memory_mib = vcpu_count // sockets, spec.memory_mib // sockets
    return tuple(
        NumaCell(
            socket,
            tuple(range(socket * vcpus, (socket + 1) * vcpus if socket < sockets - 1 else vcpu_count)),
            memory_mib + (spec.memory_mib - memory_mib * sockets if socket == 0 else 0),
        )
        for socket in range(sockets)
    )
