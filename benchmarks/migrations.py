"""Live migration of a real guest, ours against `virsh migrate --live` of the same guest in the same run.

Two hosts on this machine, each with a libvirt daemon in a network of its own, share their storage and speak TLS. A
small Linux counts on its console all the time. It goes there by one and comes back by the other, in turn. Ours is the
whole sequence that the control plane asks of two node daemons (make ready, let in, send, tidy up); how long the guest
stood still is read from libvirt, in the same way for both. Nothing may be missing on the console at the end, and
nothing twice, as it would be if two copies of the guest ran at any moment.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lxml import etree

from benchmarks.cluster import tell
from benchmarks.measurement import Goal, Pair, Row, Section, compare
from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.libvirt_hosts import running_hosts, why_no_hosts
from tests.support.libvirt_nodes import (
    LibvirtNode,
    begin_counting,
    clean,
    counted_numbers,
    libvirt_nodes,
    linux_spec,
    run,
)
from tests.support.node_pairs import Move
from tests.support.private_libvirt_host import virsh

TITLE = "live migration of a Linux guest, ours against virsh migrate --live of the same guest; lower is better"
GOAL = Goal(limit=1.2)
_WARM_UP_PAIRS: Final = 1
_REST_S: Final = 0.5
"""How long a guest runs between two moves: what it writes to memory meanwhile has to be sent."""
_DOWNTIME: Final = re.compile(r"^Total downtime:\s+(\d+)\s+ms", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Took:
    """Milliseconds of one move: the guest stood still, its transfer, and everything."""

    downtime: float
    transfer: float
    whole: float


@dataclass(frozen=True, slots=True)
class _Turn:
    ours: _Took
    direct: _Took


async def measure_migrations(pair_count: int) -> Section:
    """Run this part; on a machine without what it needs, say why not."""
    with tempfile.TemporaryDirectory(prefix="limiquantix-bench-") as name:
        directory = Path(name)
        if reason := await why_no_hosts(directory):
            return Section("migrations", TITLE, skipped=reason)
        async with (
            running_hosts(directory) as hosts,
            libvirt_nodes((hosts[0], hosts[1]), directory, shared=True) as nodes,
        ):
            tell(f"{pair_count} pairs of live migrations")
            guest = await _Guest.start(nodes)
            for _ in range(_WARM_UP_PAIRS):
                await guest.there_and_back(ours_first=True)
            turns = [await guest.there_and_back(ours_first=number % 2 == 0) for number in range(pair_count)]
            line_count = await guest.check_console()
            for node in nodes:
                await clean(node)
    notes = (f"{line_count:,} lines of the guest's console: none lost, none twice, all in order",)
    return Section("migrations", TITLE, _rows(turns), notes=notes)


def _rows(turns: Sequence[_Turn]) -> tuple[Row, ...]:
    downtimes = [Pair(turn.ours.downtime, turn.direct.downtime) for turn in turns]
    transfers = [Pair(turn.ours.transfer, turn.direct.transfer) for turn in turns]
    wholes = [Pair(turn.ours.whole, turn.direct.whole) for turn in turns]
    return (
        compare("guest stands still", downtimes, "ms", GOAL),
        compare("transfer", transfers, "ms"),
        compare("whole sequence", wholes, "ms"),
    )


class _Guest:
    """One VM that goes to and fro."""

    def __init__(self, nodes: tuple[LibvirtNode, LibvirtNode], vm_id: str, spec: pb.VMSpec) -> None:
        self._nodes = nodes
        self._vm_id = vm_id
        self._spec = spec
        self._generation = 10
        self._place = 0
        self._text = b""
        self._log = (self._log_path(0), 0)

    @classmethod
    async def start(cls, nodes: tuple[LibvirtNode, LibvirtNode]) -> _Guest:
        """Boot it and have it count."""
        spec = await linux_spec(nodes)
        vm_id = await run(nodes[0], spec)
        await begin_counting(nodes[0], vm_id)
        return cls(nodes, vm_id, spec)

    async def there_and_back(self, *, ours_first: bool) -> _Turn:
        """Move it to the other host by one, and back by the other."""
        if ours_first:
            ours = await self._move_ours()
            return _Turn(ours, await self._move_directly())
        direct = await self._move_directly()
        return _Turn(await self._move_ours(), direct)

    async def check_console(self) -> int:
        """Check that the guest's count is whole; returns how many lines there were.

        Raises:
            RuntimeError: it is not.
        """
        path, offset = self._log
        text = self._text + (await asyncio.to_thread(path.read_bytes))[offset:]
        numbers = counted_numbers(text)
        if numbers != list(range(len(numbers))):
            wrong = next(place for place, number in enumerate(numbers) if place != number)
            raise RuntimeError(f"the guest's console says {numbers[wrong]} in place of {wrong}")
        return len(numbers)

    async def _move_ours(self) -> _Took:
        source, target = self._nodes[self._place], self._nodes[1 - self._place]
        self._generation += 1
        move = Move(source, target, self._vm_id, self._spec, generation=self._generation)
        await asyncio.sleep(_REST_S)
        before = await self._sizes()
        began_s = time.perf_counter()
        token = await move.prepare()
        await move.receive(token)
        sent_s = time.perf_counter()
        messages = await move.send(token)
        arrived_s = time.perf_counter()
        if messages[-1].phase != pb.MIGRATION_PHASE_COMPLETE:
            raise RuntimeError(f"our migration failed: {messages[-1].error}")
        await self._note_arrival(before)
        tidy_s = time.perf_counter()
        await move.end(moved=True)
        ended_s = time.perf_counter()
        transfer_s, tidying_s = arrived_s - sent_s, ended_s - tidy_s
        whole_s = arrived_s - began_s + tidying_s
        return _Took(await self._downtime_ms(), transfer_s * 1000, whole_s * 1000)

    async def _move_directly(self) -> _Took:
        source, target = self._nodes[self._place].host, self._nodes[1 - self._place].host
        await asyncio.sleep(_REST_S)
        before = await self._sizes()
        began_s = time.perf_counter()
        await virsh(
            source.uri,
            *("migrate", self._vm_id, target.tls_uri, "--live", "--p2p", "--tls"),
            *("--persistent", "--undefinesource", "--unsafe", "--migrateuri", f"tcp://{target.address}"),
        )
        took_ms = (time.perf_counter() - began_s) * 1000
        await self._note_arrival(before)
        return _Took(await self._downtime_ms(), took_ms, took_ms)

    async def _downtime_ms(self) -> float:
        text = await virsh(self._nodes[self._place].host.uri, "domjobinfo", self._vm_id, "--completed")
        if (found := _DOWNTIME.search(text)) is None:
            raise RuntimeError(f"libvirt does not say how long the guest stood still: {text}")
        return float(found[1])

    # the console, which goes on in another file wherever the guest is

    def _log_path(self, place: int) -> Path:
        return self._nodes[place].directory / "data" / "console" / f"{self._vm_id}.log"

    async def _sizes(self) -> dict[Path, int]:
        paths = [self._log_path(place) for place in (0, 1)]
        return {path: path.stat().st_size if path.exists() else 0 for path in paths}

    async def _note_arrival(self, before: dict[Path, int]) -> None:
        """Keep what was written where it was, before that is removed, and go on where it writes now."""
        self._place = 1 - self._place
        document = await virsh(self._nodes[self._place].host.uri, "dumpxml", self._vm_id)
        element = etree.fromstring(document.encode()).find("devices/serial/log")
        path = self._log[0] if element is None else Path(element.get("file", ""))
        old, offset = self._log
        if path != old:
            self._text += (await asyncio.to_thread(old.read_bytes))[offset:]
            self._log = (path, before.get(path, 0))
