"""Balancing and alerts."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.composition import rules
from controlplane.composition.core import Core
from controlplane.composition.rules import utc_now
from controlplane.services.alert_watch import AlertWatch, Thresholds
from controlplane.services.alerts import AlertService
from controlplane.services.balancer import Balancer
from controlplane.services.balancing import BalancingService
from controlplane.services.balancing_costs import HostMeter
from controlplane.services.balancing_loads import FeedUsage, LoadReader
from controlplane.services.balancing_moves import BalancingMoves
from controlplane.services.hearing import Hearing
from controlplane.services.metrics_feeds import MetricsFeeds


@dataclass(frozen=True, slots=True)
class Balancing:
    """What balances, and what tells of it."""

    service: BalancingService
    moves: BalancingMoves
    alerts: AlertService
    balancer: Balancer


def balancing_of(core: Core, feeds: MetricsFeeds, hearing: Hearing) -> Balancing:
    """Build it; nothing runs yet."""
    store, settings = core.store, core.config.drs
    alerts = AlertService(store, utc_now)
    meter = HostMeter(core.daemons)
    loads = LoadReader(store, FeedUsage(feeds), rules.load_config(core.config), meter, hearing)
    service = BalancingService(store, loads, rules.balancing_config(core.config), utc_now)
    moves = BalancingMoves(store, service, core.migrations, core.desk, utc_now, copies_disks=settings.copies_disks)
    thresholds = Thresholds(settings.cpu_threshold_percent, settings.memory_threshold_percent)
    watch = AlertWatch(store, alerts, thresholds, core.memory.kept)
    return Balancing(service, moves, alerts, Balancer(store, service, moves, watch, alerts, utc_now))
