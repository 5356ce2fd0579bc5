"""What libvirt's errors of calls to a guest's agent mean: no agent, a silent one, a refusal, or a VM that is off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from hypervisor.errors import GuestAgentAbsent, GuestAgentRefused, GuestAgentSilent, HypervisorError, WrongState
from hypervisor.guest_answers import MAX_WORDS_CHARS, clean
from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.domain_state import power_state
from hypervisor.libvirt.error_map import ErrorCode, has_code

_QEMU_DRIVER: Final = 10
"""The `virErrorDomain` of what QEMU's driver in the daemon says, as opposed to the connection to it."""
_INTERNAL_ERROR: Final = 1
_ARGUMENT_UNSUPPORTED: Final = 74
_AT_ONCE_S: Final = 0.5
_GAVE_UP: Final = (
    "it broke off, or sent what libvirt does not take of it; it is heard again once it was restarted in the guest"
)
_NOT_CONNECTED: Final = "agent is not connected"
_CONNECTED_CHANNEL: Final = "devices/channel/target[@name='org.qemu.guest_agent.0'][@state='connected']"


class AgentErrors:
    """Explains the errors of one libvirt library. For worker threads."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @contextmanager
    def explained(self, domain: Any, vm_id: str, command: str, limit_s: int) -> Iterator[None]:
        """Raise our error for a call's; those that are not about the agent pass."""
        began_s = time.monotonic()
        try:
            yield
        except self._library.libvirtError as error:
            at_once = time.monotonic() - began_s < min(_AT_ONCE_S, limit_s / 2)
            explained = self._explain(error, domain, vm_id, command, at_once=at_once)
            if explained is None:
                raise
            raise explained from error

    def _explain(self, error: Any, domain: Any, vm_id: str, command: str, *, at_once: bool) -> HypervisorError | None:
        code, is_of_driver = error.get_error_code(), error.get_error_domain() == _QEMU_DRIVER
        explained: HypervisorError | None = None
        # libvirt 9.0 was seen to fail without saying why, in the moment in which an agent comes or goes.
        if code in (None, ErrorCode.AGENT_UNRESPONSIVE, ErrorCode.AGENT_UNSYNCED):
            explained = self._unresponsive(error, domain, vm_id, at_once=at_once)
        elif code == ErrorCode.OPERATION_INVALID:
            explained = WrongState(vm_id, "ask the guest agent of", power_state(*domain.state(), is_saved=False).value)
        elif code == _ARGUMENT_UNSUPPORTED and is_of_driver:  # the VM has no channel
            explained = GuestAgentAbsent(vm_id)
        elif code == ErrorCode.OPERATION_TIMEOUT:
            explained = GuestAgentSilent(vm_id, "another tool on the host waits for it")
        elif code == ErrorCode.SYSTEM_ERROR and is_of_driver:
            explained = GuestAgentSilent(vm_id, _GAVE_UP)
        elif code == ErrorCode.RPC and domain.connect().isAlive() == 1:
            explained = GuestAgentRefused(vm_id, "its answer is larger than can be taken")
        elif code == _INTERNAL_ERROR and is_of_driver:
            # libvirt puts a sentence of its own before the agent's; without it, the agent went away or sent nonsense.
            _, is_said, words = str(error.get_error_message() or "").rpartition(f"'{command}': ")
            refused = GuestAgentRefused(vm_id, clean(words.strip(), MAX_WORDS_CHARS))
            explained = refused if is_said else GuestAgentSilent(vm_id, _GAVE_UP)
        return explained

    def _unresponsive(self, error: Any, domain: Any, vm_id: str, *, at_once: bool) -> HypervisorError:
        # The sentence is of the moment of the call; a booting guest may open its channel before the next look.
        if _NOT_CONNECTED in str(error.get_error_message() or "") or not self._is_connected(domain):
            return GuestAgentAbsent(vm_id)
        return GuestAgentSilent(vm_id, _GAVE_UP if at_once else "it does not react; it may hang, or be busy")

    def _is_connected(self, domain: Any) -> bool:
        """Tell whether something in the guest has the agent's channel open."""
        try:
            return domain_xml.parse(domain.XMLDesc()).find(_CONNECTED_CHANNEL) is not None
        except self._library.libvirtError as error:
            if has_code(error, ErrorCode.NO_DOMAIN):  # gone with its process
                return False
            raise
