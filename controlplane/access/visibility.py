"""Which part of everything a caller is shown, for lists and streams.

Services are given a `Visibility`; a `Sight` of it is taken when a call begins, since streams go on in other tasks, and
asked again for everything that is shown, since what somebody may see can change meanwhile.
"""

from __future__ import annotations

from typing import Protocol

from controlplane.access.calling import caller
from controlplane.access.memory import AccessMemory
from controlplane.domain.access import Permission, Permissions, Place, VisiblePlaces
from controlplane.domain.principal import Principal


class Sight(Protocol):
    """What one caller sees, at any moment."""

    def places(self, permission: Permission) -> VisiblePlaces | None:
        """Where the caller has a permission; None for everywhere."""
        ...

    def permissions(self, place: Place) -> Permissions | None:
        """What the caller may do at a place; None for everything."""
        ...

    def vm_folder(self, vm_id: str) -> str:
        """In which folder a VM is, as far as is known without asking; "" otherwise, which shows less, never more."""
        ...


class Visibility(Protocol):
    """Where sights come from."""

    def of_caller(self) -> Sight:
        """The sight of whoever makes the call that is under way."""
        ...


class _SeesEverything:
    def places(self, permission: Permission) -> None:
        """Everywhere."""

    def permissions(self, place: Place) -> None:
        """Everything."""

    def vm_folder(self, vm_id: str) -> str:
        """Of no use to who sees everything."""
        return ""


class EverythingVisible:
    """Where no guard stands at the door, as in tests of services on their own."""

    def of_caller(self) -> Sight:
        """Everything."""
        return _SeesEverything()


class _CallersSight:
    def __init__(self, memory: AccessMemory, principal: Principal) -> None:
        self._memory = memory
        self._principal = principal

    def places(self, permission: Permission) -> VisiblePlaces | None:
        return self._memory.latest.visible(self._principal, permission)

    def permissions(self, place: Place) -> Permissions:
        return self._memory.latest.permissions(self._principal, place)

    def vm_folder(self, vm_id: str) -> str:
        place = self._memory.known_place(vm_id)
        return "" if place is None else place.folder_id


class CallersVisibility:
    """What the guard's caller may see."""

    def __init__(self, memory: AccessMemory) -> None:
        self._memory = memory

    def of_caller(self) -> Sight:
        """The caller's.

        Raises:
            NobodyCallsError: the transport has no guard.
        """
        return _CallersSight(self._memory, caller())
