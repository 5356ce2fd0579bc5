"""What high availability needs of a host's power controller, whichever protocol it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class PowerFailed(Exception):
    """The power was not cut, or nobody can say that it was; the message says what was tried and what came back.

    A controller that shares its host's power is silent when its host is dead: then this is raised, and the proof has to
    come from the lease or from a person.
    """


@dataclass(frozen=True, slots=True)
class PowerEvidence:
    """What a controller said, for people: "redfish https://10.0.0.7: ForceOff accepted, PowerState Off"."""

    words: str


class PowerController(Protocol):
    """The controller of one host."""

    @property
    def kind(self) -> str:
        """Its protocol, such as "redfish"."""
        ...

    async def cut(self, limit_s: float) -> PowerEvidence:
        """Cut the power and wait until the controller says that the host is off. Idempotent; fine if it is off.

        Never answers from what was known before: "off" must have been said after the command.

        Raises:
            PowerFailed: it did not come to that within `limit_s`.
        """
        ...


class PowerControllers(Protocol):
    """Those of all hosts."""

    def of(self, hostname: str) -> PowerController | None:
        """Return the controller of a host; None if none is configured."""
        ...
