"""High availability: what decides about nodes that fall silent, and tells people."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from controlplane.api.ha_servicer import HaServicer
from controlplane.composition.core import Core
from controlplane.composition.listening import Listening
from controlplane.composition.rules import utc_now
from controlplane.coordination.interface import Candidate, Coordinator
from controlplane.coordination.settings import Backend
from controlplane.ha.step import step
from controlplane.power.factory import FileControllers, NoControllers
from controlplane.power.interface import PowerControllers
from controlplane.services.alerts import AlertService
from controlplane.services.guest_keeper import GuestKeeper
from controlplane.services.ha import HaService, confirmation_s
from controlplane.services.ha_alerts import HaAlerts
from controlplane.services.ha_effects import Effects, FenceMarks
from controlplane.services.ha_forecast import HaForecaster
from controlplane.services.ha_manager import HaManager, HaParts
from controlplane.services.ha_observe import Observer
from controlplane.services.ha_power import PowerCuts
from controlplane.services.ha_rivals import Rivals
from controlplane.services.ha_status import HaStatusService
from controlplane.services.ha_view import ManagerView

SWITCHED_OFF = "high availability is switched off in the configuration of the control plane (ha.enabled)"


@dataclass(frozen=True, slots=True)
class HighAvailability:
    """What decides, which is None where it is switched off, what people ask, and what watches over guests."""

    servicer: HaServicer
    manager: HaManager | None
    guests: GuestKeeper


def high_availability_of(
    core: Core, alerts: AlertService, listening: Listening, coordinator: Coordinator | None
) -> HighAvailability:
    """Build it; nothing runs yet. Without a coordinator it is switched off."""
    store, hearing, times = core.store, listening.hearing, core.config.ha.times
    controllers = _controllers(core)
    manager = None if coordinator is None else _manager(core, alerts, listening, coordinator, controllers)
    inactive = SWITCHED_OFF if manager is None else ""
    view = None if manager is None else ManagerView(manager, utc_now)
    forecaster = HaForecaster(store, core.scheduler, core.memory)
    kept = core.scheduler.kept_room.words
    status = HaStatusService(store, hearing, times, controllers, view, forecaster, kept, inactive)
    return HighAvailability(
        HaServicer(
            HaService(
                store,
                hearing,
                utc_now,
                times.suspect_after_s,
                inactive,
                confirmation_s=confirmation_s(times),
            ),
            status,
        ),
        manager,
        # Without an election there is one process, or each asks for the same.
        GuestKeeper(store, core.daemons, core.desk, alerts, lambda: manager is None or manager.is_leader),
    )


def _controllers(core: Core) -> PowerControllers:
    path = core.config.power.devices_path
    return NoControllers() if path is None else FileControllers(path)


def _manager(
    core: Core, alerts: AlertService, listening: Listening, coordinator: Coordinator, controllers: PowerControllers
) -> HaManager:
    config, store = core.config, core.store
    parts = HaParts(
        store=store,
        coordinator=coordinator,
        hearing=listening.hearing,
        observer=Observer(store, core.scheduler, core.memory.kept),
        effects=Effects(store, core.desk, FenceMarks(coordinator), utc_now),
        power=PowerCuts(store, controllers, config.power.limit_s),
        alerts=HaAlerts(alerts),
        step=step,
        config=config.ha.rules,
        now=utc_now,
        record_age=listening.heartbeats.patience,
        rivals=Rivals(store, core.worker.replica_id) if config.coordination.backend is Backend.LOCAL else None,
    )
    return HaManager(parts, Candidate(core.worker.replica_id, socket.gethostname(), config.grpc.listen_address))
