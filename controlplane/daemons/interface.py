"""A node daemon as the services see it.

Every call carries a deadline of its own and raises `limiquantix.errors.ApiError`: what the daemon refused comes back as
the daemon put it; a daemon that does not answer is `Unavailable` or, when the work may have begun, `DeadlineExceeded`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from controlplane.daemons.device_calls import DeviceCalls
from controlplane.daemons.failover_calls import FailoverCalls
from controlplane.daemons.guest_calls import GuestCalls
from controlplane.daemons.migration_calls import MigrationCalls
from controlplane.domain.node import Node
from limiquantix.node.v1.node_daemon_pb2 import (
    ConsoleInfoResponse,
    CreateSnapshotRequest,
    CreateVMOnNodeRequest,
    DeleteSnapshotRequest,
    GetConsoleLogRequest,
    GetConsoleLogResponse,
    ListSnapshotsResponse,
    NodeMetrics,
    OpenConsoleRequest,
    ReconfigureVMRequest,
    ResizeVMResponse,
    RevertSnapshotRequest,
    SnapshotResponse,
    StreamMetricsRequest,
    VMStatusResponse,
)


class NodeDaemon(DeviceCalls, FailoverCalls, GuestCalls, MigrationCalls, Protocol):
    """The daemon of one node. All calls are idempotent on its side, see the contract.

    Whatever changes a VM carries its generation; a daemon that took a newer one for this VM refuses it with `Aborted`,
    reason STALE_GENERATION, and names the newest in the metadata.
    """

    async def create_vm(self, request: CreateVMOnNodeRequest) -> VMStatusResponse:
        """Make the disk images and define the VM, off; returns what it is then."""
        ...

    async def reconfigure_vm(self, request: ReconfigureVMRequest) -> None:
        """Replace the definition of a VM that is off."""
        ...

    async def resize_vm(self, request: ReconfigureVMRequest) -> ResizeVMResponse:
        """Replace the definition of a VM, running or not; returns what it runs with then."""
        ...

    async def delete_vm(self, vm_id: str, generation: int) -> None:
        """Remove the definition and the images; fine if there are none."""
        ...

    async def start_vm(self, vm_id: str, generation: int) -> None:
        """Start it."""
        ...

    async def stop_vm(self, vm_id: str, timeout_s: int, generation: int) -> None:
        """Ask the guest to shut down and wait up to `timeout_s`."""
        ...

    async def force_stop_vm(self, vm_id: str, generation: int) -> None:
        """Pull the plug."""
        ...

    async def reboot_vm(self, vm_id: str, generation: int) -> None:
        """Reboot the guest."""
        ...

    async def pause_vm(self, vm_id: str, generation: int) -> None:
        """Stop its vCPUs."""
        ...

    async def resume_vm(self, vm_id: str, generation: int) -> None:
        """Let its vCPUs run again."""
        ...

    async def suspend_vm(self, vm_id: str, generation: int) -> None:
        """Save its memory to disk and let its process end."""
        ...

    async def create_snapshot(self, request: CreateSnapshotRequest) -> SnapshotResponse:
        """Save the VM's state under the id that the request names."""
        ...

    async def revert_snapshot(self, request: RevertSnapshotRequest) -> None:
        """Put the VM back to a snapshot."""
        ...

    async def delete_snapshot(self, request: DeleteSnapshotRequest) -> None:
        """Remove a snapshot; fine if there is none of that id."""
        ...

    async def list_snapshots(self, vm_id: str) -> ListSnapshotsResponse:
        """Read the VM's snapshots, parents before children."""
        ...

    async def vm_status(self, vm_id: str) -> VMStatusResponse:
        """Ask what the VM is now."""
        ...

    async def open_console(self, request: OpenConsoleRequest) -> ConsoleInfoResponse:
        """Have a one-time entry to one of its consoles made on the host."""
        ...

    def metrics(self, request: StreamMetricsRequest) -> AsyncGenerator[NodeMetrics, None]:
        """Give measures of the host and its VMs until it is closed; errors come while it is iterated."""
        ...

    async def console_log(self, request: GetConsoleLogRequest) -> GetConsoleLogResponse:
        """Read a piece of its serial console's log."""
        ...


class DaemonPool(Protocol):
    """Finds the daemon of a node."""

    def daemon(self, node: Node, epoch: int = 0) -> NodeDaemon:
        """Return the daemon of a node; connects at the first call on it. To be called in the event loop.

        What is called on it carries the token that the node's record has, so a record that is read before something is
        decided makes the daemon refuse the command if the node was fenced after that (Aborted, STALE_FENCE_TOKEN).

        Args:
            epoch: that of the leader for whom the calls are made, which daemons refuse once they know a newer one
                (Aborted, STALE_EPOCH); 0 for calls that are nobody's in particular.

        Raises:
            Unavailable: the node has no agent endpoint.
        """
        ...
