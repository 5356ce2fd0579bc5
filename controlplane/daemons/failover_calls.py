"""The part of a node daemon's calls that is about VMs of hosts that failed; see `controlplane.daemons.interface`."""

from __future__ import annotations

from typing import Protocol

from limiquantix.node.v1.node_daemon_pb2 import CreateVMOnNodeRequest, SetVMProtectionRequest, VMStatusResponse


class FailoverCalls(Protocol):
    """Taking VMs in whose host is dead, letting go of those that were taken, and what makes that safe."""

    async def adopt_vm(self, request: CreateVMOnNodeRequest) -> VMStatusResponse:
        """Define a VM whose disks are on storage that this host shares; returns what it is then, which is off.

        No image is made or changed. What lay on the other host alone is gone: the medium of the first boot is made
        again, UEFI variables begin as their template has them, the state of a TPM begins anew.

        Raises:
            FailedPrecondition: an image is not there, which the error names.
        """
        ...

    async def release_vm(self, vm_id: str, generation: int) -> None:
        """Remove the definition of a VM that is off, and leave its disks alone; fine if there is none.

        Raises:
            FailedPrecondition: it is in memory.
        """
        ...

    async def set_vm_protection(self, request: SetVMProtectionRequest) -> None:
        """Have it noted with a VM, running or not, whether it ends with the host's lease.

        Raises:
            FailedPrecondition: the host takes no leases, reason HOST_LACKS.
        """
        ...
