"""Who may do what, and where: permissions, roles, and the places of the tree that roles are bound at.

The tree is cluster, project, folder. What is granted at a place is granted for all below it, and nothing takes away
what was granted above.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType


class Permission(enum.StrEnum):
    """What can be allowed; names are part of the contract, as roles and API keys list them."""

    VM_READ = "vm.read"
    VM_CREATE = "vm.create"
    VM_UPDATE = "vm.update"
    VM_DELETE = "vm.delete"
    VM_POWER = "vm.power"
    VM_CONSOLE = "vm.console"
    VM_GUEST = "vm.guest"
    VM_SNAPSHOT = "vm.snapshot"
    VM_CLONE = "vm.clone"
    """To make a VM of it is to read its disks, which is more than to see that it is there."""
    VM_MIGRATE = "vm.migrate"
    NODE_READ = "node.read"
    NODE_OPERATE = "node.operate"
    NODE_JOIN = "node.join"
    HA_READ = "ha.read"
    HA_OPERATE = "ha.operate"
    PROJECT_READ = "project.read"
    PROJECT_CREATE = "project.create"
    PROJECT_UPDATE = "project.update"
    PROJECT_DELETE = "project.delete"
    PROJECT_QUOTA = "project.quota"
    FOLDER_READ = "folder.read"
    FOLDER_CREATE = "folder.create"
    FOLDER_UPDATE = "folder.update"
    FOLDER_DELETE = "folder.delete"
    USER_READ = "user.read"
    USER_CREATE = "user.create"
    USER_UPDATE = "user.update"
    USER_DELETE = "user.delete"
    ROLE_READ = "role.read"
    ROLE_CREATE = "role.create"
    ROLE_UPDATE = "role.update"
    ROLE_DELETE = "role.delete"
    ROLE_BIND = "role.bind"
    AUDIT_READ = "audit.read"
    OPERATION_READ = "operation.read"
    OPERATION_CANCEL = "operation.cancel"
    EVENT_READ = "event.read"
    ALERT_READ = "alert.read"
    ALERT_ACKNOWLEDGE = "alert.acknowledge"
    BALANCING_READ = "balancing.read"
    BALANCING_OPERATE = "balancing.operate"
    PLACEMENT_READ = "placement.read"


Permissions = frozenset[str]
"""A set of permissions by name: one that a newer version stored must not stop an older one."""

EVERYTHING: Permissions = frozenset(str(each) for each in Permission)


@dataclass(frozen=True, slots=True)
class Place:
    """A place of the tree: the cluster with both ids empty, a project, or a folder with its project's id."""

    project_id: str = ""
    folder_id: str = ""

    @property
    def key(self) -> str:
        """What tells it from every other: ids of projects and folders are all different."""
        return self.folder_id or self.project_id

    @property
    def text(self) -> str:
        """As messages name it."""
        if self.folder_id:
            return f"folder {self.folder_id}"
        return f"project {self.project_id}" if self.project_id else "the cluster"


THE_CLUSTER = Place()


@dataclass(frozen=True, slots=True)
class Role:
    """A set of permissions with a name."""

    id: str
    name: str
    permissions: Permissions
    description: str = ""
    is_built_in: bool = False
    created_at: datetime | None = None
    created_by: str = ""


@dataclass(frozen=True, slots=True)
class Binding:
    """A role that somebody has at a place.

    Attributes:
        subject: "user:<id>" or "group:<name>". A user's id and not the name, which may be another's one day.
        subject_name: "user:<name>" as it was then, or "group:<name>".
    """

    id: str
    subject: str
    subject_name: str
    role_id: str
    place: Place
    created_at: datetime
    created_by: str = ""


VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"
"""Ids and names of the roles that are built in."""

_SEES = (
    *(Permission.VM_READ, Permission.NODE_READ, Permission.HA_READ, Permission.PROJECT_READ, Permission.FOLDER_READ),
    *(Permission.OPERATION_READ, Permission.EVENT_READ, Permission.ALERT_READ, Permission.BALANCING_READ),
    Permission.PLACEMENT_READ,
)
_OPERATES = (
    *(Permission.VM_CREATE, Permission.VM_UPDATE, Permission.VM_DELETE, Permission.VM_POWER, Permission.VM_CONSOLE),
    *(Permission.VM_GUEST, Permission.VM_SNAPSHOT, Permission.VM_CLONE, Permission.VM_MIGRATE),
    *(Permission.FOLDER_CREATE, Permission.FOLDER_UPDATE, Permission.FOLDER_DELETE, Permission.OPERATION_CANCEL),
    *(Permission.NODE_OPERATE, Permission.ALERT_ACKNOWLEDGE, Permission.BALANCING_OPERATE),
)


def _built_in(name: str, permissions: Permissions, description: str) -> Role:
    return Role(name, name, permissions, description, is_built_in=True)


BUILT_IN_ROLES: Mapping[str, Role] = MappingProxyType(
    {
        role.id: role
        for role in (
            _built_in(VIEWER, frozenset(map(str, _SEES)), "sees everything but users, their roles, and the audit"),
            _built_in(
                OPERATOR,
                frozenset(map(str, (*_SEES, *_OPERATES))),
                "runs VMs and, at the cluster, its nodes; gives nobody anything",
            ),
            _built_in(ADMIN, EVERYTHING, "may do everything"),
        )
    }
)
"""They are not stored, so that every version of the program has its own."""


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """Where a folder is."""

    project_id: str
    parent_id: str


@dataclass(frozen=True, slots=True)
class AccessFacts:
    """Everything that decisions rest on, as it was at one revision.

    Attributes:
        projects: names by id.
        roles: those that are stored.
    """

    revision: int
    projects: Mapping[str, str]
    folders: Mapping[str, FolderPlace]
    roles: Mapping[str, Role]
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class VisiblePlaces:
    """The part of the tree in which somebody may see a kind of thing, for lists.

    Attributes:
        project_ids: of those that are seen as a whole.
        folder_ids: of those in other projects, each without what is below it.
        sees_cluster: whether things that belong to no project are seen.
    """

    project_ids: frozenset[str] = frozenset()
    folder_ids: frozenset[str] = frozenset()
    sees_cluster: bool = False

    def shows(self, project_id: str, folder_id: str) -> bool:
        """Whether a thing at that place is seen; both ids are empty for what belongs to the cluster."""
        if not project_id:
            return self.sees_cluster
        return project_id in self.project_ids or (bool(folder_id) and folder_id in self.folder_ids)


def place_of_new(project_id: str, folder_id: str, folder: Place | None, source: Place) -> Place:
    """Say where a VM that is made comes to be; what is left open is as with the one that it is made from, if any.

    Args:
        folder: where the folder of `folder_id` is, which says the project where nothing else does; None without one,
            and for one that is not known: it is not found in any project.
    """
    if not project_id and folder is not None:
        project_id = folder.project_id
    project_id = project_id or source.project_id
    return Place(project_id, folder_id or (source.folder_id if project_id == source.project_id else ""))
