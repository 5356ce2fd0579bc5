"""Rules of the product, broken one at a time: what the checker has to notice, or it proves nothing.

A break takes a check out of the product's own code, in a process that runs nothing else. One is of the database, which
forgets a part of what was acknowledged.
"""
# ruff: noqa: PLC0415 - the product is imported once its outside world is replaced

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

SEED_COUNT = 1000
"""Within so many seeds each must be found."""


def break_rule(name: str) -> None:
    """Break it in this process, for good."""
    RULES[name]()


class _Anything:
    """Equals all there is."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def _checks_proof() -> None:
    """VMs are moved upon the intent to fence: what decides takes it for the proof, and the operation does not look."""
    from controlplane.operations import vm_failover
    from controlplane.services import ha_observe

    ha_observe.FenceState = SimpleNamespace(PROVEN=_Anything())  # type: ignore[assignment,attr-defined]
    ha_observe.proves_dead = lambda fence, *, is_protected: True  # type: ignore[attr-defined]
    vm_failover.proves_dead = lambda fence, *, is_protected: fence is not None  # type: ignore[attr-defined]


def _waits_out() -> None:
    """A lease is taken to have ended at once."""
    from controlplane.services import ha_manager

    ha_manager._patient = lambda config, settings: replace(config, proof_wait_s=0.1)


def _self_fences() -> None:
    """Neither the daemon nor the guard kills at the end of a lease."""
    from nodedaemon.self_fencing.keeper import SelfFencing
    from nodedaemon.self_fencing.orders import Orders

    async def spare(self: SelfFencing) -> None:
        return None

    SelfFencing._kill = spare  # type: ignore[method-assign]
    Orders.must_kill = lambda self, now_ns: False  # type: ignore[method-assign]


def _checks_token() -> None:
    """A daemon does what was decided before a fence that it knows of, and needs no lease for it."""
    from nodedaemon.self_fencing.keeper import SelfFencing

    SelfFencing.require_newest = lambda self, epoch, fence_token: None  # type: ignore[method-assign]
    SelfFencing.require_lease = lambda self, vm_id: None  # type: ignore[method-assign]


def _revokes() -> None:
    """Leases are granted to whoever beats, fenced or not, and nobody objects."""
    from controlplane.services.lease_marks import LeaseMarks
    from controlplane.services.leases import Leases

    async def say_nothing(self: Leases) -> None:
        return None

    LeaseMarks.may_grant = lambda self, node_id: True  # type: ignore[method-assign]
    Leases.object = say_nothing  # type: ignore[method-assign]


def _remembers() -> None:
    """A host forgets with its daemon what it was told, and what the guard was."""
    from nodedaemon.self_fencing import memory
    from nodedaemon.self_fencing.guard_link import GuardLink

    async def remember(self: Any, known: Any) -> None:
        self._known = known

    memory.HaMemory.remember = remember  # type: ignore[method-assign]
    GuardLink.last_orders = lambda self, boot_id: None  # type: ignore[method-assign]


def _keeps_acknowledged() -> None:
    """The database forgets one in ten of the transactions that it acknowledged."""
    from tests.simulation.product.store import WeatheredStore

    class Forgotten(Exception):
        """Undoes a transaction."""

    run = WeatheredStore.run

    async def forgetful(self: WeatheredStore, work: Any) -> Any:
        kept: list[Any] = []
        forgets = self._weather.loop.random.random() < 0.1

        async def and_forget(tx: Any) -> Any:
            kept.append(await work(tx))
            if forgets:
                raise Forgotten
            return kept[-1]

        try:
            return await run(self, and_forget)
        except Forgotten:
            return kept[-1]

    WeatheredStore.run = forgetful  # type: ignore[method-assign]


RULES: dict[str, Callable[[], None]] = {
    "checks_proof": _checks_proof,
    "waits_out": _waits_out,
    "self_fences": _self_fences,
    "checks_token": _checks_token,
    "revokes": _revokes,
    "remembers": _remembers,
    "keeps_acknowledged": _keeps_acknowledged,
}
