"""ProjectService on the wire: decode, call the service, encode."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from controlplane.domain.documents import timestamp
from controlplane.domain.project import Amounts, Project
from controlplane.domain.vm import BYTES_PER_MIB
from controlplane.services.page_tokens import encode_cursor
from controlplane.services.projects import ProjectService
from limiquantix.compute.v1 import project_service_pb2 as api
from limiquantix.compute.v1.project_service_pb2_grpc import ProjectServiceServicer
from limiquantix.rpc.pipeline import CallContext


class ProjectServicer(ProjectServiceServicer):
    """All methods of the contract."""

    def __init__(self, projects: ProjectService) -> None:
        self._projects = projects

    async def CreateProject(self, request: api.CreateProjectRequest, context: CallContext) -> api.Project:
        return to_message(await self._projects.create(request), Amounts())

    async def GetProject(self, request: api.GetProjectRequest, context: CallContext) -> api.Project:
        return to_message(*await self._projects.get(request.id))

    async def ListProjects(self, request: api.ListProjectsRequest, context: CallContext) -> api.ListProjectsResponse:
        page = await self._projects.list(request)
        return api.ListProjectsResponse(
            projects=[to_message(project) for project in page.items],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def UpdateProject(self, request: api.UpdateProjectRequest, context: CallContext) -> api.Project:
        await self._projects.update(request)
        return to_message(*await self._projects.get(request.id))

    async def DeleteProject(self, request: api.DeleteProjectRequest, context: CallContext) -> Empty:
        await self._projects.delete(request.id)
        return Empty()


def to_message(project: Project, usage: Amounts | None = None) -> api.Project:
    """Encode a project, with what its VMs take if that is known."""
    quota = project.quota
    message = api.Project(
        id=project.id,
        name=project.name,
        description=project.description,
        quota=api.ProjectQuota(
            vm_count=quota.vm_count,
            vcpus=quota.vcpus,
            memory_mib=quota.memory_bytes // BYTES_PER_MIB,
            disk_gib=quota.disk_gib,
        ),
        created_at=timestamp(project.created_at),
        updated_at=timestamp(project.updated_at),
        created_by=project.created_by,
    )
    if usage is not None:
        message.usage.CopyFrom(
            api.ProjectUsage(
                vm_count=usage.vm_count,
                vcpus=usage.vcpus,
                memory_mib=usage.memory_bytes // BYTES_PER_MIB,
                disk_gib=usage.disk_gib,
            )
        )
    return message
