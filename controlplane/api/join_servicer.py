"""JoinService on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from google.protobuf.empty_pb2 import Empty

from controlplane.access.calling import caller
from controlplane.authority.joining import DEFAULT_LIFETIME, JoiningService
from controlplane.authority.machine_memory import MachineMemory
from controlplane.authority.migration_certificates import MigrationCertificates
from controlplane.domain.documents import timestamp
from controlplane.domain.machines import JoinToken
from limiquantix.compute.v1 import join_service_pb2 as api
from limiquantix.compute.v1.join_service_pb2_grpc import JoinServiceServicer
from limiquantix.rpc.pipeline import CallContext


class JoinServicer(JoinServiceServicer):
    """Takes hosts in.

    Args:
        host_addresses: "host:port" of each control plane's port for hosts.
        machines: what this process knows of them; made fresh when it revokes.
    """

    def __init__(
        self,
        joining: JoiningService,
        host_addresses: Sequence[str],
        machines: MachineMemory,
        migrations: MigrationCertificates,
    ) -> None:
        self._joining = joining
        self._machines = machines
        self._migrations = migrations
        self._host_addresses = tuple(host_addresses)

    async def CreateJoinToken(
        self, request: api.CreateJoinTokenRequest, context: CallContext
    ) -> api.CreateJoinTokenResponse:
        lifetime = timedelta(seconds=request.lifetime_sec) if request.lifetime_sec else DEFAULT_LIFETIME
        text, token = await self._joining.create_token(
            caller().text, lifetime, request.hostname, request.node_id, dict(request.labels)
        )
        return api.CreateJoinTokenResponse(
            token=text.encode(),
            details=_document(token),
            authority_fingerprint=self._joining.cluster.authority.fingerprint,
        )

    async def ListJoinTokens(
        self, request: api.ListJoinTokensRequest, context: CallContext
    ) -> api.ListJoinTokensResponse:
        return api.ListJoinTokensResponse(tokens=map(_document, await self._joining.list_tokens()))

    async def RevokeJoinToken(self, request: api.RevokeJoinTokenRequest, context: CallContext) -> Empty:
        await self._joining.revoke_token(request.id)
        return Empty()

    async def RevokeNodeCertificate(self, request: api.RevokeNodeCertificateRequest, context: CallContext) -> Empty:
        await self._joining.revoke_certificate(request.node_id)
        await self._machines.refresh()
        return Empty()

    async def JoinNode(self, request: api.JoinNodeRequest, context: CallContext) -> api.JoinNodeResponse:
        pem = request.certificate_request.encode()
        joined = await self._joining.join(request.token_id, request.secret, request.hostname, pem)
        cluster = self._joining.cluster
        return api.JoinNodeResponse(
            node_id=joined.node_id,
            cluster_id=cluster.id,
            certificate=joined.certificate_pem.decode(),
            authority_certificate=cluster.authority.certificate_pem.decode(),
            addresses=self._host_addresses,
        )

    async def RenewCertificate(
        self, request: api.RenewCertificateRequest, context: CallContext
    ) -> api.RenewCertificateResponse:
        certificate_pem = await self._joining.renew(caller().id, request.certificate_request.encode())
        return api.RenewCertificateResponse(
            certificate=certificate_pem.decode(),
            authority_certificate=self._joining.cluster.authority.certificate_pem.decode(),
            addresses=self._host_addresses,
        )

    async def IssueMigrationCertificate(
        self, request: api.IssueMigrationCertificateRequest, context: CallContext
    ) -> api.IssueMigrationCertificateResponse:
        issued = await self._migrations.issue(caller().id, request.certificate_request.encode())
        answer = api.IssueMigrationCertificateResponse(
            certificate=issued.certificate_pem.decode(),
            authority_certificate=issued.authority_pem.decode(),
            revocation_list=issued.revocation_list_pem.decode(),
            revoked=[
                api.RevokedHypervisor(common_name=name, revoked_at=timestamp(at))
                for name, at in issued.revoked_at.items()
            ],
        )
        if issued.newest_revocation is not None:
            answer.newest_revocation.CopyFrom(timestamp(issued.newest_revocation))
        return answer


def _document(token: JoinToken) -> api.JoinToken:
    found = api.JoinToken(
        id=token.id,
        hostname=token.hostname,
        node_id=token.node_id,
        created_by=token.created_by,
        created_at=timestamp(token.created_at),
        expires_at=timestamp(token.expires_at),
        used_by_node_id=token.used_by,
        labels=token.labels,
    )
    if token.used_at is not None:
        found.used_at.CopyFrom(timestamp(token.used_at))
    if token.revoked_at is not None:
        found.revoked_at.CopyFrom(timestamp(token.revoked_at))
    return found
