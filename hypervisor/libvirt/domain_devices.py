"""What attaching, detaching and changing a device does to a domain, in libvirt's blocking calls: for worker threads.

A running domain has two definitions: what runs, and what its next start will use. Each change is made to both, in an
order in which the one that may fail leaves nothing behind, and is skipped where it is made already. Devices are found
by the alias we gave them, never by the name of their target, which changes hands.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lxml import etree

from hypervisor.devices import HOTPLUG_DISK_BUSES, HOTPLUG_NIC_MODELS, VmDevices
from hypervisor.errors import DeviceExists, DeviceNotFound, GuestDidNotRelease, Refused, WrongState
from hypervisor.libvirt import device_reading, device_xml, domain_xml
from hypervisor.libvirt.device_xml import DeviceKind, Places, alias_of
from hypervisor.libvirt.domain_metadata import NAMESPACE, PREFIX, changed_mark, read_bandwidths
from hypervisor.libvirt.domain_operations import OFF, DomainOperations
from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.types import CdromConfig, DiskBus, DiskConfig, IoLimits, NicBandwidth, NicConfig, PowerState

LIVE: Final = 1
"""`VIR_DOMAIN_AFFECT_LIVE`."""
STORED: Final = 2
"""`VIR_DOMAIN_AFFECT_CONFIG`."""
TRAY_TIMEOUT_S: Final = 5.0
"""How long libvirt waits for a guest to open a drive's door."""
_ACTIVE: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})
_NET_DEVICES: Final = Path("/sys/class/net")


@dataclass(frozen=True, slots=True)
class Sides:
    """A domain and its definitions, by the flag that says which one a call means; a running one has two."""

    domain: Any
    state: PowerState
    trees: Mapping[int, etree._Element]

    @property
    def live(self) -> etree._Element | None:
        """What runs; None if it does not."""
        return self.trees.get(LIVE)

    @property
    def shown(self) -> etree._Element:
        """What the guest sees, or would see."""
        return self.trees[LIVE] if LIVE in self.trees else self.trees[STORED]

    def holding(self, alias: str) -> Iterator[tuple[int, etree._Element]]:
        """Find a device in each definition that has it."""
        for flag, tree in self.trees.items():
            if (device := device_reading.find(tree, alias)) is not None:
                yield flag, device


class DomainDevices:
    """Device operations on the domains of one host."""

    def __init__(self, library: Any, operations: DomainOperations) -> None:
        self._library = library
        self._operations = operations

    def read(self, connection: Any, vm_id: str) -> VmDevices:
        return device_reading.read_devices(self._sides(connection, vm_id).shown)

    def attach_disk(self, vm_id: str, disk: DiskConfig, connection: Any) -> None:
        sides = self._sides(connection, vm_id)
        alias = alias_of(DeviceKind.DISK, disk.disk_id)
        wanted = device_xml.disk_element(disk, Places().of_disk(disk.bus))
        missing = self._missing(sides, vm_id, alias, wanted, f"disk {disk.disk_id}")
        if not missing:
            return
        _require_changeable(sides, vm_id, "attach a disk to")
        if LIVE in missing and disk.bus not in HOTPLUG_DISK_BUSES:
            raise WrongState(vm_id, f"attach a {disk.bus.name} disk to", sides.state.value)
        if disk.bus is DiskBus.SCSI:
            self._add_scsi_controller(sides, vm_id, missing)
        elif LIVE in missing:
            _require_free_slot(sides, vm_id)
        place = Places(*sides.trees.values()).of_disk(disk.bus)
        self._attach(
            sides,
            {
                flag: device_xml.disk_element(disk, place, _last_order(sides.trees[flag]) if flag == STORED else None)
                for flag in missing
            },
            alias,
        )

    def attach_nic(self, vm_id: str, nic: NicConfig, connection: Any) -> None:
        sides = self._sides(connection, vm_id)
        alias, element = alias_of(DeviceKind.NIC, nic.nic_id), device_xml.nic_element(nic)
        missing = self._missing(sides, vm_id, alias, element, f"network card {nic.nic_id}")
        if not missing:
            return
        _require_changeable(sides, vm_id, "attach a network card to")
        for tree in sides.trees.values():
            if any(alias != other for other in device_reading.aliases_of_mac(tree, nic.mac_address)):
                raise DeviceExists(vm_id, f"network card with the address {nic.mac_address}")
        if LIVE in missing and nic.model not in HOTPLUG_NIC_MODELS:
            raise WrongState(vm_id, f"attach a {nic.model.name} network card to", sides.state.value)
        _require_network(connection, self._library, nic)
        if LIVE in missing:
            _require_free_slot(sides, vm_id)
        self._attach(sides, dict.fromkeys(missing, element), alias, {nic.nic_id: nic.bandwidth})

    def attach_cdrom(self, vm_id: str, cdrom: CdromConfig, connection: Any) -> None:
        sides = self._sides(connection, vm_id)
        alias = alias_of(DeviceKind.CDROM, cdrom.cdrom_id)
        if any(sides.holding(alias)):
            return
        self._require_off(sides, vm_id, "add a CD-ROM drive to")
        if cdrom.bus is DiskBus.SCSI:
            self._add_scsi_controller(sides, vm_id, [STORED])
        order = _last_order(sides.trees[STORED])
        element = device_xml.cdrom_element(cdrom, Places(*sides.trees.values()).of_disk(cdrom.bus), order)
        self._attach(sides, {STORED: element}, alias)

    def detach_cdrom(self, vm_id: str, cdrom_id: str, connection: Any) -> None:
        sides = self._sides(connection, vm_id)
        alias = alias_of(DeviceKind.CDROM, cdrom_id)
        if any(sides.holding(alias)):
            self._require_off(sides, vm_id, "remove a CD-ROM drive from")
            self._detach_stored(sides, alias)

    def ask_to_release(self, vm_id: str, kind: DeviceKind, device_id: str, connection: Any) -> bool:
        """Ask the guest to let go of a device; returns whether there is something to wait for.

        A device that only the definition has is taken out of it at once, and so is one of a VM that is off.
        """
        what = f"detach a {'network card' if kind is DeviceKind.NIC else 'disk'} from"
        sides = self._sides(connection, vm_id)
        alias = alias_of(kind, device_id)
        held = dict(sides.holding(alias))
        if not held:
            return False
        _require_changeable(sides, vm_id, what)
        if LIVE not in held:
            self._detach_stored(sides, alias)
            return False
        if sides.state is PowerState.PAUSED:
            raise WrongState(vm_id, what, sides.state.value)
        if kind is DeviceKind.DISK:
            _require_detachable(sides, vm_id, alias, held[LIVE])
        try:
            sides.domain.detachDeviceAlias(alias, LIVE)
        except self._library.libvirtError as error:
            if has_code(error, ErrorCode.OPERATION_INVALID):
                raise WrongState(vm_id, what, self._sides(connection, vm_id).state.value) from error
            # QEMU asks a guest only once; where it was asked before, all that is left is to wait.
            if not has_code(error, ErrorCode.INTERNAL_ERROR):
                raise
        return True

    def has_let_go(self, vm_id: str, alias: str, connection: Any) -> bool:
        """Tell whether the guest has let go, and if it has, take the device out of the definition as well."""
        sides = self._sides(connection, vm_id)
        if LIVE in dict(sides.holding(alias)):
            return False
        self._detach_stored(sides, alias)
        return True

    def detach_stored(self, vm_id: str, alias: str, connection: Any) -> None:
        """Take a device out of the definition; what runs keeps it."""
        self._detach_stored(self._sides(connection, vm_id), alias)

    def resize_disk(self, vm_id: str, disk_id: str, size_bytes: int, connection: Any) -> bool:
        sides = self._sides(connection, vm_id)
        held = self._require_device(sides, vm_id, DeviceKind.DISK, disk_id)
        _require_changeable(sides, vm_id, "resize a disk of")
        if LIVE not in held:
            return False
        name = device_reading.target_name(held[LIVE])
        capacity_bytes = int(sides.domain.blockInfo(name)[0])
        if capacity_bytes > size_bytes:
            raise Refused(f"disk {disk_id} of VM {vm_id} has {capacity_bytes} bytes; a disk cannot be made smaller")
        if capacity_bytes < size_bytes:
            if held[LIVE].find("readonly") is not None:
                raise Refused(f"disk {disk_id} of VM {vm_id} is read-only and cannot be grown")
            sides.domain.blockResize(name, size_bytes, self._library.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        return True

    def limit_disk(self, vm_id: str, disk_id: str, limits: IoLimits, connection: Any) -> None:
        sides = self._sides(connection, vm_id)
        held = self._require_device(sides, vm_id, DeviceKind.DISK, disk_id)
        if all(device_reading.limits_of(device) == limits for device in held.values()):
            return
        _require_changeable(sides, vm_id, "limit a disk of")
        for flag, device in held.items():
            sides.domain.setBlockIoTune(device_reading.target_name(device), device_xml.io_tune(limits), flag)
        self._note_change(sides)

    def change_medium(self, vm_id: str, cdrom_id: str, iso_path: Path | None, connection: Any) -> None:
        """What runs first: a guest may refuse, and then nothing has changed."""
        sides = self._sides(connection, vm_id)
        held = self._require_device(sides, vm_id, DeviceKind.CDROM, cdrom_id)
        wanted = None if iso_path is None else str(iso_path)
        if all(device_reading.source_file(drive) == wanted for drive in held.values()):
            return
        _require_changeable(sides, vm_id, "change the medium of")
        for flag in (LIVE, STORED):
            if flag not in held or device_reading.source_file(held[flag]) == wanted:
                continue
            drive = copy.deepcopy(held[flag])
            for tag in ("source", "backingStore"):
                for child in drive.findall(tag):
                    drive.remove(child)
            if wanted is not None:
                device_xml.add(drive, "source", {"file": wanted})
            try:
                sides.domain.updateDeviceFlags(domain_xml.to_text(drive), flag)
            except self._library.libvirtError as error:
                if has_code(error, ErrorCode.OPERATION_FAILED) or has_code(error, ErrorCode.OPERATION_INVALID):
                    raise GuestDidNotRelease(vm_id, f"CD-ROM drive {cdrom_id}", TRAY_TIMEOUT_S) from error
                raise
        self._note_change(sides)

    def update_nic(self, vm_id: str, nic: NicConfig, connection: Any) -> None:
        sides = self._sides(connection, vm_id)
        held = self._require_device(sides, vm_id, DeviceKind.NIC, nic.nic_id)
        bandwidth = read_bandwidths(sides.shown).get(nic.nic_id, NicBandwidth())
        is_as_wanted = all(device_reading.is_link_up(card) == nic.is_link_up for card in held.values())
        if is_as_wanted and bandwidth == nic.bandwidth:
            return
        _require_changeable(sides, vm_id, "change a network card of")
        for flag, card in held.items():
            if device_reading.is_link_up(card) == nic.is_link_up:
                continue
            changed = copy.deepcopy(card)
            for child in changed.findall("link"):
                changed.remove(child)
            device_xml.add(changed, "link", {"state": "up" if nic.is_link_up else "down"})
            sides.domain.updateDeviceFlags(domain_xml.to_text(changed), flag)
        self._note_change(sides, {nic.nic_id: nic.bandwidth})

    # parts

    def _sides(self, connection: Any, vm_id: str) -> Sides:
        domain = self._operations.find(connection, vm_id)
        state = self._operations.state(domain)
        trees = {}
        if state in _ACTIVE:
            trees[LIVE] = domain_xml.parse(domain.XMLDesc())
        if state not in _ACTIVE or domain.isPersistent():
            trees[STORED] = domain_xml.parse(domain.XMLDesc(self._library.VIR_DOMAIN_XML_INACTIVE))
        return Sides(domain, state, trees)

    def _require_off(self, sides: Sides, vm_id: str, operation: str) -> None:
        if sides.state not in OFF:
            raise WrongState(vm_id, operation, sides.state.value)

    def _require_device(self, sides: Sides, vm_id: str, kind: DeviceKind, device_id: str) -> dict[int, etree._Element]:
        held = dict(sides.holding(alias_of(kind, device_id)))
        if not held:
            raise DeviceNotFound(vm_id, f"{_NAMES[kind]} {device_id}")
        return held

    def _missing(self, sides: Sides, vm_id: str, alias: str, wanted: etree._Element, what: str) -> list[int]:
        """Say which definitions lack a device; one that differs from what is wanted is another."""
        for _, device in sides.holding(alias):
            if device_reading.identity(device) != device_reading.identity(wanted):
                raise DeviceExists(vm_id, what)
        held = dict(sides.holding(alias))
        return [flag for flag in sides.trees if flag not in held]

    def _add_scsi_controller(self, sides: Sides, vm_id: str, missing: list[int]) -> None:
        """Add what SCSI disks hang on; libvirt would choose a model that guests have no driver for."""
        controller = device_xml.scsi_controller()
        for flag in missing:
            if sides.trees[flag].find("devices/controller[@type='scsi'][@index='0']") is None:
                if flag == LIVE:
                    _require_free_slot(sides, vm_id)
                sides.domain.attachDeviceFlags(domain_xml.to_text(controller), flag)

    def _attach(
        self,
        sides: Sides,
        elements: Mapping[int, etree._Element],
        alias: str,
        bandwidths: Mapping[str, NicBandwidth] | None = None,
    ) -> None:
        """First into the definition, from where it can be taken back without asking anybody."""
        for flag in (STORED, LIVE):
            if flag not in elements:
                continue
            try:
                sides.domain.attachDeviceFlags(domain_xml.to_text(elements[flag]), flag)
            except self._library.libvirtError:
                if flag == LIVE and STORED in elements:
                    sides.domain.detachDeviceAlias(alias, STORED)
                raise
        if elements:
            self._note_change(sides, bandwidths)

    def _detach_stored(self, sides: Sides, alias: str) -> None:
        if STORED in dict(sides.holding(alias)):
            sides.domain.detachDeviceAlias(alias, STORED)
            self._note_change(sides)

    def _note_change(self, sides: Sides, bandwidths: Mapping[str, NicBandwidth] | None = None) -> None:
        """Note in the mark that the VM is no longer as `create` made it."""
        mark = changed_mark(sides.shown, bandwidths or {})
        if mark is not None:
            element = self._library.VIR_DOMAIN_METADATA_ELEMENT
            flags = sum(sides.trees)
            sides.domain.setMetadata(element, domain_xml.to_text(mark), PREFIX, NAMESPACE, flags)


_NAMES: Final = {DeviceKind.DISK: "disk", DeviceKind.CDROM: "CD-ROM drive", DeviceKind.NIC: "network card"}


def _require_changeable(sides: Sides, vm_id: str, operation: str) -> None:
    """Refuse a change while what runs next, or is saved, has its devices settled."""
    if sides.state not in _ACTIVE | OFF:
        raise WrongState(vm_id, operation, sides.state.value)


def _require_free_slot(sides: Sides, vm_id: str) -> None:
    """Refuse what a running VM has no PCI Express slot for, which libvirt says in words that help nobody."""
    if sides.live is not None and not device_reading.has_free_slot(sides.live):
        raise Refused(
            f"VM {vm_id} has no slot left for a device while it runs; stop it, attach the device and start it again"
        )


def _require_detachable(sides: Sides, vm_id: str, alias: str, disk: etree._Element) -> None:
    bus = device_reading.bus_of(disk)
    if bus not in {bus.value for bus in HOTPLUG_DISK_BUSES}:
        raise WrongState(vm_id, f"detach a {bus.upper()} disk from", sides.state.value)
    if alias == device_reading.boot_disk_alias(sides.shown):
        raise WrongState(vm_id, "detach the boot disk from", sides.state.value)


def _require_network(connection: Any, library: Any, nic: NicConfig) -> None:
    """Refuse a bridge or network that is not there, of which a VM that is off would hear at its next start only."""
    if nic.bridge and not (_NET_DEVICES / nic.bridge).exists():
        raise Refused(f"this host has no bridge {nic.bridge}; make it first, or name another")
    if nic.network:
        try:
            is_active = connection.networkLookupByName(nic.network).isActive()
        except library.libvirtError as error:
            if not has_code(error, ErrorCode.NO_NETWORK):
                raise
            words = f"this host has no libvirt network {nic.network}; define it first, or name another"
            raise Refused(words) from error
        if not is_active:
            raise Refused(f"the libvirt network {nic.network} of this host is not active; start it first")


def _last_order(domain: etree._Element) -> int | None:
    """Return the next free number of the firmware's order; None where it goes by classes, or boots a host's kernel."""
    if domain.find("os/kernel") is not None or domain.find("os/boot") is not None:
        return None
    return 1 + max((int(boot.get("order", "0")) for boot in domain.iterfind("devices/*/boot")), default=0)
