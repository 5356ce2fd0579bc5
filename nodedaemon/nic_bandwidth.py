"""Keep VMs' network cards within their bandwidth, by the kernel's queues on what the cards are plugged into.

Why not libvirt's own `<bandwidth>`: it needs the queue `sfq` and the action `police`, which not every kernel has. A
token bucket (`tbf`) does for traffic towards the guest. A queue only holds back what leaves an interface, so traffic
from the guest is sent through an intermediate device (`ifb`) that has a bucket of its own.

The ceilings are kept with the VM by the hypervisor layer. An interface is made anew at each start, without queues, so
they are put there whenever a VM was started, and for all VMs when the daemon was. Source: tc-tbf(8), tc-mirred(8).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from hypervisor.base import Hypervisor
from hypervisor.devices import AttachedNic
from hypervisor.errors import HypervisorError
from hypervisor.types import EventKind, NicBandwidth, VmEvent
from limiquantix.errors import FailedPrecondition, Reason

COMMAND_DEADLINE_S: Final = 10.0
MIN_BURST_BYTES: Final = 65_536
"""One segment as large as a guest may hand over at once; a smaller bucket would never let it pass."""
BURST_S: Final = 0.01
"""What may pass at once unless the caller says, in time at the full rate: the kernel's timers are about that coarse."""
LATENCY: Final = "50ms"
"""How long a packet may wait before it is dropped."""
_RETRY_S: Final = 5.0
_ALL, _ORPHANS = "all", "orphans"
"""In place of a VM's id, which these are not: look at every VM; remove what ended VMs left."""
_BEGINS: Final = frozenset({EventKind.STARTED, EventKind.MIGRATED_IN})
_ENDS: Final = frozenset(
    {EventKind.STOPPED, EventKind.CRASHED, EventKind.SUSPENDED, EventKind.REMOVED, EventKind.MIGRATED_OUT}
)
_IFB_PREFIX: Final = "lq-"
_MAX_NAME_LENGTH: Final = 15
_INTERFACE: Final = re.compile(r"[A-Za-z0-9._-]{1,12}")
_NET_DEVICES: Final = Path("/sys/class/net")
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"

_log = structlog.get_logger(__name__)


class ShapingFailed(Exception):
    """The kernel or a tool refused; the message holds its words."""


class NicBandwidths:
    """Puts ceilings into force.

    Args:
        net_devices: where the kernel lists network interfaces.
    """

    def __init__(self, hypervisor: Hypervisor, net_devices: Path = _NET_DEVICES) -> None:
        self._hypervisor = hypervisor
        self._net_devices = net_devices
        self._news: asyncio.Queue[str] = asyncio.Queue()
        self._waiting: set[str] = set()

    def on_event(self, event: VmEvent) -> None:
        """Take note that a VM was started or ended, or that such events may have been missed; for the hypervisor."""
        if event.kind in _BEGINS:
            self._note(event.vm_id)
        elif event.kind is EventKind.RESYNC:
            self._note(_ALL)
        elif event.kind in _ENDS:
            self._note(_ORPHANS)

    async def run(self) -> None:
        """Put the ceilings of every VM into force, then of each that is started, until cancelled."""
        self._note(_ALL)
        while True:
            vm_id = await self._news.get()
            self._waiting.discard(vm_id)
            try:
                if vm_id == _ALL:
                    await self._settle_all()
                elif vm_id == _ORPHANS:
                    await asyncio.to_thread(self._remove_orphans)
                else:
                    await self.settle(vm_id)
            except (HypervisorError, TimeoutError) as error:
                _log.warning("bandwidth_not_looked_at", vm_id=vm_id, error=str(error))
                await asyncio.sleep(_RETRY_S)
                self._note(vm_id)
            except ShapingFailed as error:
                _log.error("bandwidth_not_limited", vm_id=vm_id, error=str(error))

    async def settle(self, vm_id: str) -> None:
        """Put the ceilings of a VM's cards into force, if it runs.

        Raises:
            ShapingFailed: that cannot be done here.
        """
        if self._hypervisor.devices is None:
            return
        for nic in (await self._hypervisor.devices.list(vm_id)).nics:
            await self._settle_nic(nic)

    async def require(self, vm_id: str) -> None:
        """Put the ceilings of a VM's cards into force because somebody asked for it.

        Raises:
            FailedPrecondition: that cannot be done here.
        """
        try:
            await self.settle(vm_id)
        except ShapingFailed as error:
            raise FailedPrecondition(
                Reason.HOST_LACKS,
                f"the host of VM {vm_id} cannot limit the bandwidth of a network card: {error}",
                metadata={"vm_id": vm_id},
            ) from error

    def _note(self, vm_id: str) -> None:
        if vm_id not in self._waiting:
            self._waiting.add(vm_id)
            self._news.put_nowait(vm_id)

    async def _settle_all(self) -> None:
        await asyncio.to_thread(self._remove_orphans)
        for vm in await self._hypervisor.list():
            if vm.is_managed:
                self._note(vm.vm_id)

    async def _settle_nic(self, nic: AttachedNic) -> None:
        name = nic.host_interface
        if not name or not (self._net_devices / name).exists():
            return  # it does not run, or only a simulation does
        if not _INTERFACE.fullmatch(name):
            raise ShapingFailed(f"no intermediate device can be named after the interface {name!r}")
        await asyncio.to_thread(self._shape, name, nic.config.bandwidth)

    def _shape(self, name: str, bandwidth: NicBandwidth) -> None:
        """Give an interface its queues, or take them away. Repeatable."""
        ifb = f"{_IFB_PREFIX}{name}"[:_MAX_NAME_LENGTH]
        has_ifb = (self._net_devices / ifb).exists()
        if bandwidth.to_guest_bytes_s:
            _run("tc", "qdisc", "replace", "dev", name, "root", *_bucket(bandwidth.to_guest_bytes_s, bandwidth))
        elif _has_bucket(name):
            _run("tc", "qdisc", "del", "dev", name, "root")
        if bandwidth.from_guest_bytes_s:
            if not has_ifb:
                _run("ip", "link", "add", ifb, "type", "ifb")
            _run("ip", "link", "set", ifb, "up")
            _run("tc", "qdisc", "replace", "dev", ifb, "root", *_bucket(bandwidth.from_guest_bytes_s, bandwidth))
            if not has_ifb:
                _run("tc", "qdisc", "replace", "dev", name, "ingress")
                redirect = ("action", "mirred", "egress", "redirect", "dev", ifb)
                everything = ("protocol", "all", "prio", "1", "u32", "match", "u32", "0", "0")
                _run("tc", "filter", "replace", "dev", name, "parent", "ffff:", *everything, *redirect)
        elif has_ifb:
            _run("tc", "qdisc", "del", "dev", name, "ingress", may_fail=True)
            _run("ip", "link", "del", ifb)

    def _remove_orphans(self) -> None:
        """Remove intermediate devices of interfaces that are gone."""
        for path in self._net_devices.glob(f"{_IFB_PREFIX}*"):
            if not (self._net_devices / path.name.removeprefix(_IFB_PREFIX)).exists():
                _run("ip", "link", "del", path.name, may_fail=True)


def _bucket(rate_bytes_s: int, bandwidth: NicBandwidth) -> tuple[str, ...]:
    """Say a token bucket as tc takes it; there, "bps" is bytes per second and "b" bytes."""
    burst_bytes = max(bandwidth.burst_bytes, int(rate_bytes_s * BURST_S), MIN_BURST_BYTES)
    return ("tbf", "rate", f"{rate_bytes_s}bps", "burst", f"{burst_bytes}b", "latency", LATENCY)


def _has_bucket(name: str) -> bool:
    return "qdisc tbf" in _run("tc", "qdisc", "show", "dev", name, "root", may_fail=True)


def _run(program: str, *words: str, may_fail: bool = False) -> str:
    """Run a tool; returns what it printed.

    Raises:
        ShapingFailed: it is not there, or complained.
    """
    found = shutil.which(program, path=_PATH)
    if found is None:
        if may_fail:
            return ""
        raise ShapingFailed(f"{program} is not installed (package iproute2)")
    try:
        return _finished([found, *words], may_fail=may_fail)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ShapingFailed(f"{program} could not be run: {error}") from error


def _finished(words: Sequence[str], *, may_fail: bool) -> str:
    process = subprocess.run(
        list(words),
        check=False,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        stdin=subprocess.DEVNULL,
        env={"PATH": _PATH, "LC_ALL": "C", "HOME": os.environ.get("HOME", "/")},
    )
    if process.returncode != 0 and not may_fail:
        raise ShapingFailed(process.stderr.strip()[:200] or f"{words[0]} ended with {process.returncode}")
    return process.stdout
