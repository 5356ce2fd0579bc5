"""CPU and memory of simulated VMs that run, and the devices of their simulated host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hypervisor.abilities import HostDevice
from hypervisor.host_devices import HostDevices
from hypervisor.mock.faults import Operation
from hypervisor.mock.host import OFF, MockHost
from hypervisor.mock.store import MockMachine, MockVm
from hypervisor.resizing import Machine, Resized, Resizing, plan_resize
from hypervisor.types import EventKind, PowerState, VmConfig


class MockResizing(Resizing):
    """See `Resizing`; guests let go of whatever they are asked for, and have a balloon as large as it takes."""

    def __init__(self, host: MockHost) -> None:
        self._host = host

    async def resize(self, config: VmConfig) -> Resized:
        """See `Resizing`."""
        lost = await self._host.strike(Operation.RESIZE, config.vm_id)
        vm = self._host.vm(config.vm_id)
        self._host.require(vm, "resize", OFF | {PowerState.RUNNING, PowerState.PAUSED})
        self._host.check_fits_host(config)
        resized = self._resize(vm, config) if vm.state not in OFF else self._define(vm, config)
        await self._host.save()
        self._host.lose_answer(lost)
        return resized

    def _define(self, vm: MockVm, config: VmConfig) -> Resized:
        if vm.config != config:
            vm.config = config
            self._host.change(vm, vm.state, EventKind.DEFINED)
        return Resized(config.cpu.vcpu_count, config.memory_mib)

    def _resize(self, vm: MockVm, config: VmConfig) -> Resized:
        before = vm.live_config
        plan = plan_resize(machine_of(vm), config, self._host.settings.abilities)
        cpu, memory_mib = before.cpu, before.memory_mib
        if plan.vcpu_count is not None:
            cpu = dataclasses.replace(cpu, cores=plan.vcpu_count // (cpu.sockets * cpu.threads))
        if plan.plug_mib:
            memory_mib = config.memory_mib
            self._host.check_room(config.vm_id, memory_mib)
        if plan.balloon_mib is not None:
            memory_mib = plan.balloon_mib
        machine = MockMachine(cpu, memory_mib, before.hardware)
        running = None if machine == MockMachine(config.cpu, config.memory_mib, config.hardware) else machine
        if (vm.config, vm.running) != (config, running):
            vm.cpu_before_s, vm.load_since_s = self._host.cpu_s(vm), self._host.age_s(vm)
            vm.config, vm.running = config, running
            self._host.change(vm, vm.state, EventKind.DEFINED)
        return Resized(cpu.vcpu_count, memory_mib, plan.obstacles)


def machine_of(vm: MockVm) -> Machine:
    """Return what runs."""
    running = vm.live_config
    return Machine(
        vcpu_count=running.cpu.vcpu_count,
        max_vcpu_count=max(running.hardware.max_vcpu_count, running.cpu.vcpu_count),
        socket_count=running.cpu.sockets,
        thread_count=running.cpu.threads,
        memory_mib=running.memory_mib,
        plugged_mib=running.memory_mib,
        max_memory_mib=running.hardware.max_memory_mib,
        is_paused=vm.state is PowerState.PAUSED,
    )


class MockHostDevices(HostDevices):
    """See `HostDevices`."""

    def __init__(self, host: MockHost) -> None:
        self._host = host

    async def list(self) -> Sequence[HostDevice]:
        """See `HostDevices`."""
        await self._host.strike(Operation.LIST_HOST_DEVICES)
        return sorted(self._host.host_devices(), key=lambda device: (device.kind.value, device.address))
