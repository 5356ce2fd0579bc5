"""The configuration says through what a process coordinates with others, and whether at all."""

from __future__ import annotations

from controlplane.composition.coordination import coordinator_of
from controlplane.config import ControlPlaneConfig
from controlplane.coordination.etcd.coordinator import EtcdCoordinator
from controlplane.coordination.local import LocalCoordinator
from controlplane.coordination.settings import Backend, CoordinationSettings
from controlplane.ha_settings import HighAvailabilitySettings


async def test_coordinator_without_settings_is_local() -> None:
    assert isinstance(coordinator_of(ControlPlaneConfig()), LocalCoordinator)


async def test_coordinator_with_endpoints_is_etcd_and_connects_to_nothing_yet() -> None:
    settings = CoordinationSettings(backend=Backend.ETCD, endpoints=["http://127.0.0.1:1"])
    coordinator = coordinator_of(ControlPlaneConfig(coordination=settings))

    assert isinstance(coordinator, EtcdCoordinator)
    await coordinator.close()


async def test_coordinator_without_high_availability_is_none() -> None:
    assert coordinator_of(ControlPlaneConfig(ha=HighAvailabilitySettings(enabled=False))) is None
