"""Rules about the machine in a spec, its translation for the host, and the way of the host's refusals back."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from controlplane.daemons.node_spec import in_callers_words, to_node_spec
from controlplane.domain.hardware_spec import change_violations_of
from controlplane.domain.vm_spec import violations_of
from limiquantix.compute.v1.vm_pb2 import GuestOSFamily, VmSpec
from limiquantix.errors import FailedPrecondition, FieldViolation, InvalidArgument, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from limiquantix.rpc import validation
from tests.support.control_plane_world import World, create_request

BASE = "cpu { cores: 2 } memory { size_mib: 512 }"


def spec_of(text: str, base: str = BASE) -> VmSpec:
    spec = text_format.Parse(base, VmSpec())
    return text_format.Merge(text, spec)


GOOD = {
    "room to grow": "cpu { max_vcpus: 8 } memory { max_memory_mib: 2048 }",
    "numa": """cpu { max_vcpus: 4 numa { enabled: true
        nodes { node_id: 1 vcpus: 2 vcpus: 3 memory_mib: 256 } nodes { vcpus: 0 vcpus: 1 memory_mib: 256 } } }""",
    "numa by the host": "cpu { numa { enabled: true } }",
    "secure boot": "firmware: UEFI_SECURE_BOOT tpm { enabled: true version: TPM_2_0 persistent: true }",
    "devices": """pci_devices { host_address: "0000:3b:00.0" } usb_devices { host_bus: "1" host_device: "2" }
        usb_devices { vendor_id: "0951" product_id: "1666" }
        vgpu_devices { profile: "p" gpu_uuid: "4b20d080-1b54-4048-85b3-a6a62d165c01" }""",
    "serial": "serial { count: 4 ports { index: 0 } ports { index: 1 } }",
    "display": "display { type: SPICE gpu: QXL video_memory_mib: 64 displays: 4 }",
    "headless": "display { type: NONE }",
    "resources": "resources { cpu_shares: 2 cpu_limit_mhz: 1 memory_reservation_mib: 512 }",
    "rng": 'rng { enabled: true rate_bytes: 100 period_ms: 10 backend: "/dev/random" }',
    "guest": "guest_os { family: GUEST_OS_FAMILY_WINDOWS_SERVER variant: '2022' overrides { tpm_required: true } }",
}
BAD = {
    "cpu { max_vcpus: 1 }": "spec.cpu.max_vcpus",
    "cpu { sockets: 2 max_vcpus: 7 }": "spec.cpu.max_vcpus",
    "cpu { numa { nodes { memory_mib: 512 } } }": "spec.cpu.numa.enabled",
    "cpu { numa { enabled: true nodes { node_id: 1 vcpus: 0 vcpus: 1 memory_mib: 512 } } }": "spec.cpu.numa.nodes",
    "cpu { numa { enabled: true nodes { vcpus: 0 memory_mib: 512 } } }": "spec.cpu.numa.nodes",
    "cpu { numa { enabled: true nodes { vcpus: 0 vcpus: 1 vcpus: 1 memory_mib: 512 } } }": "spec.cpu.numa.nodes",
    "cpu { numa { enabled: true nodes { vcpus: 0 vcpus: 1 memory_mib: 511 } } }": "spec.cpu.numa.nodes",
    "memory { max_memory_mib: 511 }": "spec.memory.max_memory_mib",
    "memory { overcommit_ratio: 2 }": "spec.memory.overcommit_ratio",
    "memory { size_mib: 128 } firmware: UEFI_SECURE_BOOT": "spec.memory.size_mib",
    "rng { period_ms: 5 }": "spec.rng.period_ms",
    "resources { cpu_shares: 1 }": "spec.resources.cpu_shares",
    "resources { memory_reservation_mib: 513 }": "spec.resources.memory_reservation_mib",
    "resources { cpu_reservation_mhz: 1 }": "spec.resources.cpu_reservation_mhz",
    "resources { io_priority: 1 }": "spec.resources.io_priority",
    'serial { ports { type: FILE target: "/etc/shadow" } }': "spec.serial.ports[0].type",
    'serial { ports { type: PTY target: "/dev/tty" } }': "spec.serial.ports[0].type",
    "serial { ports {} ports {} }": "spec.serial.ports[1].index",
    "display { displays: 2 }": "spec.display.displays",
    "display { gpu: VIRTIO_GPU video_memory_mib: 64 }": "spec.display.video_memory_mib",
    "display { video_memory_mib: 48 }": "spec.display.video_memory_mib",
    "display { video_memory_mib: 512 }": "spec.display.video_memory_mib",
    "display { type: NONE gpu: QXL }": "spec.display.gpu",
    'display { listen_address: "0.0.0.0" }': "spec.display.listen_address",
    "display { port: 5900 }": "spec.display.port",
    "boot { boot_order { type: USB } }": "spec.boot.boot_order[0].type",
    'pci_devices { host_address: "3b:00.0" }': "spec.pci_devices[0].host_address",
    'pci_devices { host_address: "0000:3b:00.0" } pci_devices { host_address: "0000:3B:00.0" }': (
        "spec.pci_devices[1].host_address"
    ),
    "usb_devices {}": "spec.usb_devices[0]",
    'usb_devices { vendor_id: "0951" }': "spec.usb_devices[0]",
    'usb_devices { host_bus: "1" }': "spec.usb_devices[0]",
    'vgpu_devices { profile: "p" }': "spec.vgpu_devices[0].gpu_uuid",
}


@pytest.mark.parametrize("name", GOOD)
def test_machine_that_fits_together_is_accepted_and_so_is_what_the_host_gets(name: str) -> None:
    spec = spec_of(GOOD[name])
    assert validation.violations_of(spec) == []
    assert violations_of(spec) == []
    assert validation.violations_of(to_node_spec(spec)) == []
    assert to_node_spec(spec) != to_node_spec(spec_of("")) or name == "headless"


@pytest.mark.parametrize("text", BAD)
def test_machine_that_does_not_fit_together_is_refused_by_field(text: str) -> None:
    assert [violation.field for violation in violations_of(spec_of(text))] == [BAD[text]]


def test_what_is_switched_off_or_only_described_is_nothing_to_the_host() -> None:
    plain = to_node_spec(spec_of(""))
    text = """tpm { persistent: true } watchdog { action: PAUSE } rng { enabled: true } cpu { numa {} features {} }
        memory { huge_pages { size: SIZE_1GB } } guest_os { variant: "12" } serial {} resources {}"""
    assert to_node_spec(spec_of(text)) == plain


@pytest.mark.parametrize(
    ("family", "name"), [("GUEST_OS_FAMILY_WINDOWS_SERVER", "windows_server"), ("GUEST_OS_FAMILY_RHEL", "rhel")]
)
def test_family_goes_to_the_host_by_its_name(family: str, name: str) -> None:
    spec = spec_of("")
    spec.guest_os.family = GuestOSFamily.Value(family)
    assert to_node_spec(spec).guest_os == name


def test_spice_display_takes_the_place_of_vnc() -> None:
    console = to_node_spec(spec_of('display { type: SPICE password: "x" }')).console
    assert (console.spice_enabled, console.vnc_enabled, console.vnc_password) == (True, False, "x")


def test_faults_that_the_host_finds_come_back_in_the_callers_words() -> None:
    theirs = {
        "spec.guest_os": "spec.guest_os.family",
        "spec.guest_os_overrides.disk_bus": "spec.guest_os.overrides.disk_bus",
        "spec.numa": "spec.cpu.numa",
        "spec.cpu_features.custom_flags": "spec.cpu.features.custom_flags",
        "spec.rng.backend": "spec.rng.backend",
    }
    error = in_callers_words(InvalidArgument.from_violations([FieldViolation(field, "x") for field in theirs]))
    assert [violation.field for violation in error.violations] == list(theirs.values())


async def test_vm_that_its_host_cannot_build_is_refused_and_leaves_nothing(world: World) -> None:
    node = await world.add_node(vcpus=16)
    world.daemons.of(node.id).fail("create_vm", FailedPrecondition(Reason.HOST_LACKS, "swtpm is not installed"))

    with pytest.raises(FailedPrecondition, match="swtpm is not installed") as caught:
        await world.vms.create(create_request(spec=spec_of("tpm { enabled: true version: TPM_2_0 }")))

    assert caught.value.reason == Reason.HOST_LACKS
    assert await world.all_vms() == []
    assert (await world.allocated(node.id)).vcpus == 0


@pytest.mark.parametrize(
    ("before", "after", "is_refused"),
    [
        ("firmware: UEFI", "firmware: UEFI_SECURE_BOOT", True),
        ("firmware: UEFI_SECURE_BOOT", "firmware: UEFI", True),
        ("firmware: UEFI", "firmware: UEFI guest_os { overrides { secure_boot: true } }", True),
        ("firmware: UEFI", "firmware: BIOS", False),
        ("", "firmware: UEFI_SECURE_BOOT", False),
    ],
)
def test_vm_neither_gains_nor_loses_secure_boot(before: str, after: str, is_refused: bool) -> None:
    faults = list(change_violations_of(spec_of(before), spec_of(after), "spec"))
    assert [fault.field for fault in faults] == (["spec.firmware"] if is_refused else [])


def test_node_spec_of_a_vm_from_before_there_was_hardware_is_what_it_was() -> None:
    spec = to_node_spec(spec_of(""))
    assert spec == node_v1.VMSpec(
        cpu_cores=2,
        cpu_sockets=1,
        cpu_threads_per_core=1,
        memory_mib=512,
        console=node_v1.ConsoleSpec(vnc_enabled=True),
    )
