"""Who acts: a person, a program, a host, or the control plane itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class PrincipalKind(enum.StrEnum):
    """What kind of thing acts."""

    USER = "user"
    API_KEY = "api-key"
    NODE = "node"
    CONTROL_PLANE = "controlplane"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Scope:
    """A ceiling to what an API key may do; an empty set leaves that open.

    Attributes:
        permissions: by name, such as "vm.read".
    """

    project_ids: frozenset[str] = frozenset()
    permissions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who was recognised.

    Attributes:
        id: of the user, the key, the node or the process.
        name: what people call it; of a node its host's name.
        groups: those of the user, or of the key's owner.
        scope: of an API key.
        session_id: of the login that the call belongs to; "" without one.
        owner_id: of an API key, the user whose it is.
        origin: from where it calls, "ipv4:192.0.2.7:51234".
    """

    kind: PrincipalKind
    id: str
    name: str
    groups: frozenset[str] = frozenset()
    scope: Scope | None = None
    session_id: str = ""
    owner_id: str = ""
    origin: str = ""

    @property
    def text(self) -> str:
        """As records and events name it: "user:alice", "node:<id>"."""
        return f"{self.kind}:{self.id if self.kind is PrincipalKind.NODE else self.name}"
