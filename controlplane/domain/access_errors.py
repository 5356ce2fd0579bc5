"""Refusals about who may do what, and about projects, folders and roles; one function each."""

from __future__ import annotations

from collections.abc import Collection

from controlplane.domain.access import THE_CLUSTER, Permission, Place
from controlplane.domain.folder import MAX_DEPTH, TYPES
from controlplane.domain.project import Excess
from limiquantix.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    Unauthenticated,
)


def not_logged_in() -> Unauthenticated:
    """The call carries no credential."""
    return Unauthenticated(
        Reason.NOT_LOGGED_IN,
        "this call says nothing of who makes it; log in with `limiquantix login`, or send an API key or access token "
        "as `authorization: Bearer ...`",
    )


def caller_changed() -> Unauthenticated:
    """What was known of a caller when a stream began is no longer so: what it may be shown is decided anew."""
    return Unauthenticated(
        Reason.CREDENTIAL_EXPIRED, "your groups, or what this credential may do, have changed; make the call again"
    )


def permission_missing(permission: Permission, place: Place) -> PermissionDenied:
    """The caller may see the thing, and may not do that to it."""
    return PermissionDenied(
        Reason.PERMISSION_MISSING,
        f"this needs the permission {permission} at {place.text}; ask who may bind roles there for one that has it",
        metadata={"permission": permission, "project_id": place.project_id, "folder_id": place.folder_id},
    )


def devices_not_inherited(source: str) -> PermissionDenied:
    """A VM or snapshot has devices of its host, and who makes a VM of it, or puts it back, may not give those away."""
    return PermissionDenied(
        Reason.PERMISSION_MISSING,
        f"{source} has devices of its host (PCI, USB or vGPU); to give them to a VM needs the permission "
        f"{Permission.NODE_OPERATE} at {THE_CLUSTER.text}; ask who has it, or for a source without them",
        metadata={"permission": Permission.NODE_OPERATE, "project_id": "", "folder_id": ""},
    )


def rule_not_inherited(source_id: str, vm_id: str) -> PermissionDenied:
    """A rule that a clone would take over is about a VM that who makes the clone may not make rules about."""
    return PermissionDenied(
        Reason.PERMISSION_MISSING,
        f"a placement rule of VM {source_id}, which a VM made of it takes over, is about VM {vm_id}; that needs the "
        f"permission {Permission.VM_UPDATE} for that VM; ask who has it, or have the rule removed from the source",
        metadata={"permission": Permission.VM_UPDATE, "vm_id": vm_id},
    )


def caller_unsuited(method: str, kind: str) -> PermissionDenied:
    """The method is not for callers of that kind."""
    return PermissionDenied(
        Reason.CALLER_UNSUITED,
        f"{method.rpartition('/')[2]} is not for callers of the kind {kind}",
        metadata={"kind": kind},
    )


def too_many_requests(who: str, per_s: float, retry_after_s: float) -> ResourceExhausted:
    """The caller asks faster than it may."""
    return ResourceExhausted(
        Reason.TOO_MANY_REQUESTS,
        f"{who} makes more than {per_s:g} calls a second; slow down and repeat the call in {retry_after_s:.2g} s",
        metadata={"calls_per_s": f"{per_s:g}"},
        retry_after_s=retry_after_s,
    )


def too_many_at_a_time(who: str, count: int) -> ResourceExhausted:
    """The caller has more calls and streams open than it may."""
    return ResourceExhausted(
        Reason.TOO_MANY_REQUESTS,
        f"{who} has {count} calls and streams open, and may have no more; end some, or wait until they have ended",
        metadata={"calls_at_a_time": str(count)},
        retry_after_s=1.0,
    )


def project_not_found(project_id: str) -> NotFound:
    """No project has that id."""
    return NotFound(
        Reason.PROJECT_NOT_FOUND, f"project {project_id} does not exist", metadata={"project_id": project_id}
    )


def project_name_taken(name: str) -> AlreadyExists:
    """Names of projects are unique."""
    return AlreadyExists(
        Reason.PROJECT_NAME_TAKEN,
        f"there is a project named {name!r} already; choose another name",
        metadata={"name": name},
    )


def project_not_empty(project_id: str, vm_count: int) -> FailedPrecondition:
    """VMs belong to a project that shall go."""
    return FailedPrecondition(
        Reason.PROJECT_NOT_EMPTY,
        f"project {project_id} has {vm_count} VMs; delete them first",
        metadata={"project_id": project_id, "vm_count": str(vm_count)},
    )


def project_is_default(project_id: str) -> FailedPrecondition:
    """What names no project belongs to the default one."""
    return FailedPrecondition(
        Reason.PROJECT_IS_DEFAULT,
        "the default project always exists, since what names no project belongs to it",
        metadata={"project_id": project_id},
    )


def quota_exceeded(project_id: str, excess: Excess, before: int) -> ResourceExhausted:
    """A VM would take more than its project may have; `before` is what is used without it."""
    asked = excess.used - before
    return ResourceExhausted(
        Reason.QUOTA_EXCEEDED,
        f"the quota of project {project_id} is {excess.limit} {excess.unit}, of which {before} are used, and this asks "
        f"for {asked} more; delete what is not needed, or ask for a larger quota",
        metadata={
            "project_id": project_id,
            "quota": excess.part,
            "limit": str(excess.limit),
            "used": str(before),
            "asked": str(asked),
        },
    )


def folder_not_found(folder_id: str) -> NotFound:
    """No folder has that id."""
    return NotFound(Reason.FOLDER_NOT_FOUND, f"folder {folder_id} does not exist", metadata={"folder_id": folder_id})


def folder_elsewhere(folder_id: str, project_id: str, field: str) -> InvalidArgument:
    """A folder of another project was named."""
    text = f"folder {folder_id} is not one of project {project_id}"
    return InvalidArgument.from_violations([FieldViolation(field, text)])


def folder_type_unknown(kind: str) -> InvalidArgument:
    """Folders hold few kinds of things."""
    text = f"there is no {kind!r}; use {', '.join(TYPES)}"
    return InvalidArgument.from_violations([FieldViolation("type", text)])


def folder_name_taken(name: str) -> AlreadyExists:
    """Names are unique among the folders below one."""
    return AlreadyExists(
        Reason.FOLDER_NAME_TAKEN,
        f"there is a folder named {name!r} here already; choose another name",
        metadata={"name": name},
    )


def folder_not_empty(folder_id: str, folder_count: int, vm_count: int) -> FailedPrecondition:
    """Something is in a folder that shall go."""
    return FailedPrecondition(
        Reason.FOLDER_NOT_EMPTY,
        f"folder {folder_id} has {folder_count} folders and {vm_count} VMs in it; empty it first, or set force",
        metadata={"folder_id": folder_id, "folder_count": str(folder_count), "vm_count": str(vm_count)},
    )


def folder_below_itself(folder_id: str) -> FailedPrecondition:
    """A folder, or what is in it, would come to be in the folder itself."""
    return FailedPrecondition(
        Reason.FOLDER_MOVE_REFUSED,
        f"folder {folder_id} cannot be moved below itself; name a folder that is not in it",
        metadata={"folder_id": folder_id},
    )


def folder_too_deep() -> FailedPrecondition:
    """Folders would be deeper than they may."""
    return FailedPrecondition(
        Reason.FOLDER_MOVE_REFUSED, f"folders are at most {MAX_DEPTH} levels deep; put it somewhere higher"
    )


def role_not_found(role_id: str) -> NotFound:
    """No role has that id or name."""
    return NotFound(Reason.ROLE_NOT_FOUND, f"role {role_id} does not exist", metadata={"role_id": role_id})


def role_name_taken(name: str) -> AlreadyExists:
    """Names of roles are unique, those of roles that are built in included."""
    return AlreadyExists(
        Reason.ROLE_NAME_TAKEN, f"there is a role named {name!r} already; choose another name", metadata={"name": name}
    )


def role_is_built_in(name: str) -> FailedPrecondition:
    """Roles that are built in stay as they are."""
    return FailedPrecondition(
        Reason.ROLE_IS_BUILT_IN,
        f"role {name} is built in and stays as it is; make one of your own",
        metadata={"role_id": name},
    )


def role_in_use(role_id: str, count: int) -> FailedPrecondition:
    """Somebody has a role that shall go."""
    return FailedPrecondition(
        Reason.ROLE_IN_USE,
        f"role {role_id} is bound {count} times; take it away first",
        metadata={"role_id": role_id, "binding_count": str(count)},
    )


def permissions_unknown(names: Collection[str]) -> InvalidArgument:
    """A role lists what is no permission."""
    return InvalidArgument.from_violations(
        [FieldViolation("permissions", f"there is no permission {name!r}") for name in sorted(names)]
    )


def role_grants_more(missing: Collection[str], place: Place) -> PermissionDenied:
    """Nobody gives, or takes away, what they do not have."""
    shown = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
    return PermissionDenied(
        Reason.ROLE_GRANTS_MORE,
        f"the role holds permissions that you do not have at {place.text}: {shown}",
        metadata={"missing_count": str(len(missing))},
    )


def move_grants_more(missing: Collection[str], place: Place) -> PermissionDenied:
    """What is moved comes under other people's roles, which is to give these and to take others away."""
    return PermissionDenied(
        Reason.ROLE_GRANTS_MORE,
        f"roles at the old or the new place hold permissions that you do not have at {place.text}: "
        f"{', '.join(sorted(missing))}; somebody who has them has to move it",
        metadata={"missing_count": str(len(missing))},
    )


def binding_not_found(binding_id: str) -> NotFound:
    """No binding has that id."""
    return NotFound(
        Reason.BINDING_NOT_FOUND, f"role binding {binding_id} does not exist", metadata={"binding_id": binding_id}
    )


def subject_not_found(subject: str) -> NotFound:
    """Nobody has that name."""
    return NotFound(Reason.SUBJECT_NOT_FOUND, f"{subject} does not exist", metadata={"subject": subject})


def last_admin() -> FailedPrecondition:
    """Nobody would be able to give roles any more."""
    return FailedPrecondition(
        Reason.LAST_ADMIN,
        "nobody who may log in would be admin of the cluster any more; make another one first, or with "
        "'limiquantix-controlplane admin create' on a control plane's machine",
    )
