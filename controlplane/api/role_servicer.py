"""RoleService on the wire: decode, call the service, encode."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from controlplane.domain.access import Binding, Role
from controlplane.domain.documents import timestamp
from controlplane.services.roles import RoleService
from limiquantix.compute.v1 import role_service_pb2 as api
from limiquantix.compute.v1.role_service_pb2_grpc import RoleServiceServicer
from limiquantix.rpc.pipeline import CallContext


class RoleServicer(RoleServiceServicer):
    """All methods of the contract."""

    def __init__(self, roles: RoleService) -> None:
        self._roles = roles

    async def CreateRole(self, request: api.CreateRoleRequest, context: CallContext) -> api.Role:
        return _role(await self._roles.create(request))

    async def GetRole(self, request: api.GetRoleRequest, context: CallContext) -> api.Role:
        return _role(await self._roles.get(request.id))

    async def ListRoles(self, request: api.ListRolesRequest, context: CallContext) -> api.ListRolesResponse:
        return api.ListRolesResponse(roles=[_role(role) for role in await self._roles.list()])

    async def UpdateRole(self, request: api.UpdateRoleRequest, context: CallContext) -> api.Role:
        return _role(await self._roles.update(request))

    async def DeleteRole(self, request: api.DeleteRoleRequest, context: CallContext) -> Empty:
        await self._roles.delete(request.id)
        return Empty()

    async def BindRole(self, request: api.BindRoleRequest, context: CallContext) -> api.RoleBinding:
        return _binding(*await self._roles.bind(request))

    async def UnbindRole(self, request: api.UnbindRoleRequest, context: CallContext) -> Empty:
        await self._roles.unbind(request.id)
        return Empty()

    async def ListRoleBindings(
        self, request: api.ListRoleBindingsRequest, context: CallContext
    ) -> api.ListRoleBindingsResponse:
        return api.ListRoleBindingsResponse(bindings=[_binding(*each) for each in await self._roles.bindings(request)])


def _role(role: Role) -> api.Role:
    return api.Role(
        id=role.id,
        name=role.name,
        description=role.description,
        permissions=sorted(role.permissions),
        is_built_in=role.is_built_in,
    )


def _binding(binding: Binding, role: Role) -> api.RoleBinding:
    return api.RoleBinding(
        id=binding.id,
        subject=binding.subject_name,
        role_id=role.id,
        role_name=role.name,
        project_id=binding.place.project_id,
        folder_id=binding.place.folder_id,
        created_at=timestamp(binding.created_at),
        created_by=binding.created_by,
    )
