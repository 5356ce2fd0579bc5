"""UserService on the wire: decode, call the service, encode."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from controlplane.access.calling import caller
from controlplane.api.identity_messages import user_message
from controlplane.domain.identity import UserFilter
from controlplane.identity.users import UserService
from controlplane.services.page_tokens import decode_cursor, encode_cursor, page_limit
from limiquantix.compute.v1 import user_service_pb2 as api
from limiquantix.compute.v1.user_pb2 import User
from limiquantix.compute.v1.user_service_pb2_grpc import UserServiceServicer
from limiquantix.rpc.pipeline import CallContext


class UserServicer(UserServiceServicer):
    """All methods of the contract."""

    def __init__(self, users: UserService) -> None:
        self._users = users

    async def CreateUser(self, request: api.CreateUserRequest, context: CallContext) -> User:
        groups = frozenset(request.groups)
        return user_message(
            await self._users.create(caller(), request.name, request.display_name, groups, request.password)
        )

    async def GetUser(self, request: api.GetUserRequest, context: CallContext) -> User:
        return user_message(await self._users.get(request.id))

    async def ListUsers(self, request: api.ListUsersRequest, context: CallContext) -> api.ListUsersResponse:
        after = decode_cursor(request.page_token, request)
        page = await self._users.list(UserFilter(request.group), after, page_limit(request.page_size))
        return api.ListUsersResponse(
            users=[user_message(user) for user in page.items],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def UpdateUser(self, request: api.UpdateUserRequest, context: CallContext) -> User:
        return user_message(
            await self._users.update(
                caller(),
                request.id,
                request.display_name if request.HasField("display_name") else None,
                frozenset(request.groups) if request.replace_groups else None,
            )
        )

    async def DisableUser(self, request: api.DisableUserRequest, context: CallContext) -> User:
        return user_message(await self._users.disable(caller(), request.id))

    async def EnableUser(self, request: api.EnableUserRequest, context: CallContext) -> User:
        return user_message(await self._users.enable(caller(), request.id))

    async def DeleteUser(self, request: api.DeleteUserRequest, context: CallContext) -> Empty:
        await self._users.delete(caller(), request.id)
        return Empty()

    async def ResetPassword(self, request: api.ResetPasswordRequest, context: CallContext) -> api.ResetPasswordResponse:
        given = request.new_password if request.HasField("new_password") else None
        return api.ResetPasswordResponse(new_password=await self._users.reset_password(caller(), request.id, given))

    async def RevokeSessions(self, request: api.RevokeSessionsRequest, context: CallContext) -> Empty:
        await self._users.revoke_sessions(caller(), request.id)
        return Empty()
