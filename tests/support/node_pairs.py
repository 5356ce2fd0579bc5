"""Migrations between two node daemons, asked for call by call as the control plane does."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.node_daemon_process import NodeDaemonProcess


class Daemon(Protocol):
    """A node daemon: its servicer, without a wire."""

    @property
    def servicer(self) -> Any: ...


@dataclass
class Move:
    """One VM on its way from one daemon to another, by one generation."""

    source: Daemon
    target: Daemon
    vm_id: str
    spec: pb.VMSpec
    generation: int = 10
    storage: bool = False
    off: bool = False
    source_node_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    target_node_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def preparation(self, **changes: Any) -> pb.PrepareMigrationRequest:
        definition = pb.CreateVMOnNodeRequest(vm_id=self.vm_id, name="web", spec=self.spec)
        request = pb.PrepareMigrationRequest(
            vm_id=self.vm_id,
            source_node_uri="source",
            generation=self.generation,
            definition=definition,
            source_node_id=self.source_node_id,
            target_node_id=self.target_node_id,
            storage=self.storage,
            off=self.off,
        )
        request.MergeFrom(pb.PrepareMigrationRequest(**changes))
        return request

    async def prepare(self, **changes: Any) -> pb.MigrationToken:
        token: pb.MigrationToken = await self.target.servicer.PrepareMigration(self.preparation(**changes), None)
        return token

    async def receive(self, token: pb.MigrationToken) -> None:
        await self.target.servicer.ReceiveMigration(token, None)

    def request(self, token: pb.MigrationToken, **changes: Any) -> pb.MigrateVMRequest:
        request = pb.MigrateVMRequest(
            vm_id=self.vm_id,
            target_node_uri=token.target_node_uri,
            live=True,
            storage=self.storage,
            generation=self.generation,
            target_node_id=self.target_node_id,
            target_places=token.places,
        )
        request.MergeFrom(pb.MigrateVMRequest(**changes))
        return request

    def stream(self, token: pb.MigrationToken, **changes: Any) -> AsyncGenerator[pb.MigrationProgress, None]:
        stream: AsyncGenerator[pb.MigrationProgress, None] = self.source.servicer.MigrateVM(
            self.request(token, **changes), None
        )
        return stream

    async def send(self, token: pb.MigrationToken, **changes: Any) -> Sequence[pb.MigrationProgress]:
        return [message async for message in self.stream(token, **changes)]

    async def get(self) -> pb.MigrationProgress:
        progress: pb.MigrationProgress = await self.source.servicer.GetMigration(
            pb.MigrationRequest(vm_id=self.vm_id, generation=self.generation), None
        )
        return progress

    async def cancel(self) -> None:
        await self.source.servicer.CancelMigration(
            pb.MigrationRequest(vm_id=self.vm_id, generation=self.generation), None
        )

    async def end(self, *, moved: bool) -> None:
        """Tidy up on both, the target first where the VM stays."""
        await self.end_at_target(moved=moved)
        await self.end_at_source(moved=moved)

    async def end_at_source(self, *, moved: bool) -> None:
        await self.source.servicer.EndMigration(self._end(pb.MIGRATION_ROLE_SOURCE, moved=moved), None)

    async def end_at_target(self, *, moved: bool) -> None:
        await self.target.servicer.EndMigration(self._end(pb.MIGRATION_ROLE_TARGET, moved=moved), None)

    def _end(self, role: pb.MigrationRole.ValueType, *, moved: bool) -> pb.EndMigrationRequest:
        return pb.EndMigrationRequest(
            vm_id=self.vm_id, generation=self.generation, role=role, moved=moved, storage=self.storage
        )


class ProcessDaemon(Daemon, Protocol):
    """A node daemon over the wire, once it was started."""

    @property
    def daemon(self) -> NodeDaemonProcess | None: ...


def move_between(
    source: ProcessDaemon,
    target: ProcessDaemon,
    vm_id: str,
    spec: pb.VMSpec,
    *,
    storage: bool = False,
    off: bool = False,
) -> Move:
    """Describe a move between daemons that are processes, and so know which nodes they are."""
    assert source.daemon is not None
    assert target.daemon is not None
    nodes = (source.daemon.node_id, target.daemon.node_id)
    return Move(source, target, vm_id, spec, storage=storage, off=off, source_node_id=nodes[0], target_node_id=nodes[1])


async def state_at(daemon: Daemon, vm_id: str) -> int | None:
    """Say what a VM is at a daemon; None if it is not there."""
    found = await daemon.servicer.ListVMs(None, None)
    return next((vm.state for vm in found.vms if vm.vm_id == vm_id), None)
