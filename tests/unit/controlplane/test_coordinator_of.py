"""The configuration says through what a process coordinates with others, and whether at all."""

from __future__ import annotations

import pytest

from controlplane.composition.coordination import coordinator_of
from controlplane.composition.rules import has_second_place
from controlplane.config import ControlPlaneConfig, DatabaseSettings
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


@pytest.mark.parametrize(
    ("url", "backend", "has_one"),
    [
        ("sqlite:////var/lib/x.db", Backend.LOCAL, True),
        ("postgresql://limiquantix@db/limiquantix", Backend.LOCAL, False),
        ("postgresql://limiquantix@db/limiquantix", Backend.ETCD, True),
    ],
)
def test_marks_of_a_process_that_may_have_others_beside_it_count_only_where_all_read_them(
    url: str, backend: Backend, has_one: bool
) -> None:
    endpoints = ["http://127.0.0.1:1"] if backend is Backend.ETCD else []
    coordination = CoordinationSettings(backend=backend, endpoints=endpoints)
    config = ControlPlaneConfig(database=DatabaseSettings(url=url), coordination=coordination)
    assert has_second_place(config) == has_one
