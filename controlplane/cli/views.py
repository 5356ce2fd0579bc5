"""VMs and nodes as rows and fields for people. Everything comes from the API's JSON, where defaults are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from controlplane.cli.machine_views import hardware_fields, machine_fields, pending_fields, reach_fields
from controlplane.cli.node_views import life_fields, topology_fields
from controlplane.cli.output import STATE_STYLES, Column
from controlplane.cli.sizes import GIB, MIB, format_age, format_bytes

Document = Mapping[str, Any]
Fields = list[tuple[str, str]]

VM_COLUMNS = (
    Column("NAME"),
    Column("STATE", styles=STATE_STYLES),
    Column("NODE"),
    Column("VCPUS", is_number=True),
    Column("MEMORY", is_number=True),
    Column("ADDRESSES"),
    Column("AGE", is_number=True),
)
WIDE_VM_COLUMNS = (*VM_COLUMNS, Column("DISKS", is_number=True), Column("LABELS"), Column("PROJECT"), Column("ID"))

NOTE_COLUMN = Column("NOTE", style="red")
_ON_ONE_HOST = "on_one_host"
_WANTED_ENOUGH = {"RUNNING": frozenset({"RUNNING", "PAUSED", "SUSPENDED", "MIGRATING", "PROVISIONING"})}
"""States in which a VM is as good as in the wanted one: a pause is asked for too, and leaves what is wanted."""

NODE_COLUMNS = (
    Column("NAME"),
    Column("PHASE", styles=STATE_STYLES),
    Column("VCPUS USED", is_number=True),
    Column("MEMORY USED", is_number=True),
    Column("VMS", is_number=True),
    Column("HYPERVISOR"),
    Column("SEEN", is_number=True),
    Column("AGE", is_number=True),
)
WIDE_NODE_COLUMNS = (*NODE_COLUMNS, Column("ADDRESS"), Column("LABELS"), Column("ID"))


def vm_row(vm: Document, hostnames: Mapping[str, str], now: datetime, *, wide: bool) -> list[str]:
    """Make the cells of `VM_COLUMNS`, or of `WIDE_VM_COLUMNS`.

    Args:
        hostnames: host names of nodes by id; a node that is not there is shown by its id.
    """
    spec, status = vm.get("spec", {}), vm.get("status", {})
    row = [
        vm.get("name", ""),
        vm_state(vm),
        node_name(vm, hostnames),
        str(vcpu_count(spec)),
        _mib(spec.get("memory", {}).get("sizeMib")),
        ", ".join(status.get("ipAddresses", ())),
        _age(vm.get("createdAt"), now),
    ]
    if wide:
        row += [str(len(spec.get("disks", ()))), labels_text(vm), vm.get("projectId", ""), vm.get("id", "")]
    return row


def vm_fields(vm: Document, hostnames: Mapping[str, str], now: datetime) -> Fields:
    """Make titles and values of one VM."""
    spec, status = vm.get("spec", {}), vm.get("status", {})
    direct_boot = spec.get("boot", {}).get("directBoot", {})
    return [
        ("Name", vm.get("name", "")),
        ("ID", vm.get("id", "")),
        ("Project", vm.get("projectId", "")),
        ("Description", vm.get("description", "")),
        ("Labels", labels_text(vm)),
        ("State", _since(vm_state(vm), status.get("stateChangedAt"), now)),
        ("Wanted state", wanted_state(vm) if wanted_state(vm) != vm_state(vm) else ""),
        ("Managed", "no; 'limiquantix vm take-over' takes it over" if is_unmanaged(vm) else ""),
        *(("Alert", f"{check.get('name', '')}: {check.get('message', '')}") for check in failed_checks(vm)),
        ("Lost because", status.get("lostReason", "")),
        ("Last error", status.get("errorMessage", "")),
        ("Node", node_name(vm, hostnames)),
        ("vCPUs", str(vcpu_count(spec))),
        ("CPU model", spec.get("cpu", {}).get("model", "")),
        ("Memory", _mib(spec.get("memory", {}).get("sizeMib"))),
        *pending_fields(vm),
        *hardware_fields(spec),
        ("Firmware", spec.get("firmware", "BIOS")),
        ("Kernel", direct_boot.get("kernelPath", "")),
        ("Initial RAM disk", direct_boot.get("initrdPath", "")),
        ("Kernel command line", direct_boot.get("cmdline", "")),
        *((f"Disk {index}", _disk(disk)) for index, disk in enumerate(spec.get("disks", ()))),
        *((f"CD-ROM {index}", drive.get("isoPath") or "empty") for index, drive in enumerate(spec.get("cdroms", ()))),
        *((f"Network card {index}", _nic(nic)) for index, nic in enumerate(spec.get("nics", ()))),
        ("Addresses", ", ".join(status.get("ipAddresses", ()))),
        ("First boot", _first_boot(spec.get("provisioning", {}))),
        ("Template", "yes; it does not start" if spec.get("template", {}).get("isTemplate") else ""),
        ("Made from", _origin(spec.get("template", {}))),
        ("Created", _moment(vm.get("createdAt"), now)),
        ("Updated", _moment(vm.get("updatedAt"), now)),
        ("Seen by its node", _moment(status.get("lastSeenAt"), now)),
    ]


def _first_boot(provisioning: Document) -> str:
    """Say what the guest is told, and what of it is not shown."""
    cloud_init = provisioning.get("cloudInit", {})
    names = [f"host name {cloud_init['hostname']}"] if cloud_init.get("hostname") else []
    names += [f"SSH keys: {len(cloud_init['sshAuthorizedKeys'])}"] if cloud_init.get("sshAuthorizedKeys") else []
    names += [f"{path} (not shown)" for path in provisioning.get("withheld", ())]
    return ", ".join(names)


def _origin(template: Document) -> str:
    source = str(template.get("sourceTemplateId") or template.get("sourceVmId") or "")
    return f"{source} (linked)" if source and template.get("cloneType") == "LINKED" else source


def noted(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> tuple[Sequence[Column], Sequence[Sequence[str]]]:
    """Add a column with a note on every row, if any has one."""
    if not any(notes):
        return columns, rows
    return (*columns, NOTE_COLUMN), [[*row, note] for row, note in zip(rows, notes, strict=True)]


def vm_note(vm: Document) -> str:
    """Say in a few words what is not as it should be; "" for a VM in order."""
    state, wanted = vm_state(vm), wanted_state(vm)
    checks = [str(check.get("name", "")) for check in failed_checks(vm)]
    return ", ".join(
        (
            *(["unmanaged"] if is_unmanaged(vm) else []),
            *(["changes at next start"] if vm.get("status", {}).get("pendingChanges") else []),
            *(["template"] if vm.get("spec", {}).get("template", {}).get("isTemplate") else []),
            *("on several hosts" if name == _ON_ONE_HOST else name for name in checks),
            *([f"wanted {wanted}"] if wanted and state not in _WANTED_ENOUGH.get(wanted, {wanted}) else []),
        )
    )


def is_unmanaged(vm: Document) -> bool:
    """Tell whether a VM was found on its host and is only shown."""
    return vm.get("origin") == "VM_ORIGIN_HOST_DISCOVERED" and not vm.get("isManaged")


def failed_checks(vm: Document) -> list[Document]:
    """Return the health checks that a VM does not pass."""
    return [check for check in vm.get("status", {}).get("health", {}).get("checks", ()) if not check.get("passed")]


def wanted_state(vm: Document) -> str:
    """Return the name of the state that a VM is wanted in, "" if nobody said."""
    return str(vm.get("status", {}).get("wantedState", ""))


def node_row(node: Document, now: datetime, *, wide: bool) -> list[str]:
    """Make the cells of `NODE_COLUMNS`, or of `WIDE_NODE_COLUMNS`."""
    status = node.get("status", {})
    row = [
        node.get("hostname", ""),
        node_phase(node),
        _cpu_use(status),
        _memory_use(status),
        str(len(status.get("vmIds", ()))),
        _hypervisor(status),
        _age(status.get("lastHeartbeat"), now),
        _age(node.get("createdAt"), now),
    ]
    if wide:
        row += [node.get("managementIp", ""), labels_text(node), node.get("id", "")]
    return row


def node_fields(node: Document, now: datetime) -> Fields:
    """Make titles and values of one node."""
    spec, status = node.get("spec", {}), node.get("status", {})
    cpu, system, resources = spec.get("cpu", {}), status.get("system", {}), status.get("resources", {})
    storage, measured = resources.get("storage", {}), resources.get("memory", {})
    roles = [name for name, key in (("compute", "compute"), ("storage", "storage")) if spec.get("role", {}).get(key)]
    return [
        ("Name", node.get("hostname", "")),
        ("ID", node.get("id", "")),
        ("Labels", labels_text(node)),
        ("Phase", node_phase(node)),
        ("Fault", status.get("errorMessage", "")),
        ("Roles", ", ".join(roles)),
        ("Takes new VMs", "yes" if spec.get("scheduling", {}).get("schedulable") else "no"),
        *life_fields(node),
        ("Management address", node.get("managementIp", "")),
        ("Node daemon", " ".join(filter(None, (spec.get("agent", {}).get("endpoint"), system.get("agentVersion"))))),
        ("Processor", cpu.get("model", "")),
        ("Logical processors", str(cpu.get("totalThreads", ""))),
        ("vCPUs promised", _cpu_use(status)),
        ("CPU in use", f"{resources.get('cpu', {}).get('usagePercent', 0):.0f} %"),
        ("Memory promised", _memory_use(status)),
        ("Memory in use", _bytes(measured.get("usedBytes"))),
        ("Disk in use", f"{_bytes(storage.get('localUsedBytes'))} of {_bytes(storage.get('localTotalBytes'))}"),
        ("Hypervisor", _hypervisor(status)),
        *machine_fields(node),
        *topology_fields(node),
        *reach_fields(node),
        ("Operating system", " ".join(filter(None, (system.get("osName"), system.get("osVersion"))))),
        ("Kernel", system.get("kernelVersion", "")),
        ("VMs", str(len(status.get("vmIds", ())))),
        ("Last heartbeat", _moment(status.get("lastHeartbeat"), now)),
        ("Registered", _moment(node.get("createdAt"), now)),
    ]


def console_fields(console: Document) -> Fields:
    """Make titles and values of a one-time entry to a console."""
    return [
        ("Protocol", console.get("consoleType", "").removeprefix("CONSOLE_TYPE_")),
        ("Address on the host", f"{console.get('host', '')}:{console.get('port', 0)}"),
        ("Password", console.get("password", "")),
        ("Good until", console.get("expiresAt", "")),
        ("TLS", "yes" if console.get("tls") else "no"),
        ("For browsers", console.get("websocketUrl", "")),
    ]


def is_template(vm: Document) -> bool:
    """Tell whether an answer's VM is a template."""
    role: Any = vm.get("spec", {}).get("template", {})
    return bool(role.get("isTemplate"))


def vm_state(vm: Document) -> str:
    """Return the power state's name."""
    return str(vm.get("status", {}).get("state", "UNKNOWN"))


def node_phase(node: Document) -> str:
    """Return the phase's name."""
    return str(node.get("status", {}).get("phase", "UNKNOWN"))


def node_name(vm: Document, hostnames: Mapping[str, str]) -> str:
    """Return the host name of a VM's node, its id if the name is not known, "" if it is on none."""
    node_id = str(vm.get("status", {}).get("nodeId", ""))
    return hostnames.get(node_id, node_id)


def vcpu_count(spec: Document) -> int:
    """Return how many vCPUs the guest sees."""
    cpu = spec.get("cpu", {})
    return int(cpu.get("cores", 0) * (cpu.get("sockets") or 1) * (cpu.get("threadsPerCore") or 1))


def labels_text(item: Document) -> str:
    """Write labels as "key=value", sorted and separated by commas."""
    return ",".join(f"{key}={value}" for key, value in sorted(item.get("labels", {}).items()))


def _disk(disk: Document) -> str:
    size_gib = int(disk.get("sizeGib", 0))
    return ", ".join(
        filter(
            None,
            (
                format_bytes(size_gib * GIB) if size_gib else "",
                disk.get("format", "QCOW2"),
                disk.get("bus", "VIRTIO_BLK"),
                f"from {disk['backingFile']}" if disk.get("backingFile") else "",
                f"volume {disk['volumeId']}" if disk.get("volumeId") else "",
                "read-only" if disk.get("readonly") else "",
            ),
        )
    )


def _nic(nic: Document) -> str:
    link = "NAT"
    if nic.get("bridge"):
        link = f"bridge {nic['bridge']}"
    elif nic.get("networkId"):
        link = f"network {nic['networkId']}"
    return ", ".join(filter(None, (link, nic.get("model", "VIRTIO_NET"), nic.get("macAddress", ""))))


def _cpu_use(status: Document) -> str:
    cpu = status.get("resources", {}).get("cpu", {})
    return f"{cpu.get('allocatedVcpus', 0)} of {cpu.get('allocatableVcpus', 0)}"


def _memory_use(status: Document) -> str:
    memory = status.get("resources", {}).get("memory", {})
    return f"{_bytes(memory.get('allocatedBytes'))} of {_bytes(memory.get('allocatableBytes'))}"


def _hypervisor(status: Document) -> str:
    system = status.get("system", {})
    return " ".join(filter(None, (system.get("hypervisor"), system.get("hypervisorVersion"))))


def _mib(size_mib: str | int | None) -> str:
    return format_bytes(int(size_mib or 0) * MIB)


def _bytes(size_bytes: str | int | None) -> str:
    return format_bytes(int(size_bytes or 0))


def _age(moment: str | None, now: datetime) -> str:
    return format_age((now - datetime.fromisoformat(moment)).total_seconds()) if moment else ""


def _moment(moment: str | None, now: datetime) -> str:
    return f"{moment} ({_age(moment, now)} ago)" if moment else ""


def _since(state: str, moment: str | None, now: datetime) -> str:
    return f"{state} for {_age(moment, now)}" if moment else state
