"""AuthService on the wire: decode, call the service, encode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from google.protobuf.empty_pb2 import Empty

from controlplane.access.calling import caller
from controlplane.api.identity_messages import tokens_message
from controlplane.domain import identity_errors
from controlplane.identity.oidc import IssuerTokens
from controlplane.identity.sessions import SessionService
from limiquantix.compute.v1 import auth_service_pb2 as api
from limiquantix.compute.v1.auth_service_pb2_grpc import AuthServiceServicer
from limiquantix.rpc.pipeline import CallContext


class AddressedContext(CallContext, Protocol):
    """A call of which it is known from where it comes."""

    def peer(self) -> str:
        """From where the call comes: "ipv4:192.0.2.7:51234", "ipv6:[::1]:80", "unix:..."."""
        ...


class AuthServicer(AuthServiceServicer):
    """All methods of the contract.

    Args:
        issuers: those that are configured, by name.
    """

    def __init__(self, sessions: SessionService, issuers: Mapping[str, IssuerTokens]) -> None:
        self._sessions = sessions
        self._issuers = issuers

    async def Login(self, request: api.LoginRequest, context: AddressedContext) -> api.SessionTokens:
        return tokens_message(await self._sessions.login(request.name, request.password, context.peer()))

    async def Refresh(self, request: api.RefreshRequest, context: AddressedContext) -> api.SessionTokens:
        return tokens_message(await self._sessions.refresh(request.refresh_token))

    async def Logout(self, request: api.LogoutRequest, context: AddressedContext) -> Empty:
        principal = caller()
        if not principal.session_id:
            raise identity_errors.needs_session()
        await self._sessions.logout(principal.session_id)
        return Empty()

    async def ExchangeToken(self, request: api.ExchangeTokenRequest, context: AddressedContext) -> api.SessionTokens:
        issuer = self._issuers.get(request.issuer)
        if issuer is None:
            raise identity_errors.issuer_not_found(request.issuer)
        who = await issuer.verify(request.id_token, request.nonce)
        return tokens_message(await self._sessions.exchange(issuer.settings, who, context.peer()))

    async def ListIssuers(self, request: api.ListIssuersRequest, context: AddressedContext) -> api.ListIssuersResponse:
        configured = [each.settings for _, each in sorted(self._issuers.items())]
        return api.ListIssuersResponse(
            issuers=[
                api.Issuer(name=each.name, url=each.url, client_id=each.client_id, scopes=each.scopes)
                for each in configured
            ]
        )

    async def WhoAmI(self, request: api.WhoAmIRequest, context: AddressedContext) -> api.WhoAmIResponse:
        principal = caller()
        scope = principal.scope
        return api.WhoAmIResponse(
            kind=principal.kind,
            id=principal.id,
            name=principal.name,
            groups=sorted(principal.groups),
            session_id=principal.session_id,
            owner_id=principal.owner_id,
            project_ids=sorted(scope.project_ids) if scope is not None else (),
            permissions=sorted(scope.permissions) if scope is not None else (),
        )

    async def ChangePassword(self, request: api.ChangePasswordRequest, context: AddressedContext) -> Empty:
        await self._sessions.change_password(caller(), request.current_password, request.new_password, context.peer())
        return Empty()
