"""Calls of hosts: whose certificate was shown, and that the request speaks of nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from google.protobuf.message import Message

from controlplane.authority.certificates import validity_of
from controlplane.authority.machine_memory import MachineMemory
from controlplane.domain import machine_errors
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.node_service_pb2 import VM_CHANGE_DELETED, VMChangeNotification
from limiquantix.rpc.identity import CERTIFICATE_KEY, Role, identity_of_peer
from limiquantix.rpc.pipeline import CallOrigin

_COMPUTE: Final = "/limiquantix.compute.v1"
OWN_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        f"{_COMPUTE}.NodeService/RegisterNode": "hostname",
        f"{_COMPUTE}.NodeService/UpdateHeartbeat": "node_id",
        f"{_COMPUTE}.NodeService/AnnounceShutdown": "node_id",
        f"{_COMPUTE}.NodeService/SyncNodeVMs": "node_id",
        f"{_COMPUTE}.NodeService/SyncFullState": "node_id",
        f"{_COMPUTE}.NodeService/NotifyVMChange": "node_id",
        f"{_COMPUTE}.NodeService/NotifyStorageChange": "node_id",
        f"{_COMPUTE}.JoinService/RenewCertificate": "",
        f"{_COMPUTE}.JoinService/IssueMigrationCertificate": "",
    }
)
"""By which field each method that hosts call says whose word it is; "" where the certificate alone does."""
OWN_VM: Final = f"{_COMPUTE}.NodeService/NotifyVMChange"
"""The one method in which a host speaks of a VM as its own, `vm.id`. Full states list what is on the host, also what
belongs elsewhere, so that a VM that exists twice is noticed; that changes nothing of the VM but who saw it."""


class MachineAuthenticator:
    """Knows hosts by their certificates, which TLS has verified.

    Args:
        cluster_id: certificates of another cluster's, under an authority that both share, are nobody's here.
    """

    def __init__(
        self, cluster_id: str, machines: MachineMemory, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._now = now
        self._cluster_id = cluster_id
        self._machines = machines

    async def authenticate(self, origin: CallOrigin) -> Principal | None:
        """Return the host; None for a call without a certificate of a machine.

        Raises:
            Unauthenticated: the certificate was revoked or has ended, or its host is not of this cluster (any more).
        """
        shown = origin.auth_context()
        identity = identity_of_peer(shown)
        if identity is None:
            return None
        if identity.role is not Role.NODE or identity.cluster_id != self._cluster_id:
            raise machine_errors.no_certificate()
        machine = await self._machines.of(identity.id)
        issued_at, ends_at = _validity_of(b"".join(shown.get(CERTIFICATE_KEY, ())))
        # TLS looked at the end too, but only when the connection was made.
        if machine is None or not machine.accepts(issued_at) or self._now() >= ends_at:
            raise machine_errors.certificate_refused(identity.id)
        return Principal(PrincipalKind.NODE, identity.id, machine.hostname, origin=origin.peer())


class OwnWords:
    """Checks that a host speaks for itself only, and of its own VMs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def require_own(self, principal: Principal, method: str, request: Message) -> None:
        """Let a request pass whose body names the host of the certificate, and no VM of another one.

        Raises:
            PermissionDenied: it does not, or the method is none that hosts call.
        """
        field = OWN_FIELDS.get(method)
        name = method.rpartition("/")[2]
        if principal.kind is not PrincipalKind.NODE or field is None:
            raise machine_errors.not_of_this_node(name, "the method", principal.id)
        if field:
            said = getattr(request, field)
            own = principal.name if field == "hostname" else principal.id
            if said.lower() != own.lower():
                raise machine_errors.not_of_this_node(name, f"{field} {said}", principal.id)
        if method == OWN_VM and isinstance(request, VMChangeNotification):
            await self._require_own_vm(principal.id, request)

    async def _require_own_vm(self, node_id: str, request: VMChangeNotification) -> None:
        """Let a VM pass that is on the node, on its way from or to it, unknown, or was seen there by a full state.

        That a VM is gone may be said by whoever had it: it is what the source of a migration says last.
        """
        vm_id = request.vm.id
        if request.event_type == VM_CHANGE_DELETED:
            return

        async def is_own(tx: Transaction) -> bool:
            vm = await tx.get_vm(vm_id)
            if vm is None or vm.node_id in ("", node_id) or node_id in vm.sightings:
                return True
            migration = await tx.get_migration(vm_id)
            return migration is not None and node_id in migration.node_ids

        if not await self._store.read(is_own):
            raise machine_errors.not_of_this_node("NotifyVMChange", f"VM {vm_id}", node_id)


@lru_cache(maxsize=20_000)
def _validity_of(pem: bytes) -> tuple[datetime, datetime]:
    """Say when a certificate was issued and when it ends; kept, since each of them comes with every call."""
    return validity_of(pem)
