"""A place where several processes coordinate, once for every kind: makes one coordinator for each of them."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from controlplane.coordination.etcd.client import EtcdClient
from controlplane.coordination.etcd.coordinator import EtcdCoordinator
from controlplane.coordination.interface import Coordinator
from controlplane.coordination.local import LocalCoordinator, LocalSite
from tests.simulation.product.coordination import SimCoordinator, Site
from tests.support.etcd import EtcdCluster, etcd_cluster

SESSION_S = 60
"""None ends here while it is waited for."""
MakeCoordinator = Callable[[], Coordinator]


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One member of etcd for all tests; each has a prefix of its own."""
    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["local", "etcd", "simulated"])
async def make_coordinator(request: pytest.FixtureRequest) -> AsyncIterator[MakeCoordinator]:
    """Make the coordinator of one more process."""
    made: list[Coordinator] = []
    if request.param == "local":
        site = LocalSite()

        def make() -> Coordinator:
            made.append(LocalCoordinator(site))
            return made[-1]
    elif request.param == "simulated":
        place = Site(time.monotonic, random.Random(0), SESSION_S)

        def make() -> Coordinator:
            made.append(SimCoordinator(place, f"plane-{len(made)}"))
            return made[-1]
    else:
        cluster: EtcdCluster = request.getfixturevalue("etcd")
        prefix = f"/{uuid.uuid4()}/"

        def make() -> Coordinator:
            made.append(EtcdCoordinator(EtcdClient(cluster.endpoints), prefix, session_ttl_s=SESSION_S))
            return made[-1]

    yield make
    for coordinator in made:
        await coordinator.close()
