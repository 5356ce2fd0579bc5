"""Coordination by three members of etcd of which some are killed or stopped, and by processes to which that happens.

Whatever happens: no two candidates take themselves to be elected at the same moment.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from controlplane.coordination.etcd.client import EtcdClient
from controlplane.coordination.etcd.coordinator import EtcdCoordinator
from controlplane.coordination.etcd.election import EtcdElection, boot_clock_s
from controlplane.coordination.etcd.watch import Change, KeyWatch
from controlplane.coordination.interface import CoordinationAway, RevocationMark
from etcdserverpb import rpc_pb2 as pb
from tests.support.candidate_process import CandidateProcess
from tests.support.elections import candidate, listening, until, until_elected, until_not_elected
from tests.support.etcd import EtcdCluster, EtcdMember, etcd_cluster

SESSION_TTL_S = 2
"""The shortest that etcd makes with its usual settings."""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("etcd"), 3) as cluster:
        yield cluster


@pytest.fixture
async def cluster(started: EtcdCluster) -> AsyncIterator[EtcdCluster]:
    """Three healthy members; what a test did to them is mended."""
    yield started
    await mend(started)


async def mend(cluster: EtcdCluster) -> None:
    for member in cluster.members:
        if member.is_running:
            member.go_on()
        else:
            cluster.start(member)
    await asyncio.to_thread(cluster.wait_until_healthy)


@dataclass
class Site:
    """Processes with a prefix of their own, all in this one."""

    cluster: EtcdCluster
    prefix: str = field(default_factory=lambda: f"/{uuid.uuid4()}/")
    elections: list[EtcdElection] = field(default_factory=list)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    most_elected: int = 0

    async def coordinator(self, *first: EtcdMember, ttl_s: int = SESSION_TTL_S) -> EtcdCoordinator:
        """Make one that asks some members before the others."""
        endpoints = [member.client_url for member in first]
        endpoints += [url for url in self.cluster.endpoints if url not in endpoints]
        coordinator = EtcdCoordinator(EtcdClient(endpoints), self.prefix, ttl_s)
        self.stack.push_async_callback(coordinator.close)
        return coordinator

    async def elect(self, name: str, *first: EtcdMember, ttl_s: int = SESSION_TTL_S) -> EtcdElection:
        coordinator = await self.coordinator(*first, ttl_s=ttl_s)
        election = await self.stack.enter_async_context(coordinator.elect(candidate(name)))
        self.elections.append(election)
        return election

    async def count_elected(self) -> None:
        while True:
            self.most_elected = max(self.most_elected, sum(election.is_elected for election in self.elections))
            await asyncio.sleep(0.005)


@pytest.fixture
async def site(cluster: EtcdCluster) -> AsyncIterator[Site]:
    site = Site(cluster)
    async with asyncio.TaskGroup() as group:
        counting = group.create_task(site.count_elected())
        async with site.stack:
            yield site
        counting.cancel()
    assert site.most_elected <= 1


def others_of(cluster: EtcdCluster, member: EtcdMember) -> list[EtcdMember]:
    return [other for other in cluster.members if other is not member]


async def leader_of(cluster: EtcdCluster) -> EtcdMember:
    return await asyncio.to_thread(cluster.leader)


async def test_member_that_is_asked_killed_the_elected_stays_so(cluster: EtcdCluster, site: Site) -> None:
    follower, *_ = others_of(cluster, await leader_of(cluster))
    election = await site.elect("a", follower, ttl_s=6)
    await until_elected(election)

    follower.kill()
    lost = asyncio.create_task(until_not_elected(election))
    await asyncio.wait([lost], timeout=6.5)  # longer than a session

    assert not lost.done()
    await until(lambda: election.obstacle == "")
    lost.cancel()


async def test_leading_member_killed_somebody_is_elected_again(cluster: EtcdCluster, site: Site) -> None:
    leading = await leader_of(cluster)
    elections = [await site.elect(name, leading) for name in ("a", "b")]
    marks = await site.coordinator(leading)
    await until(lambda: any(election.is_elected for election in elections))
    await marks.publish_revocation(RevocationMark("node-1", 5))

    leading.kill()
    killed_s = boot_clock_s()
    assert await eventually_reads(marks) == {"node-1": 5}
    readable_s = boot_clock_s()
    await until(lambda: any(election.is_elected and not election.obstacle for election in elections))
    print(f"\nleading member killed: reads again after {readable_s - killed_s:.2f} s")
    print(f"somebody is elected, without obstacle, after {boot_clock_s() - killed_s:.2f} s")


async def eventually_reads(coordinator: EtcdCoordinator) -> dict[str, int]:
    async with asyncio.timeout(60):
        while True:
            try:
                return await coordinator.revocations()
            except CoordinationAway:
                await asyncio.sleep(0.05)


async def test_leading_member_stopped_and_back_elects_no_second_one(cluster: EtcdCluster, site: Site) -> None:
    leading = await leader_of(cluster)
    a, b = await site.elect("a", leading), await site.elect("b", *others_of(cluster, leading))
    await until(lambda: a.is_elected or b.is_elected)

    leading.pause()
    coordinator = await site.coordinator(leading)
    assert await eventually_reads(coordinator) == {}  # which another member answers
    await until(lambda: (a.is_elected or b.is_elected) and not (a.obstacle or b.obstacle))
    leading.go_on()

    await until(lambda: not (a.obstacle or b.obstacle))
    await asyncio.sleep(SESSION_TTL_S)  # while it is counted who is elected: the member might have extended a session
    await until(lambda: a.is_elected or b.is_elected)


async def test_majority_lost_nobody_is_elected_and_it_is_said_why_until_it_is_back(
    cluster: EtcdCluster, site: Site
) -> None:
    a, b = await site.elect("a"), await site.elect("b")
    coordinator = await site.coordinator()
    await until(lambda: a.is_elected or b.is_elected)
    async with listening(coordinator, "topic") as listener:
        await until(lambda: listener.count > 0)
        heard_count = listener.count

        killed, stopped, _ = cluster.members
        killed.kill()
        stopped.pause()
        lost_s = boot_clock_s()
        for election in (a, b):
            await until_not_elected(election, SESSION_TTL_S + 1)
        ended_s = boot_clock_s()
        await until(lambda: bool(a.obstacle and b.obstacle))
        assert killed.client_url in a.obstacle
        *refused, woke = await asyncio.gather(
            coordinator.revocations(),
            coordinator.publish_revocation(RevocationMark("node-1", 5)),
            coordinator.clear_revocation(RevocationMark("node-1", 5)),
            coordinator.check(),
            coordinator.leader(),
            coordinator.wake("topic"),
            return_exceptions=True,
        )
        assert [type(error) for error in refused] == [CoordinationAway] * 5
        assert all(url in str(refused[0]) for url in cluster.endpoints)
        assert woke is None

        back_s = boot_clock_s()
        await mend(cluster)
        await until(lambda: a.is_elected or b.is_elected)
        again_s = boot_clock_s()
        await until(lambda: not (a.obstacle or b.obstacle))
        await until(lambda: listener.count > heard_count)
    print(f"\nmajority lost: ended after {ended_s - lost_s:.2f} s; back: elected after {again_s - back_s:.2f} s")


async def test_watch_continues_at_another_member_with_nothing_lost(cluster: EtcdCluster, site: Site) -> None:
    follower, *others = others_of(cluster, await leader_of(cluster))
    key = f"{site.prefix}watched".encode()
    watching = EtcdClient([follower.client_url, *(member.client_url for member in others)])
    writing = EtcdClient([member.client_url for member in others] + [(await leader_of(cluster)).client_url])
    site.stack.push_async_callback(watching.close)
    site.stack.push_async_callback(writing.close)
    changes = KeyWatch(watching, key).changes()
    async with aclosing(changes), asyncio.timeout(60):
        assert await anext(changes) is Change.CONNECTED
        follower.kill()
        await writing.put(pb.PutRequest(key=key, value=b"while nobody was connected"))

        seen = [await anext(changes)]
        while seen[-1] is not Change.PUT:
            seen.append(await anext(changes))

    assert set(seen) == {Change.CONNECTED, Change.PUT}


async def test_watch_of_a_stopped_member_continues_at_another(cluster: EtcdCluster, site: Site) -> None:
    follower, *others = others_of(cluster, await leader_of(cluster))
    coordinator, other = await site.coordinator(follower), await site.coordinator(*others)
    async with listening(coordinator, "topic") as listener:
        await until(lambda: listener.count == 1)

        follower.pause()
        await other.wake("topic")

        await until(lambda: listener.count >= 2)
        assert await other.leader() is None, "a hint elects nobody"


@asynccontextmanager
async def process_of(site: Site, directory: Path, ttl_s: int) -> AsyncIterator[CandidateProcess]:
    """Run an elected process."""
    process = CandidateProcess.start(directory, "process", site.prefix, ttl_s, site.cluster.endpoints)
    try:
        await until(lambda: process.is_elected)
        yield process
    finally:
        process.kill()


async def test_elected_process_killed_the_next_is_elected_when_its_session_ends(site: Site, tmp_path: Path) -> None:
    async with process_of(site, tmp_path, 5) as process:
        election = await site.elect("b", ttl_s=5)
        await until(lambda: not election.obstacle)

        process.kill()
        killed_s = boot_clock_s()
        await until_elected(election)

        print(f"\nelected process killed: next after {boot_clock_s() - killed_s:.2f} s with a session of 5 s")
        # A member that has to lead anew meanwhile, as on a busy machine, gives every session its whole time again.
        assert boot_clock_s() - killed_s < 3 * 5


async def test_elected_process_paused_is_no_longer_elected_when_it_goes_on(site: Site, tmp_path: Path) -> None:
    async with process_of(site, tmp_path, SESSION_TTL_S) as process:
        election = await site.elect("b")
        await until(lambda: not election.obstacle)

        process.pause()
        await until_elected(election)
        elected_s = boot_clock_s()
        process.go_on()
        look_count = len(process.looks())
        await until(lambda: len(process.looks()) > look_count + 20)

        assert not process.is_elected
        assert max(look.began_s for look in process.looks() if look.is_elected) < elected_s
        assert election.is_elected
