"""Having a host that is back forget VMs that were started elsewhere while it was dead; their disks stay."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from controlplane.domain.node import Node
from controlplane.domain.operation import Json, Operation
from controlplane.operations.steps import NOTHING, Outcome, Run, Step, Workflow, require_unfenced
from controlplane.state.interface import Transaction


class ReleaseStep(Step):
    """Have a host that is back forget a VM that was started elsewhere meanwhile."""

    name = "release"
    minds_fences = True

    async def do(self, run: Run) -> Outcome:
        """Give the command; nothing if the VM is that node's after all."""
        node_id = str(run.parameters["node_id"])

        async def read(tx: Transaction) -> Node | None:
            vm, node = await tx.get_vm(run.operation.resource_id), await tx.get_node(node_id)
            if vm is None or node is None or vm.node_id == node_id:
                return None
            await require_unfenced(tx, node)
            return node

        node = await run.store.read(read)
        if node is not None:
            daemon = run.daemons.daemon(node)  # in the event loop, which opens and closes connections
            await daemon.release_vm(run.operation.resource_id, run.operation.generation)
        return NOTHING


class ReleaseVm(Workflow):
    """Begun by the reconciler when a host reports a VM, off, that was started elsewhere; a failure is tried again."""

    kind = "vm.release"
    _steps = (ReleaseStep(),)

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Just the one."""
        return self._steps

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Nothing to tell."""
        return Empty()
