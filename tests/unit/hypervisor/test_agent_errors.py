"""libvirt's errors of calls to a guest's agent, explained."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from hypervisor.errors import GuestAgentAbsent, GuestAgentSilent
from hypervisor.libvirt.agent_errors import AgentErrors
from hypervisor.libvirt.error_map import ErrorCode

QEMU_DRIVER = 10


class Domain:
    """A domain whose channel is in a given state by the time it is looked at."""

    def __init__(self, channel_state: str) -> None:
        self._channel_state = channel_state

    def XMLDesc(self) -> str:
        target = f"<target type='virtio' name='org.qemu.guest_agent.0' state='{self._channel_state}'/>"
        return f"<domain><devices><channel type='unix'>{target}</channel></devices></domain>"


def libvirt_error(code: int, words: str) -> Any:
    error = libvirt.libvirtError("call failed")
    error.err = (code, QEMU_DRIVER, f"Guest agent is not responding: {words}", 2, words, None, None, -1, -1)
    return error


@pytest.mark.parametrize(
    ("words", "channel_state", "meaning"),
    [
        ("QEMU guest agent is not connected", "disconnected", GuestAgentAbsent),
        # A guest that boots opened its channel between the call and the look at the definition.
        ("QEMU guest agent is not connected", "connected", GuestAgentAbsent),
        ("Guest agent disappeared while executing command", "disconnected", GuestAgentAbsent),
        ("QEMU guest agent is not available due to an error", "connected", GuestAgentSilent),
        ("Guest agent not available for now", "connected", GuestAgentSilent),
    ],
)
def test_unresponsive_agent_is_absent_or_silent(words: str, channel_state: str, meaning: type[Exception]) -> None:
    errors = AgentErrors(libvirt)
    with pytest.raises(meaning), errors.explained(Domain(channel_state), "vm-1", "guest-ping", 5):
        raise libvirt_error(ErrorCode.AGENT_UNRESPONSIVE, words)
