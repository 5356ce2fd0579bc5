"""The procedure of cutting: what proves, what is repeated, what is given up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from controlplane.power import agent as procedure
from controlplane.power.agent import AgentController, AgentFailed, PowerReading
from controlplane.power.interface import PowerFailed

ON = PowerReading(False, "PowerState On")
OFF = PowerReading(True, "PowerState Off")
REFUSED = AgentFailed("status 409")


@dataclass
class ScriptedAgent:
    """Answers in turn, the last one for ever."""

    commands: list[str | AgentFailed]
    readings: list[PowerReading | AgentFailed]
    asked: list[str] = field(default_factory=list)
    kind: str = "scripted"
    address: str = "there"

    async def switch_off(self) -> str:
        self.asked.append("off")
        answer = self.commands.pop(0) if len(self.commands) > 1 else self.commands[0]
        if isinstance(answer, AgentFailed):
            raise answer
        return answer

    async def read(self) -> PowerReading:
        self.asked.append("read")
        answer = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(answer, AgentFailed):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procedure, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(procedure, "LONGEST_PAUSE_S", 0.001)


async def test_cut_reads_only_after_the_command_and_until_off() -> None:
    agent = ScriptedAgent(["ForceOff accepted"], [ON, AgentFailed("status 503"), OFF])
    evidence = await AgentController(agent).cut(30)
    assert evidence.words == "scripted there: ForceOff accepted, PowerState Off"
    assert agent.asked == ["off", "read", "read", "read"]


async def test_cut_of_a_host_that_is_off_is_fine_though_the_command_is_refused() -> None:
    evidence = await AgentController(ScriptedAgent([REFUSED], [OFF])).cut(30)
    assert evidence.words == "scripted there: status 409, PowerState Off"


async def test_cut_repeats_a_refused_command() -> None:
    agent = ScriptedAgent([REFUSED, "accepted"], [ON, OFF])
    await AgentController(agent).cut(30)
    assert agent.asked == ["off", "read", "off", "read"]


async def test_cut_repeats_an_accepted_command_that_did_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procedure, "REPEAT_AFTER_S", 0.0)
    agent = ScriptedAgent(["accepted"], [ON, OFF])
    await AgentController(agent).cut(30)
    assert agent.asked.count("off") == 2


async def test_cut_of_a_host_that_stays_on_fails_at_the_limit_and_says_what_was_tried() -> None:
    with pytest.raises(PowerFailed, match=r"^scripted there: accepted, PowerState On; not off within 0.2 s$"):
        await AgentController(ScriptedAgent(["accepted"], [ON])).cut(0.2)


async def test_cut_with_wrong_credentials_asks_once_so_as_not_to_lock_the_account() -> None:
    agent = ScriptedAgent([AgentFailed("status 401", is_final=True)], [OFF])
    with pytest.raises(PowerFailed, match="status 401, not asked since; given up"):
        await AgentController(agent).cut(30)
    assert agent.asked == ["off"]


async def test_cut_of_a_silent_controller_fails_at_the_limit() -> None:
    class Silent(ScriptedAgent):
        async def switch_off(self) -> str:
            await asyncio.Event().wait()
            return ""

    with pytest.raises(PowerFailed, match=r"command sent, no answer, not asked since; not off within 0.1 s"):
        await AgentController(Silent([""], [OFF])).cut(0.1)


async def test_cut_that_is_cancelled_is_no_failure_of_the_power() -> None:
    task = asyncio.create_task(AgentController(ScriptedAgent(["accepted"], [ON])).cut(30))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
