"""CPU and memory of running VMs: the optional power to change them without a restart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from hypervisor.abilities import Abilities
from hypervisor.guest_profiles import profile_of
from hypervisor.types import VmConfig

MEMORY_STEP_MIB: Final = 128
"""Memory is added in multiples of this: the block size of Linux on x86-64, below which a guest cannot use it."""


@dataclass(frozen=True, slots=True)
class Resized:
    """What a VM runs with after a change, and why that is not all that was asked for.

    `obstacles` are sentences for people, one for each thing that waits for the next start. Of a VM that is off, the
    size is the one it is defined with.
    """

    vcpu_count: int
    memory_mib: int
    obstacles: tuple[str, ...] = ()


class Resizing(ABC):
    """CPU and memory of running VMs; see `Hypervisor` for the rules that hold for every method."""

    @abstractmethod
    async def resize(self, config: VmConfig) -> Resized:
        """Define a VM anew, running or not, and at once give what runs as much of its new size as can be.

        The definition holds from the next start, one in which the VM was off before: a guest that reboots by itself
        keeps what it has. Processors and memory are added within the maxima that the VM was started with, taken away
        as far as the guest lets go of them; what cannot be done now is named in the answer and is no error. Idempotent.

        Raises:
            WrongState: it is saved, and would continue with what was saved.
            Refused: the backend does not accept the configuration; the old one stays, and so does the size.
        """


@dataclass(frozen=True, slots=True)
class Machine:
    """What runs now, and what it was started with.

    `memory_mib` is what the guest has, `plugged_mib` what it would have if the balloon were empty, `used_mib` what the
    guest says it uses, 0 if it says nothing.
    """

    vcpu_count: int
    max_vcpu_count: int
    socket_count: int
    thread_count: int
    memory_mib: int
    plugged_mib: int
    max_memory_mib: int
    used_mib: int = 0
    is_paused: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done at once: the new number of vCPUs, memory to plug in, what the balloon is asked for."""

    vcpu_count: int | None = None
    plug_mib: int = 0
    balloon_mib: int | None = None
    obstacles: tuple[str, ...] = ()


def plan_resize(machine: Machine, config: VmConfig, abilities: Abilities) -> Plan:
    """Decide what of a new size can be had at once; pure, the same for every backend."""
    vcpu_count, vcpu_obstacle = _plan_vcpus(machine, config, abilities)
    plug_mib, balloon_mib, memory_obstacle = _plan_memory(machine, config, abilities)
    obstacles = tuple(each for each in (vcpu_obstacle, memory_obstacle) if each)
    return Plan(vcpu_count, plug_mib, balloon_mib, obstacles)


def _plan_vcpus(machine: Machine, config: VmConfig, abilities: Abilities) -> tuple[int | None, str]:
    wanted, guest = config.cpu.vcpu_count, config.hardware.guest
    more, less = wanted > machine.vcpu_count, wanted < machine.vcpu_count
    obstacles = (
        (
            (config.cpu.sockets, config.cpu.threads) != (machine.socket_count, machine.thread_count),
            "sockets and threads a core cannot change while the VM runs",
        ),
        (
            less and not abilities.can_remove_vcpus,
            "this host's hypervisor takes no vCPUs away from a VM that runs",
        ),
        (
            more and not profile_of(guest).can_add_vcpus,
            f"a guest of the family {guest.value} takes no vCPUs while it runs",
        ),
        (more and not abilities.can_add_vcpus, "this host's hypervisor adds no vCPUs to a VM that runs"),
        (
            more and wanted > machine.max_vcpu_count,
            f"the VM was started with room for {machine.max_vcpu_count} vCPUs",
        ),
    )
    if obstacle := next((words for applies, words in obstacles if applies), ""):
        return None, obstacle
    return wanted if more or less else None, ""


def _plan_memory(machine: Machine, config: VmConfig, abilities: Abilities) -> tuple[int, int | None, str]:
    wanted = config.memory_mib
    if wanted == machine.memory_mib:
        return 0, None, ""
    if wanted < machine.memory_mib:
        return 0, *_plan_less_memory(machine, config)
    plug_mib = max(wanted - machine.plugged_mib, 0)
    if plug_mib and (obstacle := _plugging_obstacle(machine, config, abilities, plug_mib)):
        return 0, None, obstacle
    needs_balloon = not plug_mib or machine.memory_mib != machine.plugged_mib
    return plug_mib, wanted if needs_balloon else None, ""


def _plugging_obstacle(machine: Machine, config: VmConfig, abilities: Abilities, plug_mib: int) -> str:
    guest, most = config.hardware.guest, max(machine.max_memory_mib, machine.plugged_mib)
    obstacles = (
        (not profile_of(guest).can_add_memory, f"a guest of the family {guest.value} takes no memory while it runs"),
        (not abilities.can_add_memory, "this host's hypervisor adds no memory to a VM that runs"),
        (config.memory_mib > most, f"the VM was started with room for {most} MiB"),
        (
            plug_mib % MEMORY_STEP_MIB != 0,
            f"memory is added in steps of {MEMORY_STEP_MIB} MiB, which {plug_mib} MiB more is not",
        ),
    )
    return next((words for applies, words in obstacles if applies), "")


def _plan_less_memory(machine: Machine, config: VmConfig) -> tuple[int | None, str]:
    if not config.hardware.may_balloon:
        return None, "ballooning is not enabled, so the guest is not asked to give memory back"
    if machine.is_paused:
        return None, "the guest is paused and cannot give memory back"
    if machine.used_mib > config.memory_mib:
        return None, f"the guest uses {machine.used_mib} MiB and would run out of memory"
    return config.memory_mib, ""
