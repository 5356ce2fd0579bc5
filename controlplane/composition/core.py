"""What everything else of a process stands on: the store, the hosts, and the operations."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta

from controlplane.composition import rules
from controlplane.composition.rules import utc_now
from controlplane.config import ControlPlaneConfig
from controlplane.daemons.grpc_calls import CallTimeouts
from controlplane.daemons.grpc_pool import GrpcDaemonPool
from controlplane.domain.admission import NOTHING_KEPT
from controlplane.events.compaction import CompactionConfig, EventLogCompactor
from controlplane.events.hub import EventHub
from controlplane.events.waking_store import WakingStore
from controlplane.events.watch import Watches
from controlplane.operations.catalogue import with_scheduler
from controlplane.operations.desk import OperationDesk
from controlplane.operations.moves import Moves
from controlplane.operations.news import OperationNews
from controlplane.operations.node_drain import DrainNode
from controlplane.operations.runner import RetryPolicy, Runner
from controlplane.operations.worker import OperationWorker
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.migrations import MigrationService
from controlplane.services.moves import VmMoves
from controlplane.services.placement import NodeMemory
from controlplane.services.room_rules import KeptRoomRules
from controlplane.services.targets import failover_chooser, target_chooser
from controlplane.services.vm_calls import VmAccess
from controlplane.state.interface import Store
from limiquantix.rpc.credentials import MachineCredentials


@dataclass(frozen=True, slots=True)
class Core:
    """The parts that several others use."""

    config: ControlPlaneConfig
    store: Store
    hub: EventHub
    watches: Watches
    compactor: EventLogCompactor
    daemons: GrpcDaemonPool
    scheduler: SchedulerConfig
    memory: NodeMemory
    worker: OperationWorker
    desk: OperationDesk
    access: VmAccess
    migrations: MigrationService
    moves: Moves


def core_of(
    config: ControlPlaneConfig, database: Store, *, restarts_vms: bool, machine: MachineCredentials | None = None
) -> Core:
    """Build them; nothing runs yet.

    Args:
        machine: what daemons are shown; None where they are parts of this process.
        restarts_vms: whether VMs of failed nodes are restarted elsewhere, so that room is kept for them.
    """
    hub = EventHub(database)
    store = WakingStore(database, hub.wake)
    daemons = GrpcDaemonPool(CallTimeouts(), machine)
    kept_room = config.ha.admission.kept_room if restarts_vms else NOTHING_KEPT
    scheduler, memory = SchedulerConfig(config.scheduler.strategy, kept_room=kept_room), NodeMemory()
    choose, migrating = target_chooser(scheduler, memory), rules.migration_rules(config)
    # What moves VMs needs the desk, and the desk all workflows: so a drain asks for it when it begins.
    choose_after_failure = failover_chooser(scheduler, memory)
    room = KeptRoomRules(scheduler, memory)
    workflows = with_scheduler(choose, choose_after_failure, migrating, room).with_(DrainNode(lambda: moves, room=room))
    news = OperationNews()
    runner = Runner(store, daemons, workflows, utc_now, RetryPolicy(), news.changed)
    worker = OperationWorker(store, runner, news, utc_now, rules.worker_config(config), socket.gethostname())
    desk = OperationDesk(store, workflows, worker, news, utc_now)
    access = VmAccess(store, daemons, desk)
    migrations = MigrationService(access, choose, migrating)
    moves: Moves = VmMoves(migrations, desk)
    retention = CompactionConfig(retention=timedelta(days=config.events.retention_days))
    return Core(
        config=config,
        store=store,
        hub=hub,
        watches=Watches(database, hub),
        compactor=EventLogCompactor(store, utc_now, retention),
        daemons=daemons,
        scheduler=scheduler,
        memory=memory,
        worker=worker,
        desk=desk,
        access=access,
        migrations=migrations,
        moves=moves,
    )
