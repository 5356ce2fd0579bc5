"""Resizing through the daemon, and what it tells of its host's machines and devices, on the mock."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from hypervisor.abilities import DeviceKind, HostDevice
from hypervisor.mock.abilities import EVERYTHING
from hypervisor.types import Accelerator, Capabilities, CpuTopology, VmConfig
from limiquantix.compute.v1 import node_pb2
from limiquantix.errors import FailedPrecondition, NotFound, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from limiquantix.rpc.validation import violations_of
from nodedaemon.encode_machine import MAX_DEVICE_COUNT, to_host_devices, to_machine
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts

VM_ID = "0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[NodeDaemonParts]:
    async with node_daemon_parts(tmp_path) as parts:
        yield parts


def spec(cores: int = 1, memory_mib: int = 256, *, max_vcpus: int = 4) -> pb.VMSpec:
    return pb.VMSpec(
        cpu_cores=cores, memory_mib=memory_mib, max_vcpus=max_vcpus, max_memory_mib=1024, ballooning_enabled=True
    )


def request(new: pb.VMSpec, generation: int = 2) -> pb.ReconfigureVMRequest:
    return pb.ReconfigureVMRequest(vm_id=VM_ID, name="web", spec=new, generation=generation)


async def created(daemon: NodeDaemonParts, *, start: bool) -> None:
    await daemon.servicer.CreateVM(pb.CreateVMOnNodeRequest(vm_id=VM_ID, name="web", spec=spec(), generation=1), None)
    if start:
        await daemon.start(VM_ID)


async def test_running_vm_is_resized_and_says_what_it_has(daemon: NodeDaemonParts) -> None:
    await created(daemon, start=True)

    for _ in range(2):  # the answer may have been lost
        answer = await daemon.servicer.ResizeVM(request(spec(3, 512)), None)
        assert (answer.vcpu_count, answer.memory_mib, list(answer.obstacles)) == (3, 512, [])
        assert answer.status.state == pb.POWER_STATE_RUNNING


async def test_what_a_running_vm_cannot_have_is_named_and_is_had_at_its_next_start(daemon: NodeDaemonParts) -> None:
    await created(daemon, start=True)

    answer = await daemon.servicer.ResizeVM(request(spec(8, 300, max_vcpus=8)), None)

    assert (answer.vcpu_count, answer.memory_mib) == (1, 256)
    assert len(answer.obstacles) == 2
    await daemon.servicer.ForceStopVM(pb.VMIdRequest(vm_id=VM_ID), None)
    await daemon.start(VM_ID)
    again = await daemon.servicer.ResizeVM(request(spec(8, 300, max_vcpus=8)), None)
    assert (again.vcpu_count, again.memory_mib, list(again.obstacles)) == (8, 300, [])


async def test_vm_that_is_off_is_redefined_with_its_images(daemon: NodeDaemonParts) -> None:
    await created(daemon, start=False)
    new = spec(2)
    new.disks.add(id=VM_ID, size_gib=1)

    answer = await daemon.servicer.ResizeVM(request(new), None)

    assert (answer.vcpu_count, answer.memory_mib) == (2, 256)
    assert (daemon.paths.root / VM_ID / f"{VM_ID}.qcow2").exists()


async def test_vm_of_another_tool_is_not_resized(daemon: NodeDaemonParts) -> None:
    await daemon.hypervisor.define_behind_our_back(VmConfig(VM_ID, "theirs", CpuTopology(), 256))
    await daemon.start(VM_ID)
    with pytest.raises(FailedPrecondition) as caught:
        await daemon.servicer.ResizeVM(request(spec(2)), None)
    assert caught.value.reason == Reason.VM_NOT_MANAGED


async def test_absent_vm_is_not_found(daemon: NodeDaemonParts) -> None:
    with pytest.raises(NotFound):
        await daemon.servicer.ResizeVM(request(spec(2)), None)


async def test_vm_that_the_host_cannot_build_is_refused_with_what_is_missing(daemon: NodeDaemonParts) -> None:
    new = spec()
    new.pci_devices.add(host_address="0000:3b:00.0")
    with pytest.raises(FailedPrecondition, match="no PCI device") as caught:
        await daemon.servicer.CreateVM(pb.CreateVMOnNodeRequest(vm_id=VM_ID, name="web", spec=new, generation=1), None)
    assert caught.value.reason == Reason.HOST_LACKS
    assert (await daemon.servicer.ListVMs(Empty(), None)).vms == []
    assert not (daemon.paths.root / VM_ID).exists()


# -- what the host tells


async def test_registration_and_node_info_say_what_machines_can_have(daemon: NodeDaemonParts) -> None:
    daemon.report.serve_at("127.0.0.1:9443", 9443, "")
    registration = await daemon.report.registration()
    info = await daemon.servicer.GetNodeInfo(Empty(), None)

    assert violations_of(registration) == []
    assert registration.machine == info.capabilities.machine
    assert registration.machine.supports_secure_boot
    assert "2.0" in registration.machine.tpm_versions
    assert registration.memory_info.huge_pages.pages_2mb_total == 65536
    assert len(registration.cpu_info.numa_nodes) == 2
    assert info.capabilities.supports_nested_virtualization
    assert not info.capabilities.supports_gpu_passthrough


def test_devices_with_hostile_names_keep_to_the_rules_of_the_contract() -> None:
    hostile = HostDevice(
        DeviceKind.USB, "1:4", "0951", "1666", vendor="x" * 999, product="\x1b[2J\u202ename\n", numa_node=-1
    )
    messages = to_host_devices([hostile] * (MAX_DEVICE_COUNT + 1))

    assert len(messages) == MAX_DEVICE_COUNT
    assert violations_of(messages[0]) == []
    assert messages[0].product == "[2J name"
    assert not messages[0].HasField("numa_node")


@pytest.mark.parametrize("can_limit_cpu", [None, True, False])
def test_ability_that_is_not_known_is_left_out(can_limit_cpu: bool | None) -> None:
    abilities = dataclasses.replace(EVERYTHING, can_limit_cpu=can_limit_cpu)
    machine = to_machine(Capabilities("mock", "1", Accelerator.SIMULATED, 4, 2**30, abilities=abilities))
    assert machine.HasField("can_limit_cpu") == (can_limit_cpu is not None)
    assert machine.can_limit_cpu == bool(can_limit_cpu)
    assert isinstance(machine, node_pb2.MachineCapabilities)
