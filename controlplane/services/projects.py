"""Projects: made, read, changed and deleted; what their VMs take of a quota is enforced where VMs are changed."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.access.calling import caller_name
from controlplane.access.visibility import EverythingVisible, Visibility
from controlplane.domain import access_errors
from controlplane.domain.access import Permission
from controlplane.domain.project import UNLIMITED, Amounts, Project
from controlplane.domain.query import Page
from controlplane.domain.vm import BYTES_PER_MIB, DEFAULT_PROJECT_ID
from controlplane.services.page_tokens import decode_cursor, page_limit
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import project_service_pb2 as api

Refresh = Callable[[], Awaitable[None]]
"""Has this process know at once what was changed of the tree or the roles."""


async def nothing_kept() -> None:
    """For a process that keeps nothing of it in memory."""


@dataclass(frozen=True, slots=True)
class ProjectService:
    """The use cases of projects."""

    store: Store
    now: Callable[[], datetime]
    refresh: Refresh = nothing_kept
    visibility: Visibility = field(default_factory=EverythingVisible)

    async def create(self, request: api.CreateProjectRequest) -> Project:
        """Make a project.

        Raises:
            AlreadyExists: there is one of that name.
        """
        now = self.now()
        project = Project(
            id=str(uuid.uuid4()),
            name=request.name,
            created_at=now,
            updated_at=now,
            description=request.description,
            quota=_quota(request.quota),
            created_by=caller_name(),
        )

        async def work(tx: Transaction) -> None:
            await tx.begin_access_change()
            await tx.insert_project(project)

        await self.store.run(work)
        await self.refresh()
        return project

    async def get(self, project_id: str) -> tuple[Project, Amounts]:
        """Read one, and what its VMs take.

        Raises:
            NotFound: there is none of that id.
        """

        async def work(tx: Transaction) -> tuple[Project, Amounts]:
            return await _required(tx, project_id), await tx.project_amounts(project_id)

        return await self.store.read(work)

    async def list(self, request: api.ListProjectsRequest) -> Page[Project]:
        """Read one page of those that the caller may see, oldest first.

        Raises:
            InvalidArgument: the page token belongs to another query.
        """
        visible = self.visibility.of_caller().places(Permission.PROJECT_READ)
        after = decode_cursor(request.page_token, request)
        return await self.store.read(lambda tx: tx.list_projects(visible, after, page_limit(request.page_size)))

    async def update(self, request: api.UpdateProjectRequest) -> Project:
        """Change what the request says.

        Raises:
            NotFound: there is none of that id.
            AlreadyExists: there is another one of that name.
        """

        async def work(tx: Transaction) -> Project:
            await tx.begin_access_change()
            project = await _required(tx, request.id)
            changed = replace(
                project,
                name=request.name if request.HasField("name") else project.name,
                description=request.description if request.HasField("description") else project.description,
                quota=_quota(request.quota) if request.HasField("quota") else project.quota,
                updated_at=self.now(),
            )
            return await tx.update_project(changed)

        project = await self.store.run(work)
        await self.refresh()
        return project

    async def delete(self, project_id: str) -> None:
        """Delete a project with its folders, and all roles that are bound in it.

        Raises:
            NotFound: there is none of that id.
            FailedPrecondition: it has VMs, or is the default project.
        """
        if project_id == DEFAULT_PROJECT_ID:
            raise access_errors.project_is_default(project_id)

        async def work(tx: Transaction) -> None:
            await tx.begin_access_change()
            await _required(tx, project_id)
            # Before its VMs are counted: from now on nobody can add one.
            await tx.delete_project(project_id)
            amounts = await tx.project_amounts(project_id)
            if amounts.vm_count:
                raise access_errors.project_not_empty(project_id, amounts.vm_count)

        await self.store.run(work)
        await self.refresh()


async def _required(tx: Transaction, project_id: str) -> Project:
    project = await tx.get_project(project_id)
    if project is None:
        raise access_errors.project_not_found(project_id)
    return project


def _quota(quota: api.ProjectQuota) -> Amounts:
    if not quota.ListFields():
        return UNLIMITED
    return Amounts(quota.vm_count, quota.vcpus, quota.memory_mib * BYTES_PER_MIB, quota.disk_gib)
