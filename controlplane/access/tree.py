"""What everybody may do at every place, worked out from the facts of one revision. Pure, and never changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controlplane.domain.access import (
    BUILT_IN_ROLES,
    EVERYTHING,
    AccessFacts,
    Binding,
    Permission,
    Permissions,
    Place,
    Role,
    VisiblePlaces,
)
from controlplane.domain.principal import Principal, PrincipalKind, Scope

MAX_REMEMBERED = 100_000
"""Answers that are kept; beyond, all are worked out again. Each takes about 300 bytes."""

MAX_VISIBLE_IDS = 1_000_000
"""Ids of projects and folders in such answers, about 60 bytes each."""

_NOTHING: Permissions = frozenset()
_NO_LIMIT = Scope()
_PEOPLE = frozenset({PrincipalKind.USER, PrincipalKind.API_KEY})

_Who = tuple[PrincipalKind, str, str, frozenset[str], Scope | None]


class AccessTree:
    """Answers questions about access; an answer is worked out once."""

    def __init__(self, facts: AccessFacts) -> None:
        self._facts = facts
        self._granted: dict[str, list[tuple[str, Permissions]]] = {}
        for binding in facts.bindings:
            role = self.role(binding.role_id)
            if role is not None:
                self._granted.setdefault(binding.subject, []).append((binding.place.key, role.permissions))
        self._children: dict[str, list[str]] = {}
        for folder_id, folder in facts.folders.items():
            self._children.setdefault(folder.parent_id, []).append(folder_id)
        self._permissions: dict[tuple[_Who, str, str], Permissions] = {}
        self._visible: dict[tuple[_Who, str], VisiblePlaces | None] = {}
        self._visible_id_count = 0

    @property
    def revision(self) -> int:
        """Of the facts."""
        return self._facts.revision

    def role(self, role_id: str) -> Role | None:
        """Find a role."""
        return BUILT_IN_ROLES.get(role_id) or self._facts.roles.get(role_id)

    def binding(self, binding_id: str) -> Binding | None:
        """Find a binding."""
        return next((each for each in self._facts.bindings if each.id == binding_id), None)

    def has_project(self, project_id: str) -> bool:
        """Whether there is such a project."""
        return project_id in self._facts.projects

    def folder(self, folder_id: str) -> Place | None:
        """Say in which project a folder is."""
        found = self._facts.folders.get(folder_id)
        return None if found is None else Place(found.project_id, folder_id)

    def permissions(self, principal: Principal, place: Place) -> Permissions:
        """What somebody may do at a place: what is granted there or above, within the scope of an API key."""
        if principal.kind is PrincipalKind.SYSTEM:
            return EVERYTHING
        # Both ids: a folder that is said to be of another project must not be taken for the one of that id.
        asked = (_who(principal), place.project_id, place.folder_id)
        found = self._permissions.get(asked)
        if found is None:
            if len(self._permissions) >= MAX_REMEMBERED:
                self._permissions.clear()
            found = self._permissions[asked] = self._worked_out(principal, place)
        return found

    def visible(self, principal: Principal, permission: Permission) -> VisiblePlaces | None:
        """In which part of the tree somebody has a permission; None if everywhere."""
        if principal.kind is PrincipalKind.SYSTEM:
            return None
        key = (_who(principal), str(permission))
        if key not in self._visible:
            found = self._where(principal, permission)
            id_count = 0 if found is None else len(found.project_ids) + len(found.folder_ids)
            if len(self._visible) >= MAX_REMEMBERED or self._visible_id_count + id_count > MAX_VISIBLE_IDS:
                self._visible.clear()
                self._visible_id_count = 0
            self._visible[key] = found
            self._visible_id_count += id_count
        return self._visible[key]

    def covers(self, first: Principal, second: Principal) -> bool:
        """Whether the first may do everywhere all that the second may: what is granted elsewhere comes from above."""
        places = {binding.place for binding in self._facts.bindings}
        return all(self.permissions(second, place) <= self.permissions(first, place) for place in places)

    def differing(self, first: Place, second: Place) -> Permissions:
        """What anybody may do at one of two places by a role that does not count at the other."""
        keys = frozenset(self._lineage(first)) ^ frozenset(self._lineage(second))
        return _NOTHING.union(
            *(permissions for granted in self._granted.values() for key, permissions in granted if key in keys)
        )

    def _where(self, principal: Principal, permission: Permission) -> VisiblePlaces | None:
        """Work it out from what is granted, and not from all that there is: that may be ten thousand folders."""
        scope = principal.scope or _NO_LIMIT
        if scope.permissions and permission not in scope.permissions:
            return VisiblePlaces()
        granted = {
            key
            for subject in _subjects(principal)
            for key, permissions in self._granted.get(subject, ())
            if permission in permissions
        }
        if "" in granted and not scope.project_ids:
            return None
        projects = self._facts.projects.keys() & (scope.project_ids if "" in granted else granted)
        if scope.project_ids:
            projects &= scope.project_ids
        folders = self._below(granted, scope.project_ids)
        return VisiblePlaces(
            frozenset(projects),
            frozenset(each for each in folders if self._facts.folders[each].project_id not in projects),
        )

    def _below(self, keys: Iterable[str], project_ids: frozenset[str]) -> set[str]:
        """Folders among the keys, in these projects if any are named, and all below them."""
        found: set[str] = set()
        waiting = [key for key in keys if key in self._facts.folders]
        while waiting:
            folder_id = waiting.pop()
            project_id = self._facts.folders[folder_id].project_id
            if folder_id in found or (project_ids and project_id not in project_ids):
                continue
            found.add(folder_id)
            inner = self._children.get(folder_id, ())
            waiting.extend(each for each in inner if self._facts.folders[each].project_id == project_id)
        return found

    def _worked_out(self, principal: Principal, place: Place) -> Permissions:
        scope = principal.scope
        if scope is not None and scope.project_ids and place.project_id not in scope.project_ids:
            return _NOTHING
        lineage = frozenset(self._lineage(place))
        granted = _NOTHING.union(
            *(
                permissions
                for subject in _subjects(principal)
                for key, permissions in self._granted.get(subject, ())
                if key in lineage
            )
        )
        return granted & scope.permissions if scope is not None and scope.permissions else granted

    def _lineage(self, place: Place) -> Iterator[str]:
        """Keys of the place and of all above it; a folder that is unknown, or of another project, gives nothing."""
        folder_id = place.folder_id
        while folder_id and (folder := self._facts.folders.get(folder_id)) is not None:
            if folder.project_id != place.project_id:
                break
            yield folder_id
            folder_id = folder.parent_id
        yield from ({place.project_id, ""})


def _who(principal: Principal) -> _Who:
    """All of a principal that matters here, which is the same on every connection."""
    return principal.kind, principal.id, principal.owner_id, principal.groups, principal.scope


def _subjects(principal: Principal) -> Iterator[str]:
    if principal.kind in _PEOPLE:
        yield user_subject(principal.owner_id if principal.kind is PrincipalKind.API_KEY else principal.id)
        yield from (f"group:{name}" for name in principal.groups)


def user_subject(user_id: str) -> str:
    """How bindings name a user."""
    return f"user:{user_id}"
