"""Migration of VMs to other nodes."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.domain import documents
from controlplane.domain.migration import Migration, MigrationRules, MigrationWish
from controlplane.domain.node import Node
from controlplane.domain.operation import Operation
from controlplane.domain.vm import ALIVE_STATES, Vm
from controlplane.operations import vm_migration
from controlplane.operations.desk import ANYBODY, Caller, Order
from controlplane.operations.migration_hosts import Hosts
from controlplane.operations.migration_prediction import predict
from controlplane.operations.migration_wishes import parameters_of
from controlplane.operations.vm_migration import ChooseTarget
from controlplane.services.vm_calls import VmAccess, required
from controlplane.state.interface import Transaction
from limiquantix.compute.v1 import vm_service_pb2 as api

__all__ = ["MigrationService", "MigrationWish", "wish_from"]


@dataclass(frozen=True, slots=True)
class MigrationService:
    """The use cases of migration."""

    access: VmAccess
    choose: ChooseTarget
    rules: MigrationRules

    async def start(self, vm_id: str, wish: MigrationWish, caller: Caller) -> Operation:
        """Order a migration, and return its operation as recorded: "vm.migrate" on the VM.

        Ordered while another one is under way, it waits for that, and is refused if the VM has moved then.

        Raises:
            NotFound: no such VM.
            FailedPrecondition: the VM cannot move, and why.
        """
        vm = await self.access.get(vm_id)
        order = Order(
            vm_migration.MigrateVm.kind,
            vm_id,
            parameters=parameters_of(wish, vm),
            check=lambda now: vm_migration.require_wished(now, wish),
        )
        return await self.access.desk.submit(order, caller)

    async def migrate(self, request: api.MigrateVMRequest, caller: Caller = ANYBODY) -> api.MigrateVMResponse:
        """Migrate a VM, or with `validate_only` say what it would take.

        Raises:
            NotFound: no such VM or node.
            FailedPrecondition: the VM cannot move, and why.
            ResourceExhausted: no node can take it.
        """
        wish = wish_from(request)
        if request.validate_only:
            return await self.forecast(request.vm_id, wish)
        operation = await self.start(request.vm_id, wish, caller)
        if caller.waits or operation.has_ended:
            return await self.access.desk.answer(operation, api.MigrateVMResponse())
        return api.MigrateVMResponse(vm=documents.virtual_machine(await self.access.get(request.vm_id)))

    async def forecast(self, vm_id: str, wish: MigrationWish) -> api.MigrateVMResponse:
        """Choose a node and predict the migration to it; claims and moves nothing.

        Raises:
            ApiError: what the migration itself would be refused with, as far as the target's host need not be asked.
        """

        async def look(tx: Transaction) -> tuple[Vm, Node, Node, bool]:
            vm = await required(tx, vm_id)
            source = await vm_migration.require_allowed(tx, vm, wish)
            chosen = await self.choose(tx, vm, wish)
            target, copies = await vm_migration.require_way(tx, vm, wish, source, chosen.node_ids[0])
            return vm, source, target, copies

        # Choosing holds the rows of nodes for a moment, which a snapshot that is only read cannot.
        vm, source, target, copies = await self.access.store.run(look)
        migration = Migration(
            vm_id=vm.id,
            operation_id="",
            source_node_id=source.id,
            target_node_id=target.id,
            asked_at=vm.updated_at,
            copies_disks=copies,
            ran=vm.power_state in ALIVE_STATES,
        )
        daemons = self.access.daemons
        hosts = Hosts(vm, migration, source, target, daemons.daemon(source), daemons.daemon(target))
        predicted = predict(hosts, wish, self.rules, await hosts.measured())
        return api.MigrateVMResponse(vm=documents.virtual_machine(vm), forecast=predicted)


def wish_from(request: api.MigrateVMRequest) -> MigrationWish:
    """Read what a request wishes for."""
    return MigrationWish(
        target_node_id=request.target_node_id,
        live=request.live,
        max_downtime_ms=request.max_downtime_ms,
        bandwidth_mbps=request.bandwidth_mbps,
        post_copy=request.post_copy if request.HasField("post_copy") else None,
        auto_converge=request.auto_converge if request.HasField("auto_converge") else None,
        shared_storage_only=request.shared_storage_only,
    )
