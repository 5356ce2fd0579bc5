"""What each operation does to a domain, in libvirt's blocking calls: for worker threads.

Each method makes as few calls as it can, and tells `libvirtError`s apart only where they mean that the VM is in another
state, or gone; the rest is left to `error_map`.
"""

from __future__ import annotations

import contextlib
import secrets
import string
from collections.abc import Callable, Collection
from typing import Any, Final, NoReturn

from hypervisor.errors import HostCannot, Refused, VmExists, VmNotFound, WrongState
from hypervisor.hardware_rules import asks_for_anything, require_possible
from hypervisor.libvirt import console_log, domain_xml
from hypervisor.libvirt.domain_inventory import Inventory
from hypervisor.libvirt.domain_metadata import DomainMark, fingerprint, read_mark
from hypervisor.libvirt.domain_notes import carry_notes, write_notes
from hypervisor.libvirt.domain_state import DomainState, power_state
from hypervisor.libvirt.error_map import ErrorCode, has_code
from hypervisor.libvirt.host_abilities import read_abilities
from hypervisor.libvirt.node_devices import read_host_devices
from hypervisor.types import Accelerator, ConsoleLog, PowerState, VmConfig, VmNotes

OFF: Final = frozenset({PowerState.STOPPED, PowerState.CRASHED})
_VNC_PASSWORD_LENGTH: Final = 8
"""All that the VNC protocol's authentication looks at. Source: RFC 6143, 7.2.2."""


class DomainOperations:
    """Operations on domains of one host, whose traits are learnt when it is connected to."""

    def __init__(self, library: Any, inventory: Inventory, host: domain_xml.HostTraits) -> None:
        self._library = library
        self._inventory = inventory
        self.host = host

    def find(self, connection: Any, vm_id: str) -> Any:
        """Return the domain with that id.

        Raises:
            VmNotFound: there is none, as of course for an id that is not a UUID.
        """
        if not domain_xml.is_uuid(vm_id):
            raise VmNotFound(vm_id)
        return connection.lookupByUUIDString(vm_id)

    def forget(self, vm_id: str) -> None:
        """Drop what is remembered of a domain's definition, after it was replaced."""
        self._inventory.forget_vm(vm_id)

    def state(self, domain: Any) -> PowerState:
        """Return the state of a domain, in our words."""
        state, reason = domain.state()
        is_saved = state == DomainState.SHUTOFF and bool(domain.hasManagedSaveImage())
        return power_state(state, reason, is_saved=is_saved)

    def _mark(self, domain: Any) -> DomainMark:
        return read_mark(domain_xml.parse(domain.XMLDesc(self._library.VIR_DOMAIN_XML_INACTIVE)))

    def _require(self, domain: Any, vm_id: str, operation: str, allowed: Collection[PowerState]) -> PowerState:
        state = self.state(domain)
        if state not in allowed:
            raise WrongState(vm_id, operation, state.value)
        return state

    def _explain(self, error: Any, domain: Any, vm_id: str, operation: str) -> NoReturn:
        """Raise `WrongState` if that is what libvirt complained of: somebody else changed the VM just now."""
        if has_code(error, ErrorCode.OPERATION_INVALID):
            raise WrongState(vm_id, operation, self.state(domain).value) from error
        raise error

    def create(self, config: VmConfig, connection: Any) -> None:
        try:
            domain = self.find(connection, config.vm_id)
        except self._library.libvirtError as error:
            if not has_code(error, ErrorCode.NO_DOMAIN):
                raise
        else:
            if self._mark(domain).fingerprint != fingerprint(config):
                raise VmExists(config.vm_id)
            return
        self.require_possible(config, connection)
        password = _new_password() if config.vnc is not None or config.spice is not None else ""
        connection.defineXML(domain_xml.to_text(domain_xml.build_domain(config, self.host, vnc_password=password)))

    def reconfigure(self, config: VmConfig, connection: Any) -> None:
        domain = self.find(connection, config.vm_id)
        self._require(domain, config.vm_id, "reconfigure", OFF)
        self.define_anew(config, connection, domain)

    def require_possible(self, config: VmConfig, connection: Any) -> None:
        """Refuse a configuration that this host lacks something for; looks nothing up for a plain one."""
        if not asks_for_anything(config):
            return
        accelerator = self.host.accelerator
        abilities = read_abilities(connection, self._library, accelerator)
        passes_through = config.hardware.passes_devices_through
        devices = read_host_devices(connection, self._library) if passes_through else []
        require_possible(config, abilities, devices, accelerator)
        if config.hardware.cpu_features:
            self._require_cpu(config, connection)

    def _require_cpu(self, config: VmConfig, connection: Any) -> None:
        """Refuse processor features that exist, but not here."""
        cpu = domain_xml.build_domain(config, self.host).find("cpu")
        if cpu is None or cpu.find("model") is None:
            return  # the host's own processor, whatever it is: libvirt compares when it starts
        kind = "kvm" if self.host.accelerator is Accelerator.KVM else "qemu"
        fails = self._library.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
        try:
            connection.compareHypervisorCPU(None, "x86_64", "q35", kind, domain_xml.to_text(cpu), fails)
        except self._library.libvirtError as error:
            if not has_code(error, ErrorCode.CPU_INCOMPATIBLE):
                raise
            words = error.get_error_message() or str(error)
            raise HostCannot(f"this host cannot build VM {config.vm_id}: {words}") from error

    def define_anew(self, config: VmConfig, connection: Any, domain: Any) -> None:
        """Replace the definition that a domain's next start will use; what runs goes on as it is."""
        self.require_possible(config, connection)
        flags = self._library.VIR_DOMAIN_XML_INACTIVE | self._library.VIR_DOMAIN_XML_SECURE
        before = domain_xml.parse(domain.XMLDesc(flags))
        graphics = before.find("devices/graphics[@passwd]")
        password = graphics.get("passwd") if graphics is not None else None
        tree = domain_xml.build_domain(
            config, self.host, vnc_password=password or _new_password(), domain_name=domain.name()
        )
        carry_notes(before, tree)
        connection.defineXML(domain_xml.to_text(tree))
        self._inventory.forget_vm(config.vm_id)

    def set_notes(self, vm_id: str, notes: VmNotes, connection: Any) -> None:
        write_notes(self._library, self.find(connection, vm_id), notes)
        self._inventory.forget_vm(vm_id)

    def delete(self, vm_id: str, connection: Any) -> None:
        library = self._library
        try:
            domain = self.find(connection, vm_id)
            self._require(domain, vm_id, "delete", OFF | {PowerState.SUSPENDED})
            # The firmware's variables of another tool's domain stay with its disks, which are not ours to remove.
            is_managed = self._mark(domain).is_managed
            domain.undefineFlags(
                library.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | library.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | library.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | (library.VIR_DOMAIN_UNDEFINE_NVRAM if is_managed else library.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
            )
        except library.libvirtError as error:
            if not has_code(error, ErrorCode.NO_DOMAIN):
                raise
        self._inventory.forget_vm(vm_id)
        # Also for a VM that is gone: we may have died between undefining it and this.
        try:
            console_log.remove(console_log.log_path(self.host.console_log_dir, vm_id))
        except OSError as error:
            raise Refused(f"VM {vm_id} is deleted, but its console log is not: {error}") from error

    def start(self, vm_id: str, connection: Any, *, may_run: Callable[[], None] | None = None) -> None:
        domain = self.find(connection, vm_id)
        console_log.rotate(console_log.log_path(self.host.console_log_dir, vm_id))
        try:
            domain.createWithFlags(self._library.VIR_DOMAIN_START_PAUSED if may_run is not None else 0)
        except self._library.libvirtError as error:
            self._explain(error, domain, vm_id, "start")
        if may_run is not None:
            self._run_if(may_run, domain)

    def _run_if(self, may_run: Callable[[], None], domain: Any) -> None:
        """Let a domain run that was started paused, or end it."""
        try:
            may_run()
            domain.resume()
        except BaseException:
            with contextlib.suppress(self._library.libvirtError):
                domain.destroy()
            raise

    def ask_agent_to_stop(self, vm_id: str, connection: Any) -> bool:
        """Have the guest's agent shut it down; returns whether one took the order. libvirt waits for it for 5 s."""
        domain = self.find(connection, vm_id)
        if self._require(domain, vm_id, "stop", OFF | {PowerState.RUNNING}) in OFF or not _has_agent(domain):
            return False
        try:
            domain.shutdownFlags(self._library.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        except self._library.libvirtError:  # it is mute, or cannot: there is the power button
            return False
        return True

    def press_power_button(self, vm_id: str, connection: Any) -> bool:
        """Return whether it is off already; press the button if it is not."""
        domain = self.find(connection, vm_id)
        if self._require(domain, vm_id, "stop", OFF | {PowerState.RUNNING}) in OFF:
            return True
        try:
            domain.shutdownFlags(self._library.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        except self._library.libvirtError as error:
            if not has_code(error, ErrorCode.OPERATION_INVALID):
                raise
            # A guest that is going down just now: libvirt refuses the button before it says that the domain is off.
            return self._require(domain, vm_id, "stop", OFF | {PowerState.RUNNING}) in OFF
        return False

    def force_stop(self, vm_id: str, connection: Any) -> None:
        domain = self.find(connection, vm_id)
        try:
            domain.destroy()
        except self._library.libvirtError as error:
            if not has_code(error, ErrorCode.OPERATION_INVALID):
                raise
            if domain.hasManagedSaveImage():
                domain.managedSaveRemove()

    def ask_to_reboot(self, vm_id: str, connection: Any) -> bool:
        """Return whether the guest's agent is connected."""
        domain = self.find(connection, vm_id)
        self._require(domain, vm_id, "reboot", {PowerState.RUNNING})
        has_agent = _has_agent(domain)
        try:
            domain.reboot(self._library.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)
        except self._library.libvirtError as error:
            self._explain(error, domain, vm_id, "reboot")
        return has_agent

    def reset(self, vm_id: str, connection: Any) -> None:
        domain = self.find(connection, vm_id)
        try:
            domain.reset()
        except self._library.libvirtError as error:
            self._explain(error, domain, vm_id, "reboot")

    def pause(self, vm_id: str, connection: Any) -> None:
        domain = self.find(connection, vm_id)
        self._require(domain, vm_id, "pause", {PowerState.RUNNING})
        try:
            domain.suspend()
        except self._library.libvirtError as error:
            self._explain(error, domain, vm_id, "pause")

    def resume(self, vm_id: str, connection: Any) -> None:
        domain = self.find(connection, vm_id)
        self._require(domain, vm_id, "resume", {PowerState.PAUSED})
        try:
            if domain.state()[0] == DomainState.PMSUSPENDED:
                domain.pMWakeup()
            else:
                domain.resume()
        except self._library.libvirtError as error:
            self._explain(error, domain, vm_id, "resume")

    def suspend(self, vm_id: str, connection: Any) -> None:
        domain = self.find(connection, vm_id)
        self._require(domain, vm_id, "suspend", {PowerState.RUNNING})
        try:
            # The guest shall run when it comes back, also where somebody pauses it while it is saved.
            domain.managedSave(self._library.VIR_DOMAIN_SAVE_RUNNING)
        except self._library.libvirtError as error:
            self._explain(error, domain, vm_id, "suspend")

    def read_log(self, vm_id: str, offset: int, max_bytes: int, _domain: Any) -> ConsoleLog:
        try:
            return console_log.read(console_log.log_path(self.host.console_log_dir, vm_id), offset, max_bytes)
        except OSError as error:
            raise Refused(f"the console log of VM {vm_id} cannot be read: {error}") from error


def _has_agent(domain: Any) -> bool:
    """Tell whether something in the guest has the agent's channel open."""
    channel = "devices/channel/target[@name='org.qemu.guest_agent.0'][@state='connected']"
    return domain_xml.parse(domain.XMLDesc()).find(channel) is not None


def _new_password() -> str:
    """Make a VNC password; 8 characters of 62 are 47 bits, and it is asked for on the host's loopback address only."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_VNC_PASSWORD_LENGTH))
