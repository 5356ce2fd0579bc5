"""ApiKeyService on the wire: decode, call the service, encode."""

from __future__ import annotations

from datetime import UTC

from controlplane.access.calling import caller
from controlplane.api.identity_messages import api_key_message
from controlplane.domain.principal import Scope
from controlplane.identity.api_keys import ApiKeyService, OwnedKey
from controlplane.services.page_tokens import decode_cursor, encode_cursor, page_limit
from limiquantix.compute.v1 import api_key_service_pb2 as api
from limiquantix.compute.v1.api_key_service_pb2_grpc import ApiKeyServiceServicer
from limiquantix.rpc.pipeline import CallContext


class ApiKeyServicer(ApiKeyServiceServicer):
    """All methods of the contract."""

    def __init__(self, keys: ApiKeyService) -> None:
        self._keys = keys

    async def CreateApiKey(self, request: api.CreateApiKeyRequest, context: CallContext) -> api.CreateApiKeyResponse:
        owned, secret = await self._keys.create(
            caller(),
            request.name,
            request.expires_at.ToDatetime(UTC),
            Scope(frozenset(request.project_ids), frozenset(request.permissions)),
        )
        return api.CreateApiKeyResponse(api_key=api_key_message(owned), secret=secret)

    async def ListApiKeys(self, request: api.ListApiKeysRequest, context: CallContext) -> api.ListApiKeysResponse:
        after = decode_cursor(request.page_token, request)
        page, owners = await self._keys.list(
            caller(), after, page_limit(request.page_size), all_users=request.all_users
        )
        return api.ListApiKeysResponse(
            api_keys=[api_key_message(OwnedKey(key, owners.get(key.owner_id, ""))) for key in page.items],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def RevokeApiKey(self, request: api.RevokeApiKeyRequest, context: CallContext) -> api.ApiKey:
        return api_key_message(await self._keys.revoke(caller(), request.id))
