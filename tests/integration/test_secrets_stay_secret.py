"""Secrets of a VM go to its host and are found nowhere else; `test_canaries` has every other method and answer."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from google.protobuf.message import Message

from controlplane.api.audit_servicer import to_message
from controlplane.audit.chain import ChainKey
from controlplane.audit.trail import Trail
from controlplane.domain.audit import AuditFilter
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.secrets.box import SecretBox
from controlplane.services.audit_records import AuditReader
from controlplane.state.seals import Seals
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import operation_service_pb2 as operation_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.operation_service_pb2_grpc import OperationServiceStub
from limiquantix.compute.v1.vm_pb2 import VmSpec
from telemetry.logs import LogFormat, configure_logging
from tests.support.call_origins import FakeOrigin
from tests.support.canaries import CANARY
from tests.support.running_control_plane import DEADLINE_S, RunningControlPlane, running_control_plane

ANN = Principal(PrincipalKind.USER, "u1", "ann")


@dataclass
class Watched:
    """A control plane, and everything that came out of it."""

    plane: RunningControlPlane
    trail: Trail
    directory: Path
    log: io.StringIO
    heard: list[str] = field(default_factory=list)

    async def call(self, method: str, request: Message) -> Any:
        """Make a call that goes well, with a record of it as the guard would write it."""
        record_id = await self.trail.begin(ANN, method, request, "", FakeOrigin())
        answer = await getattr(self.plane.vms, method)(request, timeout=DEADLINE_S)
        self.heard.append(str(answer))
        await self.trail.end(record_id, 0, "")
        return answer

    def found_in(self) -> list[str]:
        """Name every place where the secret is."""
        places = [str(p) for p in self.directory.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
        places += [f"answer: {each}" for each in self.heard if CANARY in each]
        return places + [f"log: {line}" for line in self.log.getvalue().splitlines() if CANARY in line]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    configure_logging("debug", LogFormat.JSON, stream)
    yield stream
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture
async def watched(tmp_path: Path, log: io.StringIO) -> AsyncIterator[Watched]:
    key = ChainKey(bytes(range(32)))
    async with running_control_plane(tmp_path, seals=Seals(SecretBox([bytes(range(32))]))) as plane:
        trail = Trail(plane.store, lambda: key, lambda: datetime.now(UTC), timedelta(days=400))
        yield Watched(plane, trail, tmp_path, log)


def secret_spec() -> VmSpec:
    spec = VmSpec()
    spec.cpu.cores = 1
    spec.memory.size_mib = 128
    spec.display.password = CANARY
    spec.provisioning.cloud_init.user_data = f"#cloud-config\npassword: {CANARY}\n"
    spec.provisioning.cloud_init.meta_data = f"secret: {CANARY}\n"
    return spec


async def read_everything(watched: Watched, vm_id: str) -> None:
    """Ask for all that can be read of VMs, operations, events and the trail."""
    plane, operations = watched.plane, OperationServiceStub(watched.plane.channel)
    answers: list[Message] = [
        await plane.vms.GetVM(vm_api.GetVMRequest(id=vm_id), timeout=DEADLINE_S),
        await plane.vms.ListVMs(vm_api.ListVMsRequest(), timeout=DEADLINE_S),
        await plane.vms.ListVMEvents(vm_api.ListVMEventsRequest(vm_id=vm_id), timeout=DEADLINE_S),
        await plane.vms.ListSnapshots(vm_api.ListSnapshotsRequest(vm_id=vm_id), timeout=DEADLINE_S),
        await plane.nodes.ListNodes(node_api.ListNodesRequest(), timeout=DEADLINE_S),
        await operations.ListOperations(operation_api.ListOperationsRequest(), timeout=DEADLINE_S),
    ]
    watch = plane.vms.WatchVMs(vm_api.WatchVMsRequest(), timeout=DEADLINE_S)
    answers.append(await anext(aiter(watch)))
    watch.cancel()
    watched.heard += map(str, answers)
    reader = AuditReader(plane.store, watched.trail, lambda: ChainKey(bytes(range(32))))
    watched.heard += [str(to_message(each)) for each in (await reader.list(AuditFilter(), None, 100)).items]


async def test_secrets_of_a_vm_reach_its_host_and_nothing_else(watched: Watched) -> None:
    vm = await watched.call("CreateVM", vm_api.CreateVMRequest(name="web", spec=secret_spec(), start_on_create=False))
    (on_host,) = watched.plane.daemon.vms.values()
    assert CANARY in str(on_host), "its guest needs it"
    update = vm_api.UpdateVMRequest(id=vm.id, spec=secret_spec())
    update.spec.cpu.cores = 2
    update.update_mask.paths.extend(["spec.cpu", "spec.provisioning", "spec.display"])
    await watched.call("UpdateVM", update)
    await watched.call("CreateSnapshot", vm_api.CreateSnapshotRequest(vm_id=vm.id, name="before"))
    await watched.call("CloneVM", vm_api.CloneVMRequest(source_vm_id=vm.id, name="copy"))
    await read_everything(watched, vm.id)
    assert "web" in "".join(watched.heard)
    assert watched.found_in() == []
