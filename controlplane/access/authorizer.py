"""Decides whether a caller may do what a request asks for, by the table of methods.

A thing that the caller may not even see is answered like one that does not exist, in the words of the service itself.
What is not there is left to the service, if the caller could have done it anywhere: it knows more, such as that the
same request was answered before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from google.protobuf.message import Message

from controlplane.access.memory import AccessMemory
from controlplane.access.methods import BESIDE_THE_CONTRACT, METHODS, Audience, MethodRule, Need, Target
from controlplane.access.naming import MAX_RULED_VMS, messages_at, named_by, ruled_vm_ids
from controlplane.access.telling import told
from controlplane.access.tree import AccessTree
from controlplane.domain import access_errors, errors, operation_errors
from controlplane.domain.access import THE_CLUSTER, Permission, Place, place_of_new
from controlplane.domain.event import NODE
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.domain.vm import DEFAULT_PROJECT_ID
from controlplane.state.interface import Store
from limiquantix.errors import ApiError, NotFound, PermissionDenied

_KINDS: Mapping[Audience, frozenset[PrincipalKind]] = {
    Audience.ANYBODY: frozenset(PrincipalKind),
    Audience.KNOWN: frozenset(PrincipalKind),
    Audience.PEOPLE: frozenset({PrincipalKind.USER, PrincipalKind.API_KEY, PrincipalKind.SYSTEM}),
    Audience.USERS: frozenset({PrincipalKind.USER}),
    Audience.HOSTS: frozenset({PrincipalKind.NODE}),
}


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is the same of all needs about one kind of thing.

    Attributes:
        find: where a thing is; None if there is none of that id.
        reading: the permission without which it is hidden; None for what the caller sees by another need already.
        absent: what the service answers of one that is not there.
    """

    find: Callable[[AccessTree, Message, Need], Awaitable[Place | None]]
    reading: Permission | None
    absent: Callable[[str], ApiError]


class Authorizer:
    """Holds nothing but the memory."""

    def __init__(self, memory: AccessMemory, store: Store, methods: Mapping[str, MethodRule] = METHODS) -> None:
        self._memory = memory
        self._store = store
        self._methods = {**BESIDE_THE_CONTRACT, **methods}
        self._kinds: Mapping[Target, _Kind] = {
            Target.VM: _Kind(self._vm, Permission.VM_READ, errors.vm_not_found),
            Target.NODE: _Kind(self._cluster, Permission.NODE_READ, errors.node_not_found),
            Target.PROJECT: _Kind(self._project, Permission.PROJECT_READ, access_errors.project_not_found),
            Target.FOLDER: _Kind(self._folder, Permission.FOLDER_READ, access_errors.folder_not_found),
            Target.OPERATION: _Kind(self._operation, Permission.OPERATION_READ, operation_errors.operation_not_found),
            Target.BINDING: _Kind(self._binding, Permission.ROLE_READ, access_errors.binding_not_found),
            Target.PROJECT_OF_VM: _Kind(self._project_of_vm, None, errors.vm_not_found),
            Target.PROJECT_OF_FOLDER: _Kind(self._project_of_folder, None, access_errors.folder_not_found),
        }

    def rule(self, method: str) -> MethodRule | None:
        """What a method needs; None for one that nobody may call."""
        return self._methods.get(method)

    def named(self, method: str, request: Message) -> str:
        """List what a request names of what is known, and its projects, for the record: "vm/<id>,project/<id>"."""
        rule = self._methods.get(method)
        return "" if rule is None else named_by(self._memory, rule, request)

    async def authorize(self, principal: Principal, method: str, request: Message) -> None:
        """Let the call pass, or refuse it. What services show people of lists then rests on facts that are checked.

        Raises:
            PermissionDenied: the caller sees the thing and lacks a permission; the message names it and the place.
            NotFound: the caller does not see the thing, or there is none.
            Unavailable: who may do what cannot be read.
        """
        rule = self._methods.get(method)
        if rule is None or principal.kind not in _KINDS[rule.audience]:
            raise access_errors.caller_unsuited(method, principal.kind)
        if rule.audience is Audience.HOSTS:
            return
        tree = await self._memory.tree()
        try:
            await self._require_all(tree, principal, rule, request)
        except (PermissionDenied, NotFound):
            # What was given a moment ago, by another control plane or a command on its machine, counts at once.
            newer = await self._memory.rechecked()
            if newer is tree:
                raise
            await self._require_all(newer, principal, rule, request)

    def told(self, principal: Principal | None, error: ApiError) -> ApiError:
        """Return what the caller may know of an error that its call ended with."""
        if principal is None:
            return error
        return told(error, self._memory.latest.permissions(principal, THE_CLUSTER))

    async def _require_all(self, tree: AccessTree, principal: Principal, rule: MethodRule, request: Message) -> None:
        for need in rule.needs:
            if (need.only_if and not _is_set(request, need.only_if)) or (need.unless and _is_set(request, need.unless)):
                continue
            if not self._is_had(tree, principal, request, need):
                await self._require(tree, principal, request, need)

    def _is_had(self, tree: AccessTree, principal: Principal, request: Message, need: Need) -> bool:
        """Tell whether what is in memory is enough to say yes, as it is for nearly every call; nothing else is said."""
        target, place = need.target, THE_CLUSTER
        if target is Target.VM:
            known = self._memory.known_place(getattr(request, need.field))
            if known is None:
                return False
            place = known
        elif target is not Target.CLUSTER and target is not Target.NODE:
            return False
        return need.permission in tree.permissions(principal, place)

    async def _require(self, tree: AccessTree, principal: Principal, request: Message, need: Need) -> None:
        if need.target is Target.CLUSTER:
            self._require_at(tree, principal, need, THE_CLUSTER)
            return
        if need.target is Target.PLACE:
            await self._require_in(tree, principal, need, request.project_id, request.folder_id)  # type: ignore[attr-defined]
            return
        if need.target is Target.NEW_VM:
            new = await self._place_of_new(tree, request, need)
            await self._require_in(tree, principal, need, new.project_id, new.folder_id)
            return
        if need.target is Target.RULED_VMS:
            await self._require_ruled(tree, principal, request, need)
            return
        if need.target is Target.CANDIDATES:
            self._require_candidates(tree, principal, request, need)
            return
        kind = self._kinds[need.target]
        thing_id = str(getattr(request, need.field)) or DEFAULT_PROJECT_ID
        place = await kind.find(tree, request, need)
        if place is None and (newer := await self._memory.rechecked()) is not tree:
            tree = newer
            place = await kind.find(tree, request, need)
        self._decide(tree, principal, need, place, kind, thing_id)

    async def _require_ruled(self, tree: AccessTree, principal: Principal, request: Message, need: Need) -> None:
        """Ask of each VM that rules name, unless the caller may do that to all; there may be thousands."""
        kind, vm_ids = self._kinds[Target.VM], ruled_vm_ids(request, need.field)
        if need.permission in tree.permissions(principal, THE_CLUSTER):
            # Where they are does not matter then, but the record names those that are known to be somewhere.
            vm_ids = vm_ids[:MAX_RULED_VMS]
        for vm_id in vm_ids:
            place = await self._memory.place_of_vm(vm_id)
            self._decide(tree, principal, need, place, kind, vm_id)

    def _require_candidates(self, tree: AccessTree, principal: Principal, request: Message, need: Need) -> None:
        for project_id in sorted({each.project_id or DEFAULT_PROJECT_ID for each in messages_at(request, need.field)}):  # type: ignore[attr-defined]
            place = Place(project_id) if tree.has_project(project_id) else None
            self._decide(tree, principal, need, place, self._kinds[Target.PROJECT], project_id)

    @staticmethod
    def _require_at(tree: AccessTree, principal: Principal, need: Need, place: Place) -> None:
        if need.permission not in tree.permissions(principal, place):
            raise access_errors.permission_missing(need.permission, place)

    async def _require_in(
        self, tree: AccessTree, principal: Principal, need: Need, project_id: str, folder_id: str
    ) -> None:
        """Decide about a place that is named by its ids, which may be wrong."""
        if not project_id and not folder_id:
            self._require_at(tree, principal, need, THE_CLUSTER)
            return
        kind = self._kinds[Target.FOLDER if folder_id else Target.PROJECT]
        place = _named(tree, project_id, folder_id)
        if place is None:
            tree = await self._memory.rechecked()
            place = _named(tree, project_id, folder_id)
        self._decide(tree, principal, need, place, kind, folder_id or project_id)

    @staticmethod
    def _decide(
        tree: AccessTree, principal: Principal, need: Need, place: Place | None, kind: _Kind, thing_id: str
    ) -> None:
        allowed = tree.permissions(principal, THE_CLUSTER if place is None else place)
        if need.permission in allowed:
            return
        if place is None or (kind.reading is not None and kind.reading not in allowed):
            raise kind.absent(thing_id)
        raise access_errors.permission_missing(need.permission, place)

    # -- where things are

    async def _vm(self, tree: AccessTree, request: Message, need: Need) -> Place | None:
        return await self._memory.place_of_vm(getattr(request, need.field))

    async def _cluster(self, tree: AccessTree, request: Message, need: Need) -> Place | None:
        return THE_CLUSTER

    async def _project(self, tree: AccessTree, request: Message, need: Need) -> Place | None:
        project_id = getattr(request, need.field) or DEFAULT_PROJECT_ID
        return Place(project_id) if tree.has_project(project_id) else None

    async def _folder(self, tree: AccessTree, request: Message, need: Need) -> Place | None:
        return tree.folder(getattr(request, need.field))

    async def _operation(self, tree: AccessTree, request: Message, need: Need) -> Place | None:
        operation_id = getattr(request, need.field)
        operation = await self._store.read(lambda tx: tx.get_operation(operation_id))
        if operation is None:
            return None
        if operation.resource_type == NODE:
            return THE_CLUSTER
        return await self._memory.place_of_vm(operation.resource_id) or Place(operation.project_id)

    async def _binding(self, tree: AccessTree, request: Message, need: Need) -> Place | None:
        binding = tree.binding(getattr(request, need.field))
        return None if binding is None else binding.place

    async def _project_of_vm(self, tree: AccessTree, request: Message, need: Need) -> Place | None:
        place = await self._vm(tree, request, need)
        return None if place is None else Place(place.project_id)

    async def _project_of_folder(self, tree: AccessTree, request: Message, need: Need) -> Place | None:
        place = await self._folder(tree, request, need)
        return None if place is None else Place(place.project_id)

    async def _place_of_new(self, tree: AccessTree, request: Message, need: Need) -> Place:
        source_id = getattr(request, need.field)
        source = await self._memory.place_of_vm(source_id) if source_id else None
        return place_of_new(
            request.project_id,  # type: ignore[attr-defined]
            request.folder_id,  # type: ignore[attr-defined]
            tree.folder(request.folder_id),  # type: ignore[attr-defined]
            source or Place(DEFAULT_PROJECT_ID),
        )


def _named(tree: AccessTree, project_id: str, folder_id: str) -> Place | None:
    if folder_id:
        return tree.folder(folder_id)
    return Place(project_id) if tree.has_project(project_id) else None


def _is_set(request: Message, field: str) -> bool:
    """Whether a field is filled in: a message or `optional` one by its presence, any other by its value.

    Args:
        field: its name, after those of the messages that it is in; messages that are absent have nothing filled in.
    """
    parents, _, name = field.rpartition(".")
    message: Message = attrgetter(parents)(request) if parents else request
    if message.DESCRIPTOR.fields_by_name[name].has_presence:
        return message.HasField(name)
    return bool(getattr(message, name))
