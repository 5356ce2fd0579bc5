"""What somebody else wrote among our keys of etcd only keeps them from being read, and it is said which key it is."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from controlplane.coordination.etcd.client import EtcdClient
from controlplane.coordination.etcd.coordinator import EtcdCoordinator
from controlplane.coordination.interface import Candidate, CoordinationAway, RevocationMark
from etcdserverpb import rpc_pb2 as pb
from tests.support.etcd import EtcdCluster


@dataclass
class Shared:
    """A cluster's keys, which somebody else writes too."""

    prefix: str
    client: EtcdClient
    coordinator: EtcdCoordinator

    async def write(self, name: str, value: bytes) -> None:
        await self.client.put(pb.PutRequest(key=f"{self.prefix}{name}".encode(), value=value))


@pytest.fixture
async def shared(etcd: EtcdCluster) -> AsyncIterator[Shared]:
    prefix, client = f"/{uuid.uuid4()}/", EtcdClient(etcd.endpoints)
    yield Shared(prefix, client, EtcdCoordinator(client, prefix, session_ttl_s=5))
    await client.close()


@pytest.mark.parametrize(
    ("name", "value"), [("revoked/node-2", b"seven"), ("revoked/\udc80", b"7")], ids=["no number", "no text"]
)
async def test_revocations_with_one_that_cannot_be_read_are_not_told_at_all(
    shared: Shared, name: str, value: bytes
) -> None:
    await shared.coordinator.publish_revocation(RevocationMark("node-1", 7))
    key = f"{shared.prefix}{name}".encode(errors="surrogateescape")
    await shared.client.put(pb.PutRequest(key=key, value=value))

    with pytest.raises(CoordinationAway, match=r"revoked/.*which is not ours; delete it"):
        await shared.coordinator.revocations()

    await shared.client.txn(pb.TxnRequest(success=[pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))]))
    assert await shared.coordinator.revocations() == {"node-1": 7}


@pytest.mark.parametrize("value", [b"not JSON", b"[1]", b'{"id": "a"}', b"\xff"])
async def test_leader_that_cannot_be_read_is_told_of(shared: Shared, value: bytes) -> None:
    await shared.write("leader", value)

    with pytest.raises(CoordinationAway, match=r"leader.*which is not ours"):
        await shared.coordinator.leader()


async def test_leader_of_a_later_version_is_read(shared: Shared) -> None:
    await shared.write("leader", b'{"id": "a", "hostname": "h", "address": "h:1", "zone": "z"}')

    assert await shared.coordinator.leader() == Candidate("a", "h", "h:1")
