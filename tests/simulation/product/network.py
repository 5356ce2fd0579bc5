"""Links between machines, which lose messages, are late, deliver twice, and are cut in one direction each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.product.loop import Process, VirtualLoop

if TYPE_CHECKING:
    from tests.simulation.product.wire import SimServer


@dataclass(frozen=True)
class Trap:
    """Holds the next message to a machine that calls one of some methods, and has something happen then."""

    target: str
    methods: frozenset[str]
    hold_s: float
    sprung: Callable[[], None]


@dataclass
class Listener:
    """Who serves at an address."""

    process: Process
    server: SimServer


class Network:
    """All links between machines, and who listens where; one a history, `Network.current`."""

    current: Network

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.cut: set[tuple[str, str]] = set()
        self.loss = 0.0
        self.slow_s = 0.0
        self.straggle = 0.0
        self.is_calm = False
        self.listeners: dict[str, Listener] = {}
        self.sites: dict[str, str] = {}
        """The machine that has an address, by the address without its port."""
        self.off: set[str] = set()
        """Machines without power."""
        self.traps: list[Trap] = []
        Network.current = self

    def send(self, source: str, target: str, deliver: Callable[[], None]) -> bool:
        """Have a message arrive at some time, or twice; returns False if it may never arrive."""
        draw = self.loop.random
        if (source, target) in self.cut or draw.random() < self.loss:
            if not self.is_calm and draw.random() < 0.15:
                self.loop.outside(draw.uniform(1.0, 40.0), deliver)
            return False
        delay_s = 0.0005 + 0.005 * draw.random() + self.slow_s * draw.random()
        if draw.random() < self.straggle:
            delay_s += draw.uniform(1.0, 40.0)
        self.loop.outside(delay_s, deliver)
        if not self.is_calm and draw.random() < 0.005:
            self.loop.outside(delay_s + draw.expovariate(0.2), deliver)
        return True

    def call(self, source: str, target: str, method: str, deliver: Callable[[], None]) -> bool:
        """Have a call arrive, see `send`; one that is trapped does so long after."""
        name = method.rpartition("/")[2]
        for trap in self.traps:
            if trap.target == target and name in trap.methods:
                self.traps.remove(trap)
                self.loop.note(f"{name} from {source} to {target} hangs for {trap.hold_s:.1f} s")
                self.loop.outside(trap.hold_s, deliver)
                trap.sprung()
                return False
        return self.send(source, target, deliver)

    def site(self, address: str) -> str:
        """Name the machine that has an address."""
        return self.sites[address.rpartition(":")[0]]
