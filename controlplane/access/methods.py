"""What every method of the contract needs: the one table that says who may call it.

A method that is not here can be called by nobody; a test compares the table with the descriptors. A method that touches
several things has a need for each.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from controlplane.domain.access import Permission as P

PACKAGE = "limiquantix.compute.v1"


class Audience(enum.StrEnum):
    """Which kinds of callers a method is for."""

    ANYBODY = "anybody"
    """Those too of whom nothing is known: the request itself holds what proves that it may be made."""
    PEOPLE = "people and programs"
    """Users, and the API keys that act for them."""
    USERS = "people"
    """Users who logged in: an API key must not make itself another one, with more rights than it has."""
    KNOWN = "all who say who they are"
    """People, programs and hosts."""
    HOSTS = "hosts"
    """Nodes, each for itself; what the request's body names is checked with their certificate."""


class Target(enum.IntEnum):
    """What a need is about, and how it is found in the request."""

    CLUSTER = enum.auto()
    VM = enum.auto()
    NODE = enum.auto()
    PROJECT = enum.auto()
    """The default project, if the field is empty."""
    FOLDER = enum.auto()
    OPERATION = enum.auto()
    BINDING = enum.auto()
    PLACE = enum.auto()
    """The folder of `folder_id`, or the project of `project_id`, or the cluster; the need's field says nothing."""
    NEW_VM = enum.auto()
    """Where a VM comes to be: by `folder_id` and `project_id`, and by the VM in the need's field, if there is one."""
    PROJECT_OF_VM = enum.auto()
    PROJECT_OF_FOLDER = enum.auto()
    RULED_VMS = enum.auto()
    """Every VM that placement rules name; the need's field is the path of the spec, or of the specs, that has them."""
    CANDIDATES = enum.auto()
    """The project of each VM that might be made, in which its rules choose VMs by labels; the field is their path."""


@dataclass(frozen=True, slots=True)
class Need:
    """A permission, and the thing that it is needed for.

    Attributes:
        field: of the request, with the thing's id; for `Target.RULED_VMS` and `CANDIDATES` a field or, by dots, one of
            messages in it.
        only_if: a field, or by dots one of a message in it; the need is there only if it is filled in.
        unless: the same; the need is there only if it is not filled in.
    """

    permission: P
    target: Target = Target.CLUSTER
    field: str = "id"
    only_if: str = ""
    unless: str = ""


@dataclass(frozen=True, slots=True)
class MethodRule:
    """Who may call a method; without needs, all of the audience, and the service shows only what the caller may see.

    Attributes:
        is_audited: whether a record is kept of each call, and not only of those that are refused.
        is_read: whether it changes nothing, so that one record is enough of what a caller does again and again.
    """

    needs: tuple[Need, ...] = ()
    audience: Audience = Audience.PEOPLE
    is_audited: bool = True
    is_read: bool = False


def _reads(*needs: Need) -> MethodRule:
    return MethodRule(needs, is_audited=False)


def _does(*needs: Need) -> MethodRule:
    return MethodRule(needs)


def _vm(permission: P, field: str = "vm_id", *more: Need) -> MethodRule:
    return _does(Need(permission, Target.VM, field), *more)


def _sees_vm(permission: P, field: str = "vm_id") -> MethodRule:
    return _reads(Need(permission, Target.VM, field))


def _node(permission: P, field: str = "id", *more: Need) -> MethodRule:
    return _does(Need(permission, Target.NODE, field), *more)


_HOST = MethodRule(audience=Audience.HOSTS, is_audited=False)
_HOST_AUDITED = MethodRule(audience=Audience.HOSTS)
_SHOWS_WHAT_IS_VISIBLE = MethodRule(is_audited=False)

_OF_THE_HOST = tuple(
    Need(P.NODE_OPERATE, only_if=f"spec.{devices}") for devices in ("pci_devices", "usb_devices", "vgpu_devices")
)
"""What a VM is given of its host's hardware is taken from all others there, and may be the disks of the host itself:
who rules a project has no say in that."""

_OF_ITS_RULES = Need(P.VM_UPDATE, Target.RULED_VMS, "spec", only_if="spec.placement")
"""A rule about another VM tells where that one is, and keeps it from hosts as it does this one."""

_VM_SERVICE: Mapping[str, MethodRule] = {
    "CreateVM": _does(
        # First, so that nothing is told of where a template is that the caller does not see.
        Need(P.VM_CLONE, Target.VM, "template_id", only_if="template_id"),
        Need(P.VM_CREATE, Target.NEW_VM, "template_id"),
        Need(P.VM_POWER, Target.NEW_VM, "template_id", only_if="start_on_create"),
        Need(P.NODE_READ, Target.NODE, "node_id", only_if="node_id"),
        *_OF_THE_HOST,
        _OF_ITS_RULES,
    ),
    "GetVM": _sees_vm(P.VM_READ, "id"),
    "ListVMs": _SHOWS_WHAT_IS_VISIBLE,
    "UpdateVM": _vm(P.VM_UPDATE, "id", *_OF_THE_HOST, _OF_ITS_RULES),
    "DeleteVM": _vm(P.VM_DELETE, "id"),
    "StartVM": _vm(P.VM_POWER, "id"),
    "StopVM": _vm(P.VM_POWER, "id"),
    "RebootVM": _vm(P.VM_POWER, "id"),
    "PauseVM": _vm(P.VM_POWER, "id"),
    "ResumeVM": _vm(P.VM_POWER, "id"),
    "SuspendVM": _vm(P.VM_POWER, "id"),
    "CreateSnapshot": _vm(P.VM_SNAPSHOT),
    "ListSnapshots": _sees_vm(P.VM_READ),
    "RevertToSnapshot": _vm(P.VM_SNAPSHOT, "vm_id", Need(P.VM_POWER, Target.VM, "vm_id")),
    "DeleteSnapshot": _vm(P.VM_SNAPSHOT),
    "MigrateVM": _vm(P.VM_MIGRATE, "vm_id", Need(P.NODE_READ, Target.NODE, "target_node_id", only_if="target_node_id")),
    "GetConsole": _vm(P.VM_CONSOLE),
    "GetConsoleLog": _sees_vm(P.VM_CONSOLE),
    "CloneVM": _does(
        Need(P.VM_CLONE, Target.VM, "source_vm_id"),
        Need(P.VM_CREATE, Target.NEW_VM, "source_vm_id"),
        Need(P.VM_POWER, Target.NEW_VM, "source_vm_id", only_if="start_on_create"),
    ),
    "ConvertToTemplate": _vm(P.VM_UPDATE),
    "AttachDisk": _vm(P.VM_UPDATE),
    "DetachDisk": _vm(P.VM_UPDATE),
    "ResizeDisk": _vm(P.VM_UPDATE),
    "UpdateDisk": _vm(P.VM_UPDATE),
    "AttachNIC": _vm(P.VM_UPDATE),
    "DetachNIC": _vm(P.VM_UPDATE),
    "UpdateNIC": _vm(P.VM_UPDATE),
    "AttachCDROM": _vm(P.VM_UPDATE),
    "DetachCDROM": _vm(P.VM_UPDATE),
    "MountISO": _vm(P.VM_UPDATE),
    "EjectISO": _vm(P.VM_UPDATE),
    "ListVMEvents": _sees_vm(P.EVENT_READ),
    "WatchVM": _sees_vm(P.VM_READ),
    "WatchVMs": _SHOWS_WHAT_IS_VISIBLE,
    "StreamMetrics": _sees_vm(P.VM_READ),
    "PingAgent": _sees_vm(P.VM_READ),
    "GetGuestInfo": _sees_vm(P.VM_READ),
    "ExecuteScript": _vm(P.VM_GUEST),
    "ReadGuestFile": _vm(P.VM_GUEST),
    "WriteGuestFile": _vm(P.VM_GUEST),
    "SetGuestPassword": _vm(P.VM_GUEST),
    "SyncGuestTime": _vm(P.VM_GUEST),
    "FreezeGuest": _vm(P.VM_GUEST),
    "ThawGuest": _vm(P.VM_GUEST),
    "GuestShutdown": _vm(P.VM_POWER),
    "TakeOverVM": _vm(P.VM_UPDATE, "id"),
}

_NODE_SERVICE: Mapping[str, MethodRule] = {
    "RegisterNode": _HOST_AUDITED,
    "UpdateHeartbeat": _HOST,
    "AnnounceShutdown": _HOST_AUDITED,
    "SyncNodeVMs": _HOST,
    "SyncFullState": _HOST,
    "NotifyVMChange": _HOST,
    "NotifyStorageChange": _HOST,
    "GetNode": _reads(Need(P.NODE_READ, Target.NODE)),
    "ListNodes": _reads(Need(P.NODE_READ)),
    "GetNodeMetrics": _reads(Need(P.NODE_READ, Target.NODE)),
    "ListNodeEvents": _reads(Need(P.EVENT_READ, Target.NODE, "node_id")),
    "WatchNode": _reads(Need(P.NODE_READ, Target.NODE, "node_id")),
    "WatchNodes": _reads(Need(P.NODE_READ)),
    "StreamNodeMetrics": _reads(Need(P.NODE_READ, Target.NODE, "node_id")),
    "StreamEvents": _SHOWS_WHAT_IS_VISIBLE,
    "UpdateNode": _node(P.NODE_OPERATE),
    "DecommissionNode": _node(P.NODE_JOIN),
    "EnableNode": _node(P.NODE_OPERATE),
    "DisableNode": _node(P.NODE_OPERATE),
    "DrainNode": _node(
        P.NODE_OPERATE, "id", Need(P.NODE_READ, Target.NODE, "target_node_id", only_if="target_node_id")
    ),
    "AddTaint": _node(P.NODE_OPERATE, "node_id"),
    "RemoveTaint": _node(P.NODE_OPERATE, "node_id"),
    "UpdateLabels": _node(P.NODE_OPERATE, "node_id"),
}

_OPERATION_SERVICE: Mapping[str, MethodRule] = {
    "GetOperation": _reads(Need(P.OPERATION_READ, Target.OPERATION)),
    "ListOperations": _SHOWS_WHAT_IS_VISIBLE,
    "WaitOperation": _reads(Need(P.OPERATION_READ, Target.OPERATION)),
    "WatchOperation": _reads(Need(P.OPERATION_READ, Target.OPERATION)),
    "CancelOperation": _does(Need(P.OPERATION_CANCEL, Target.OPERATION)),
}

_CLUSTER_SERVICES: Mapping[str, Mapping[str, MethodRule]] = {
    "AlertService": {
        "GetAlert": _reads(Need(P.ALERT_READ)),
        "ListAlerts": _reads(Need(P.ALERT_READ)),
        "AcknowledgeAlert": _does(Need(P.ALERT_ACKNOWLEDGE)),
    },
    "BalancingService": {
        "GetBalance": _reads(Need(P.BALANCING_READ)),
        "RunBalancing": _does(Need(P.BALANCING_OPERATE)),
        "GetRecommendation": _reads(Need(P.BALANCING_READ)),
        "ListRecommendations": _reads(Need(P.BALANCING_READ)),
        "ApproveRecommendation": _does(Need(P.BALANCING_OPERATE)),
        "RejectRecommendation": _does(Need(P.BALANCING_OPERATE)),
        "ApplyRecommendation": _does(Need(P.BALANCING_OPERATE)),
    },
    # Where a VM would go by a rule about another one tells where that one is.
    "PlacementService": {
        "ExplainPlacement": _reads(
            Need(P.PLACEMENT_READ),
            Need(P.VM_READ, Target.VM, "vm_id", only_if="vm_id"),
            Need(P.VM_READ, Target.RULED_VMS, "candidate.spec"),
            Need(P.VM_READ, Target.CANDIDATES, "candidate", only_if="candidate"),
        ),
        "PlanPlacements": _reads(
            Need(P.PLACEMENT_READ),
            Need(P.VM_READ, Target.RULED_VMS, "vms.spec"),
            Need(P.VM_READ, Target.CANDIDATES, "vms"),
        ),
        "GetCapacity": _reads(
            Need(P.PLACEMENT_READ),
            Need(P.VM_READ, Target.RULED_VMS, "vm.spec"),
            Need(P.VM_READ, Target.CANDIDATES, "vm"),
        ),
    },
    "HaService": {
        "GetHaStatus": _reads(Need(P.HA_READ)),
        "GetFence": _reads(Need(P.HA_READ)),
        "ListFences": _reads(Need(P.HA_READ)),
        "FenceNode": _does(Need(P.HA_OPERATE)),
        "ConfirmNodeDead": _does(Need(P.HA_OPERATE)),
        "DisarmHa": _does(Need(P.HA_OPERATE)),
        "ArmHa": _does(Need(P.HA_OPERATE)),
    },
    "JoinService": {
        "CreateJoinToken": _does(Need(P.NODE_JOIN)),
        "ListJoinTokens": _reads(Need(P.NODE_JOIN)),
        "RevokeJoinToken": _does(Need(P.NODE_JOIN)),
        "RevokeNodeCertificate": _does(Need(P.NODE_JOIN)),
        "JoinNode": MethodRule(audience=Audience.ANYBODY),
        "RenewCertificate": _HOST_AUDITED,
        "IssueMigrationCertificate": _HOST,  # four times an hour and host; what it is for is audited
    },
    "AuditService": {
        "ListAuditRecords": _reads(Need(P.AUDIT_READ)),
        "ExportAuditRecords": _does(Need(P.AUDIT_READ)),
        "VerifyAuditRecords": _reads(Need(P.AUDIT_READ)),
    },
}

_TREE_SERVICES: Mapping[str, Mapping[str, MethodRule]] = {
    "ProjectService": {
        "CreateProject": _does(Need(P.PROJECT_CREATE)),
        "GetProject": _reads(Need(P.PROJECT_READ, Target.PROJECT)),
        "ListProjects": _SHOWS_WHAT_IS_VISIBLE,
        # Who rules a project must not say how much it may take of what all share, nor that it goes.
        "UpdateProject": _does(Need(P.PROJECT_UPDATE, Target.PROJECT), Need(P.PROJECT_QUOTA, only_if="quota")),
        "DeleteProject": _does(Need(P.PROJECT_READ, Target.PROJECT), Need(P.PROJECT_DELETE)),
    },
    "FolderService": {
        "CreateFolder": _does(
            Need(P.FOLDER_CREATE, Target.FOLDER, "parent_id", only_if="parent_id"),
            Need(P.FOLDER_CREATE, Target.PROJECT, "project_id", unless="parent_id"),
        ),
        "GetFolder": _reads(Need(P.FOLDER_READ, Target.FOLDER)),
        "ListFolders": _SHOWS_WHAT_IS_VISIBLE,
        "GetFolderTree": _SHOWS_WHAT_IS_VISIBLE,
        # What is moved comes under what is granted at its new place, so that is asked too.
        "UpdateFolder": _does(
            Need(P.FOLDER_UPDATE, Target.FOLDER),
            Need(P.FOLDER_CREATE, Target.FOLDER, "parent_id", only_if="parent_id"),
            Need(P.VM_UPDATE, Target.FOLDER, only_if="parent_id"),
            Need(P.VM_CREATE, Target.FOLDER, "parent_id", only_if="parent_id"),
        ),
        "DeleteFolder": _does(
            Need(P.FOLDER_DELETE, Target.FOLDER),
            Need(P.VM_UPDATE, Target.FOLDER, only_if="force"),
            Need(P.VM_CREATE, Target.FOLDER, "move_vms_to", only_if="move_vms_to"),
            Need(P.VM_CREATE, Target.PROJECT_OF_FOLDER, unless="move_vms_to", only_if="force"),
        ),
        "MoveVM": _vm(
            P.VM_UPDATE,
            "vm_id",
            Need(P.VM_CREATE, Target.FOLDER, "folder_id", only_if="folder_id"),
            Need(P.VM_CREATE, Target.PROJECT_OF_VM, "vm_id", unless="folder_id"),
        ),
    },
    "RoleService": {
        "CreateRole": _does(Need(P.ROLE_CREATE)),
        "GetRole": _SHOWS_WHAT_IS_VISIBLE,
        "ListRoles": _SHOWS_WHAT_IS_VISIBLE,
        "UpdateRole": _does(Need(P.ROLE_UPDATE)),
        "DeleteRole": _does(Need(P.ROLE_DELETE)),
        "BindRole": _does(Need(P.ROLE_BIND, Target.PLACE)),
        "UnbindRole": _does(Need(P.ROLE_BIND, Target.BINDING)),
        "ListRoleBindings": _reads(Need(P.ROLE_READ, Target.PLACE)),
    },
}

_ONES_OWN = MethodRule(audience=Audience.USERS)
_IN_THE_GROUP = Need(P.ROLE_BIND, only_if="groups")
"""Groups have roles: who puts somebody into one gives them."""

_IDENTITY_SERVICES: Mapping[str, Mapping[str, MethodRule]] = {
    "AuthService": {
        "Login": MethodRule(audience=Audience.ANYBODY),
        "Refresh": MethodRule(audience=Audience.ANYBODY),
        "ExchangeToken": MethodRule(audience=Audience.ANYBODY),
        "ListIssuers": MethodRule(audience=Audience.ANYBODY, is_audited=False),
        "Logout": _ONES_OWN,
        "ChangePassword": _ONES_OWN,
        "WhoAmI": _SHOWS_WHAT_IS_VISIBLE,
    },
    "UserService": {
        "CreateUser": _does(Need(P.USER_CREATE), _IN_THE_GROUP),
        "GetUser": _reads(Need(P.USER_READ)),
        "ListUsers": _reads(Need(P.USER_READ)),
        "UpdateUser": _does(Need(P.USER_UPDATE), Need(P.ROLE_BIND, only_if="replace_groups")),
        "DisableUser": _does(Need(P.USER_UPDATE)),
        "EnableUser": _does(Need(P.USER_UPDATE)),
        "DeleteUser": _does(Need(P.USER_DELETE)),
        # Who sets a password can become that user.
        "ResetPassword": _does(Need(P.USER_UPDATE), Need(P.ROLE_BIND)),
        "RevokeSessions": _does(Need(P.USER_UPDATE)),
    },
    "ApiKeyService": {
        "CreateApiKey": _ONES_OWN,
        "ListApiKeys": _reads(Need(P.USER_READ, only_if="all_users")),
        # The service lets nobody but the owner, or who may change users.
        "RevokeApiKey": _does(),
    },
}


def _table() -> Iterator[tuple[str, MethodRule]]:
    services = {
        "VMService": _VM_SERVICE,
        "NodeService": _NODE_SERVICE,
        "OperationService": _OPERATION_SERVICE,
        **_CLUSTER_SERVICES,
        **_TREE_SERVICES,
        **_IDENTITY_SERVICES,
    }
    for service, methods in services.items():
        for name, rule in methods.items():
            yield f"/{PACKAGE}.{service}/{name}", rule


METHODS: Mapping[str, MethodRule] = MappingProxyType(dict(_table()))
"""By "/package.Service/Method"."""

METRICS = "/metrics"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
FOR_STRANGERS = MethodRule(audience=Audience.ANYBODY, is_audited=False)

BESIDE_THE_CONTRACT: Mapping[str, MethodRule] = MappingProxyType(
    {
        # Load balancers have no credential, and are told nothing but whether there is an answer.
        "/grpc.health.v1.Health/Check": MethodRule(audience=Audience.ANYBODY, is_audited=False),
        # Says the same, but holds a call as long as the caller likes: enough strangers would keep everybody out.
        "/grpc.health.v1.Health/Watch": MethodRule(audience=Audience.KNOWN, is_audited=False),
        REFLECTION: _SHOWS_WHAT_IS_VISIBLE,
        # Tells what is done how often and what fails, by everybody: for those who see how the cluster is doing. What
        # gathers metrics can send an API key, whose owner needs no more than to be a viewer.
        METRICS: _reads(Need(P.NODE_READ)),
    }
)
"""What is served without being in the contract; all else is public, see `controlplane.api.http.endpoints`."""
