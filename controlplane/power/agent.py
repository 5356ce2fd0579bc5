"""Cutting the power by any protocol: what a protocol must do, and the procedure common to all."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from controlplane.power.interface import PowerEvidence, PowerFailed

MARGIN_SHARE = 0.05
"""So much of the limit is kept back, so that what was tried is told before whoever asked gives up."""

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
"""Controllers are small computers: asked more often, some answer nothing at all."""

REPEAT_AFTER_S = 3.0
"""A host still on so long after an accepted command is told again: some controllers lose one while they are busy."""


class AgentFailed(Exception):
    """A command or question got no usable answer; the message says which, and what came instead, without secrets.

    `is_final` says that asking again can only do harm: wrong credentials repeated lock an account.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


@dataclass(frozen=True, slots=True)
class PowerReading:
    """What a controller says of its host now. `words` are its own, such as "PowerState Off"."""

    is_off: bool
    words: str


class PowerAgent(Protocol):
    """One controller by its protocol. Its coroutines may be cancelled at any time, and leave nothing behind."""

    @property
    def kind(self) -> str:
        """The protocol, such as "redfish"."""
        ...

    @property
    def address(self) -> str:
        """Where it is, for people."""
        ...

    async def switch_off(self) -> str:
        """Command the power off at once, without asking the guest; return what was accepted. Idempotent.

        Raises:
            AgentFailed: it was not accepted; some controllers refuse when the host is off already.
        """
        ...

    async def read(self) -> PowerReading:
        """Ask for the state of the power.

        Raises:
            AgentFailed: no usable answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class AgentController:
    """A `PowerController` upon an agent: commands, then asks until the host is off."""

    agent: PowerAgent

    @property
    def kind(self) -> str:
        """Protocol of the agent."""
        return self.agent.kind

    async def cut(self, limit_s: float) -> PowerEvidence:
        """Cut the power; see `PowerController`. What was refused is no failure if the host then is off."""
        tried = _Tried()
        try:
            async with asyncio.timeout(limit_s * (1 - MARGIN_SHARE)):
                await self._until_off(tried)
        except TimeoutError:
            raise PowerFailed(self._told(f"{tried}; not off within {limit_s:g} s")) from None
        except AgentFailed as error:
            raise PowerFailed(self._told(f"{tried}; given up")) from error
        return PowerEvidence(self._told(str(tried)))

    async def _until_off(self, tried: _Tried) -> None:
        commanded_at_s: float | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            if commanded_at_s is None or time.monotonic() - commanded_at_s > REPEAT_AFTER_S:
                tried.command, tried.state = "command sent, no answer", "not asked since"
                try:
                    tried.command = await self.agent.switch_off()
                    commanded_at_s = time.monotonic()
                except AgentFailed as error:
                    commanded_at_s = None
                    tried.command = str(error)
                    if error.is_final:
                        raise
            tried.state = "asked for the state, no answer"
            try:
                reading = await self.agent.read()
                tried.state = reading.words
                if reading.is_off:
                    return
            except AgentFailed as error:
                tried.state = str(error)
                if error.is_final:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _told(self, words: str) -> str:
        return f"{self.agent.kind} {self.agent.address}: {words}"


@dataclass(slots=True)
class _Tried:
    """The latest command and answer, for evidence."""

    command: str = "nothing commanded"
    state: str = "nothing asked"

    def __str__(self) -> str:
        return f"{self.command}, {self.state}"
