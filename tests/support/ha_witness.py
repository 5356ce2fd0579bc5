"""Sees with eyes of its own on which hosts the process of a VM lives, and what guests counted: asks none of ours."""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hypervisor.processes import VmProcess, find_vm_processes, is_alive
from tests.support.private_libvirt_host import eventually

LOOK_INTERVAL_S: Final = 0.02
_LINE: Final = re.compile(rb"([0-9A-F]{4})\n")
_BOOTS: Final = 0
"""What the guest says when it boots. See `serial_guests.DISK_COUNTER`."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Where traces of a host's VMs are."""

    pid_dir: Path
    console_dir: Path


@dataclass(slots=True)
class Run:
    """One process of a VM. It lived at least from `from_s` to `to_s`, by the monotonic clock."""

    vm_id: str
    host: str
    process: VmProcess
    from_s: float
    to_s: float
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One number that a guest said, in which process, and when it was seen."""

    host: str
    number: int
    seen_s: float
    process: VmProcess | None = None


class HaWitness:
    """Looks all the time; `most_running` is the largest number of hosts on which a VM was at one instant."""

    def __init__(self, hosts: Mapping[str, Watched]) -> None:
        self._hosts = hosts
        self._disks: dict[str, Path] = {}
        self._ends = threading.Event()
        self._offsets: dict[tuple[str, str], int] = {}
        self._rests: dict[tuple[str, str], bytes] = {}
        self._counts: dict[str, int] = {}
        self.runs: list[Run] = []
        self.lines: dict[str, list[Line]] = {}
        self.most_running = 0
        self.look_count = 0
        self.faults: list[str] = []
        self._moving: frozenset[str] = frozenset()

    @contextmanager
    def moving(self, *vm_ids: str) -> Iterator[None]:
        """Let VMs have a second process while the block lasts: one that takes in a guest, and runs nothing yet.

        That both ran at the same time still shows in what they said; see `check`.
        """
        self._moving = frozenset(vm_ids)
        try:
            yield
        finally:
            self._moving = frozenset()

    def watch(self, vm_id: str, disk: Path) -> None:
        """Watch a VM too, that counts on this disk."""
        self.lines[vm_id] = []
        self._disks[vm_id] = disk

    def alive_on(self, vm_id: str) -> list[str]:
        """Say where it lives, as it was last seen."""
        return [run.host for run in list(self.runs) if run.vm_id == vm_id and not run.is_over]

    def last_seen_s(self, vm_id: str, host: str) -> float:
        """Say when it was last seen alive on a host."""
        return max(run.to_s for run in list(self.runs) if (run.vm_id, run.host) == (vm_id, host))

    def boot_s(self, vm_id: str, host: str, after_s: float) -> float | None:
        """Say when the guest's first words since then were seen on a host."""
        seen = [line.seen_s for line in list(self.lines[vm_id]) if line.host == host and line.seen_s > after_s]
        return min(seen, default=None)

    def was_started_anew(self, vm_id: str, since_s: float) -> bool:
        """Say whether the guest booted again, anywhere; one that moved does not."""
        return any(line.number == _BOOTS and line.seen_s > since_s for line in list(self.lines[vm_id]))

    async def counts_on(self, vm_id: str, host: str, more: int = 3, deadline_s: float = 60.0) -> None:
        """Wait until the guest said some more numbers there."""
        before = len(self.lines[vm_id])

        async def look() -> bool | None:
            return sum(line.host == host for line in self.lines[vm_id][before:]) >= more or None

        await eventually(look, f"{more} more lines of {vm_id} on {host}", deadline_s)

    def check(self) -> None:
        """Check that nothing ran twice, and that of no VM two processes took turns at counting.

        The number is on the disk, and whoever runs reads it first. So each process says only larger numbers than the
        one before it; where two run, each says larger ones than the other at some time.
        """
        assert not self.faults, self.faults
        assert self.look_count > 0
        assert self.most_running <= 1
        for vm_id, lines in list(self.lines.items()):
            said: dict[tuple[str, VmProcess | None], list[int]] = {}
            for line in list(lines):
                if line.number != _BOOTS:
                    said.setdefault((line.host, line.process), []).append(line.number)
            numbers = list(itertools.chain.from_iterable(said.values()))
            assert all(earlier < later for earlier, later in itertools.pairwise(numbers)), (vm_id, said)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look in the background."""
        thread = threading.Thread(target=self._run, name="HA witness")
        thread.start()
        try:
            yield
        finally:
            self._ends.set()
            thread.join()

    def _run(self) -> None:
        while not self._ends.is_set():
            self._look()
            for vm_id, disk in list(self._disks.items()):
                self._read_consoles(vm_id)
                self._read_disk(vm_id, disk)
            self._ends.wait(LOOK_INTERVAL_S)

    def _look(self) -> None:
        """Look at all hosts, and at those again where a VM was: whatever lives both times lived in between too."""
        vm_ids = frozenset(self._disks)
        seen = {host: find_vm_processes(str(traces.pid_dir), vm_ids) for host, traces in self._hosts.items()}
        now_s = time.monotonic()
        for vm_id in vm_ids:
            places = {host: found[vm_id] for host, found in seen.items() if vm_id in found}
            if len(places) > 1 and vm_id not in self._moving:
                places = {host: process for host, process in places.items() if is_alive(process)}
                if len(places) > 1:
                    self.faults.append(f"{vm_id} ran on {sorted(places)}")
            self.most_running = max(self.most_running, 1 if vm_id in self._moving else len(places))
            self._note(vm_id, places, now_s)
        self.look_count += 1

    def _note(self, vm_id: str, places: Mapping[str, VmProcess], now_s: float) -> None:
        for host, process in places.items():
            known = [run for run in self.runs if (run.vm_id, run.host, run.process) == (vm_id, host, process)]
            if known:
                known[0].to_s = now_s
            else:
                self.runs.append(Run(vm_id, host, process, now_s, now_s))
        for run in self.runs:
            if run.vm_id == vm_id:
                run.is_over = places.get(run.host) != run.process

    def _read_consoles(self, vm_id: str) -> None:
        """Read on; what each host's guest said is kept apart, since all say it at the same pace."""
        processes = {run.host: run.process for run in self.runs if run.vm_id == vm_id}  # the newest there
        for host, traces in self._hosts.items():
            key = (vm_id, host)
            try:
                with (traces.console_dir / f"{vm_id}.log").open("rb") as log:
                    if os.fstat(log.fileno()).st_size < self._offsets.get(key, 0):
                        self._offsets[key] = 0  # the host made it anew
                    log.seek(self._offsets.get(key, 0))
                    text = log.read()
            except FileNotFoundError:
                self._offsets.pop(key, None)
                continue
            self._offsets[key] = self._offsets.get(key, 0) + len(text)
            whole, _, self._rests[key] = (self._rests.get(key, b"") + text).rpartition(b"\n")
            now_s = time.monotonic()
            words = _LINE.findall(whole + b"\n")
            self.lines[vm_id] += [Line(host, int(word, 16), now_s, processes.get(host)) for word in words]

    def _read_disk(self, vm_id: str, disk: Path) -> None:
        """Look at the counter on the disk: it never goes back."""
        with suppress(FileNotFoundError), disk.open("rb") as image:
            image.seek(512)
            count = int.from_bytes(image.read(2), "little")
            if count < self._counts.get(vm_id, 0):
                self.faults.append(f"the disk of {vm_id} went back from {self._counts[vm_id]} to {count}")
            self._counts[vm_id] = count
