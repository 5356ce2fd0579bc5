"""Who may command this host: control planes of its cluster, and nobody else that the authority vouches for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from google.protobuf.message import Message

from limiquantix.errors import PermissionDenied, Reason
from limiquantix.rpc.identity import CERTIFICATE_KEY, Role, identity_of_peer
from limiquantix.rpc.pipeline import CallOrigin


class ControlPlanesOnly:
    """The `CallGuard` of the daemon's port, where TLS has asked for a certificate.

    Args:
        cluster_id: that this host joined; an authority that was brought along may serve several clusters.
    """

    def __init__(self, cluster_id: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._cluster_id = cluster_id
        self._now = now

    async def admit(self, method: str, origin: CallOrigin) -> None:
        """Let in control planes.

        Raises:
            PermissionDenied: the certificate is of another machine, such as another node, or has ended.
        """
        shown = origin.auth_context()
        caller = identity_of_peer(shown)
        if caller is not None and self._now() >= _end_of(b"".join(shown.get(CERTIFICATE_KEY, ()))):
            # TLS looked at the end too, but only when the connection was made.
            raise PermissionDenied(
                Reason.CERTIFICATE_REFUSED, f"the certificate of {caller.role} {caller.id} has ended; connect anew"
            )
        if caller is None or caller.role is not Role.CONTROL_PLANE or caller.cluster_id != self._cluster_id:
            who = f"{caller.role} {caller.id} of cluster {caller.cluster_id}" if caller is not None else "a stranger"
            raise PermissionDenied(
                Reason.CALLER_UNSUITED,
                f"a host takes commands of its cluster's control planes only, not of {who}",
                metadata={"method": method},
            )

    def around(self, method: str, request: Message, origin: CallOrigin) -> AbstractAsyncContextManager[None]:
        """Ask nothing more: a control plane may call every method."""
        return nullcontext()

    async def recheck(self, method: str, request: Message, origin: CallOrigin) -> None:
        """End streams with the certificate; see `admit`."""
        await self.admit(method, origin)


@lru_cache(maxsize=64)
def _end_of(pem: bytes) -> datetime:
    """Say when a certificate ends; kept, since the same few come with every call."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc
