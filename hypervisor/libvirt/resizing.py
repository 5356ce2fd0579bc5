"""CPU and memory of running domains: vCPUs by hot-plug, memory by the balloon and by DIMMs.

A running domain has two definitions. The one for its next start is replaced as a whole; what runs gets as much of the
new size as it can. Memory within what the guest was started with is the balloon's; what goes beyond is plugged in as a
DIMM, since a balloon could only hold it back from guests that obey it. At the next start it is ordinary memory.

Source: https://libvirt.org/formatdomain.html, "Memory devices"; virDomainSetVcpusFlags, virDomainSetMemoryFlags.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from lxml import etree

from hypervisor.errors import HypervisorError, WrongState
from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.domain_operations import OFF
from hypervisor.libvirt.host_abilities import read_abilities
from hypervisor.libvirt.library import load_libvirt_qemu
from hypervisor.libvirt.visits import Visits
from hypervisor.libvirt.worker_pool import Lane
from hypervisor.resizing import Machine, Plan, Resized, Resizing, plan_resize
from hypervisor.types import PowerState, VmConfig

BALLOON_WAIT_S: Final = 10.0
"""How long a guest gets to give memory back or take it; one that has it free needs under a second for a GiB."""
_LOOK_INTERVAL_S: Final = 0.1
_AGENT_TIMEOUT_S: Final = 3
_ON_LINE_WAIT_S: Final = 3.0
"""An emulated kernel took up to 1 s to hear of a processor."""
_AGENT_DEADLINE_S: Final = 15.0
_CACHE_IS_FULL: Final = (
    "the emulator's cache is too full for another vCPU just now; ask again later, or let it come with the next start"
)
_HUMAN_MONITOR: Final = 1
"""libvirt's VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP."""
_KIB_PER_MIB: Final = 1024
_MAX_BLOCKS: Final = 4096
"""Memory blocks that are looked at in a guest's answer: 512 GiB in the usual blocks."""


class LibvirtResizing(Resizing):
    """See `Resizing`."""

    def __init__(self, visits: Visits) -> None:
        self._visits = visits

    async def resize(self, config: VmConfig) -> Resized:
        """Define anew, hot-plug, and wait up to 10 s for a guest that shall give memory back; see `Resizing`.

        An agent in the guest is asked to bring new processors and memory on line, which guests without a rule for that
        leave undone; one that does not answer is no fault.
        """
        domain_xml.require_uuid(config.vm_id)
        plan, before = await self._visits.change(config.vm_id, partial(self._change, config))
        if plan is None:
            return Resized(config.cpu.vcpu_count, config.memory_mib)
        obstacles = list(plan.obstacles)
        if plan.balloon_mib is not None and not await self._balloon_reached(config.vm_id, plan.balloon_mib):
            obstacles.append(f"the guest did not come to {plan.balloon_mib} MiB within {BALLOON_WAIT_S:g} s")
        if plan.plug_mib or (plan.vcpu_count or 0) > before.vcpu_count:
            await self._bring_on_line(config.vm_id, plan.vcpu_count or before.vcpu_count)
        after = await self._visits.look(config.vm_id, self._machine)
        return Resized(after.vcpu_count, after.memory_mib, tuple(obstacles))

    async def _balloon_reached(self, vm_id: str, wanted_mib: int) -> bool:
        """Wait for the guest to take or give what it is asked for."""
        until_s = asyncio.get_running_loop().time() + BALLOON_WAIT_S
        while await self._visits.look(vm_id, _memory_mib) != wanted_mib:
            if asyncio.get_running_loop().time() > until_s:
                return False
            await asyncio.sleep(_LOOK_INTERVAL_S)
        return True

    async def _bring_on_line(self, vm_id: str, vcpu_count: int) -> None:
        try:
            await self._visits.connection.run(
                lambda connection: bring_on_line(self._visits.operations.find(connection, vm_id), vcpu_count),
                lane=Lane.AGENT,
                vm_id=vm_id,
                deadline_s=_AGENT_DEADLINE_S,
            )
        except HypervisorError:
            return  # there is no agent, or it does not answer; the guest has the means all the same

    # in worker threads

    def _change(self, config: VmConfig, connection: Any) -> tuple[Plan | None, Machine]:
        """Make the new definition, then what can be done at once; None for a domain that is off."""
        operations, library = self._visits.operations, self._visits.connection.library
        domain = operations.find(connection, config.vm_id)
        state = operations.state(domain)
        if state not in OFF | {PowerState.RUNNING, PowerState.PAUSED}:
            raise WrongState(config.vm_id, "resize", state.value)
        operations.define_anew(config, connection, domain)
        if state in OFF:
            return None, _NOTHING
        machine = replace(self._machine(domain), used_mib=self._used_mib(domain))
        abilities = read_abilities(connection, library, operations.host.accelerator)
        plan = plan_resize(machine, config, abilities)
        obstacles = list(plan.obstacles)
        live = library.VIR_DOMAIN_AFFECT_LIVE
        if plan.vcpu_count is not None:
            vcpu_count = plan.vcpu_count
            if (
                vcpu_count > machine.vcpu_count
                and operations.host.is_emulated
                and not has_free_code_cache(domain, library)
            ):
                obstacles.append(_CACHE_IS_FULL)
                plan = replace(plan, vcpu_count=None)
        if plan.vcpu_count is not None:
            obstacles += _tried(library, "vCPUs", lambda: domain.setVcpusFlags(vcpu_count, live))
        if plan.plug_mib:
            device = etree.tostring(_dimm(plan.plug_mib), encoding="unicode")
            failed = _tried(library, "memory", lambda: domain.attachDeviceFlags(device, live))
            obstacles += failed
            if failed:
                plan = Plan(plan.vcpu_count)
        if plan.balloon_mib is not None:
            balloon_kib = plan.balloon_mib * _KIB_PER_MIB
            obstacles += _tried(library, "memory", lambda: domain.setMemoryFlags(balloon_kib, live))
        return Plan(plan.vcpu_count, plan.plug_mib, plan.balloon_mib, tuple(obstacles)), machine

    def _machine(self, domain: Any) -> Machine:
        """Read what runs, without an answer from its QEMU."""
        tree = domain_xml.parse(domain.XMLDesc(0))
        topology = tree.find("cpu/topology")
        layout: Mapping[str, str] = {} if topology is None else {str(k): str(v) for k, v in topology.items()}
        is_paused = self._visits.operations.state(domain) is PowerState.PAUSED
        vcpu = tree.find("vcpu")
        most = 0 if vcpu is None else int(vcpu.text or 0)
        return Machine(
            vcpu_count=most if vcpu is None else int(vcpu.get("current") or most),
            max_vcpu_count=most,
            socket_count=int(layout.get("sockets", most)),
            thread_count=int(layout.get("threads", 1)),
            memory_mib=int(tree.findtext("currentMemory") or tree.findtext("memory") or 0) // _KIB_PER_MIB,
            plugged_mib=int(tree.findtext("memory") or 0) // _KIB_PER_MIB,
            max_memory_mib=int(tree.findtext("maxMemory") or 0) // _KIB_PER_MIB,
            is_paused=is_paused,
        )

    def _used_mib(self, domain: Any) -> int:
        """Return what the guest said last that it uses; 0 if it says nothing."""
        try:
            told = domain.memoryStats()
        except self._visits.connection.library.libvirtError:
            return 0
        if int(told.get("last_update", 0)) <= 0:
            return 0
        used_kib = int(told.get("available", 0)) - int(told.get("usable", told.get("unused", 0)))
        return max(used_kib, 0) // _KIB_PER_MIB


def has_free_code_cache(domain: Any, library: Any) -> bool:
    """Tell whether QEMU's emulator surely has a part of its cache of translated code left for each vCPU to come.

    It cuts the cache into 8 parts for each vCPU that there may be, given 16 MiB or more for each of those, as a
    definition with room to grow gives it. A vCPU holds one part and takes another when that is full; where one comes
    and all are taken, QEMU aborts. Full parts are filled to 97 % at least. So while no more than three quarters of the
    whole are filled, at most 78 of 100 parts are full, and 13 more in the hands of all vCPUs, with those to come.
    Source: QEMU, tcg/region.c, tcg_n_regions and tcg_region_initial_alloc.
    """
    try:
        return is_roomy(str(load_libvirt_qemu().qemuMonitorCommand(domain, "info jit", _HUMAN_MONITOR)))
    except library.libvirtError:
        return False


def is_roomy(statistics: str) -> bool:
    """Tell whether no more than three quarters of the emulator's cache are filled, from what `info jit` prints."""
    found = re.search(r"gen code size\s+(\d+)/(\d+)", statistics)
    return found is not None and int(found[1]) * 4 <= int(found[2]) * 3


def _memory_mib(domain: Any) -> int:
    """Return what the guest has, as QEMU told libvirt last."""
    return int(domain.info()[2]) // _KIB_PER_MIB


_NOTHING: Final = Machine(0, 0, 1, 1, 0, 0, 0)


def bring_on_line(domain: Any, vcpu_count: int) -> None:
    """Have the guest's agent bring all processors and memory on line; blocks while it answers, some seconds at most.

    Its kernel hears of what was added a moment after QEMU has it, so the agent is asked again until it sees
    `vcpu_count` processors, and twice for memory, of which nothing tells how many blocks there will be.
    """
    until_s = time.monotonic() + _ON_LINE_WAIT_S
    tries = 0
    while True:
        tries += 1
        vcpus = _agent(domain, "guest-get-vcpus", {})
        _set_on_line(domain, "guest-set-vcpus", "vcpus", "logical-id", vcpus)
        blocks = _agent(domain, "guest-get-memory-blocks", {})
        _set_on_line(domain, "guest-set-memory-blocks", "mem-blks", "phys-index", blocks)
        sees_all = len(vcpus) >= vcpu_count and tries > 1
        if sees_all or time.monotonic() > until_s:
            return
        time.sleep(_LOOK_INTERVAL_S)


def _set_on_line(domain: Any, command: str, argument: str, name: str, known: Sequence[Mapping[str, Any]]) -> None:
    off_line = [
        {name: each[name], "online": True}
        for each in known
        if each.get("online") is False and isinstance(each.get(name), int)
    ]
    if off_line:
        _agent(domain, command, {argument: off_line})


def _agent(domain: Any, command: str, arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Run a command that answers with a list; what else a guest says is taken for an empty one."""
    words = json.dumps({"execute": command, "arguments": arguments})
    answer = load_libvirt_qemu().qemuAgentCommand(domain, words, _AGENT_TIMEOUT_S, 0)
    try:
        found = json.loads(answer).get("return")
    except (ValueError, AttributeError, RecursionError):
        return []
    return [each for each in found[:_MAX_BLOCKS] if isinstance(each, dict)] if isinstance(found, list) else []


def _dimm(size_mib: int) -> etree._Element:
    memory = etree.Element("memory", {"model": "dimm"})
    target = etree.SubElement(memory, "target")
    etree.SubElement(target, "size", {"unit": "MiB"}).text = str(size_mib)
    etree.SubElement(target, "node").text = "0"
    return memory


def _tried(library: Any, what: str, change: Callable[[], object]) -> list[str]:
    """Do something that may be refused, which then waits for the next start; returns why."""
    try:
        change()
    except library.libvirtError as error:
        return [f"the {what} of what runs could not be changed: {error.get_error_message() or error}"]
    return []
