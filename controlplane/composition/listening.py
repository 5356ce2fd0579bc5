"""What hears nodes and gives them leases."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.composition import rules
from controlplane.composition.core import Core
from controlplane.composition.rules import utc_now
from controlplane.coordination.interface import Coordinator
from controlplane.ha.model import ShutdownPolicy
from controlplane.services.ha_clock import clock_s
from controlplane.services.hearing import Hearing
from controlplane.services.heartbeats import HeartbeatService
from controlplane.services.leases import Leases
from controlplane.services.shutdowns import ShutdownService


@dataclass(frozen=True, slots=True)
class Listening:
    """What was heard, what answers, and, with high availability, what grants leases."""

    hearing: Hearing
    heartbeats: HeartbeatService
    shutdowns: ShutdownService
    leases: Leases | None


def listening_of(core: Core, coordinator: Coordinator | None) -> Listening:
    """Build it; nothing runs yet. Without a coordinator there are no leases, and silent nodes are only marked."""
    hearing = Hearing(began_s=clock_s())
    leases = None
    if coordinator is not None:
        leases = Leases(
            core.store,
            coordinator,
            core.config.ha.times,
            hearing,
            core.worker.replica_id,
            has_second_place=rules.has_second_place(core.config),
        )
    has_leases = leases is not None
    config = rules.heartbeat_config(core.config, has_leases=has_leases)
    policy = core.config.ha.shutdown_policy if has_leases else ShutdownPolicy.FREEZE
    return Listening(
        hearing,
        HeartbeatService(core.store, utc_now, config, hearing=hearing, leases=leases, kept=core.memory.kept),
        ShutdownService(core.store, hearing, core.moves, policy, utc_now),
        leases,
    )
