"""The part of a node daemon's calls that is about the agents inside guests; see `controlplane.daemons.interface`.

All of them fail with reason GUEST_AGENT_ABSENT where no agent is connected, GUEST_AGENT_SILENT where it does not answer
in time, and GUEST_AGENT_REFUSED, with its words, where it refuses.
"""

from __future__ import annotations

from typing import Protocol

from limiquantix.node.v1.node_daemon_pb2 import (
    ExecuteInGuestRequest,
    ExecuteInGuestResponse,
    FreezeGuestRequest,
    FreezeGuestResponse,
    GetGuestInfoResponse,
    PingGuestAgentResponse,
    ReadGuestFileRequest,
    ReadGuestFileResponse,
    SetGuestPasswordRequest,
    ShutdownGuestRequest,
    SyncGuestTimeResponse,
    ThawGuestResponse,
    WriteGuestFileRequest,
)


class GuestCalls(Protocol):
    """Agents of guests."""

    async def ping_guest(self, vm_id: str) -> PingGuestAgentResponse:
        """Ask for a sign of life."""
        ...

    async def guest_info(self, vm_id: str) -> GetGuestInfoResponse:
        """Ask about the system inside."""
        ...

    async def execute_in_guest(self, request: ExecuteInGuestRequest) -> ExecuteInGuestResponse:
        """Run a program; not idempotent."""
        ...

    async def read_guest_file(self, request: ReadGuestFileRequest) -> ReadGuestFileResponse:
        """Read the beginning of a file."""
        ...

    async def write_guest_file(self, request: WriteGuestFileRequest) -> None:
        """Replace a file."""
        ...

    async def shut_down_guest(self, request: ShutdownGuestRequest) -> None:
        """Have the guest shut down or reboot; returns once its agent took that in."""
        ...

    async def set_guest_password(self, request: SetGuestPasswordRequest) -> None:
        """Set a user's password."""
        ...

    async def sync_guest_time(self, vm_id: str) -> SyncGuestTimeResponse:
        """Set the guest's clock to the host's."""
        ...

    async def freeze_guest(self, request: FreezeGuestRequest) -> FreezeGuestResponse:
        """Hold the guest's writes for a while."""
        ...

    async def thaw_guest(self, vm_id: str) -> ThawGuestResponse:
        """Let the guest's writes go on; fine if none are held."""
        ...
