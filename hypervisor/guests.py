"""What the agent inside a guest can be asked: the optional power to look and act inside.

A guest is an enemy. Every answer is bounded in time and size and checked before it is believed to be an answer at all;
what it says is still only what the guest says. Names in answers hold no control, formatting or bidirectional
characters.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

MAX_OUTPUT_BYTES: Final = 2**20
"""Kept of each of a command's two outputs."""
MAX_FILE_BYTES: Final = 2**20
"""Read from or written to a file of a guest at once."""
MAX_COMMAND_BYTES: Final = 2**16
"""A command with its arguments and its environment."""
MAX_INPUT_BYTES: Final = 2**20
MAX_DELAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class AgentPresence:
    """An agent that answered. `uptime_s` is how long the guest's system has been up, None where it does not say."""

    version: str
    uptime_s: float | None = None


@dataclass(frozen=True, slots=True)
class GuestSystem:
    """The system inside a guest; "" for what it does not tell."""

    os_name: str = ""
    os_version: str = ""
    kernel_version: str = ""
    hostname: str = ""
    agent_version: str = ""


@dataclass(frozen=True, slots=True)
class GuestInterface:
    """A network interface as the guest has it; addresses are canonical and without prefix length."""

    name: str
    mac_address: str = ""
    ip_addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuestFileSystem:
    """A file system that is mounted; sizes are 0 where the guest does not tell."""

    mount_point: str
    kind: str
    device: str = ""
    total_bytes: int = 0
    used_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GuestUser:
    """Somebody who is logged in."""

    name: str
    logged_in_at_s: float = 0.0
    """Unix time by the guest's clock."""


@dataclass(frozen=True, slots=True)
class GuestCommand:
    """A program to run in a guest. Its arguments reach it as they are: no shell looks at them.

    Its environment is `environment`, with a PATH if there is none in it. Without `waits` nothing is said of how it
    ends and no limit holds; with it, what still runs after `time_limit_s` is killed, with what it started, where the
    guest has the means (a POSIX shell and /proc).
    """

    path: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    working_directory: str = ""
    input: bytes = field(default=b"", repr=False)
    time_limit_s: float = 30.0
    waits: bool = True

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            ValueError: larger than the agent's channel should carry.
        """
        words = (self.path, self.working_directory, *self.arguments, *self.environment, *self.environment.values())
        if sum(len(word.encode(errors="surrogatepass")) + 1 for word in words) > MAX_COMMAND_BYTES:
            raise ValueError(f"command, arguments and environment may hold {MAX_COMMAND_BYTES} bytes together")
        if len(self.input) > MAX_INPUT_BYTES:
            raise ValueError(f"input may hold {MAX_INPUT_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended.

    `exit_code` is 128 and the signal's number for one that a signal ended, None for one that was not waited for or ran
    out of time. Output beyond `MAX_OUTPUT_BYTES` is dropped; of one that ran out of time there is none.
    """

    exit_code: int | None
    stdout: bytes = field(default=b"", repr=False)
    stderr: bytes = field(default=b"", repr=False)
    is_stdout_cut: bool = False
    is_stderr_cut: bool = False
    has_timed_out: bool = False
    was_killed: bool = False
    """Of one that ran out of time: whether the guest was made to end it."""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GuestFile:
    """The beginning of a file, and how many bytes the guest says it has."""

    data: bytes = field(repr=False)
    size_bytes: int


class FreezeStatus(enum.Enum):
    """Whether the guest's file systems take writes."""

    THAWED = "thawed"
    FROZEN = "frozen"


class GuestAgents(ABC):
    """What the agent inside a guest can be asked; see `Hypervisor` for the rules that hold for every method.

    Calls for one VM may be made at once: they do not wait for other operations on it, nor these for them. Besides what
    is said there, every method may raise:

        WrongState: the VM is not running.
        GuestAgentAbsent: no agent is connected.
        GuestAgentSilent: it did not answer in time.
        GuestAgentRefused: it refused, or answered nonsense.
    """

    @abstractmethod
    async def ping(self, vm_id: str) -> AgentPresence:
        """Ask for a sign of life."""

    @abstractmethod
    async def system(self, vm_id: str) -> GuestSystem:
        """Ask what runs inside."""

    @abstractmethod
    async def interfaces(self, vm_id: str) -> tuple[GuestInterface, ...]:
        """Ask for network interfaces with their addresses; at most 256, with 256 addresses in all."""

    @abstractmethod
    async def file_systems(self, vm_id: str) -> tuple[GuestFileSystem, ...]:
        """Ask what is mounted; at most 1,024."""

    @abstractmethod
    async def users(self, vm_id: str) -> tuple[GuestUser, ...]:
        """Ask who is logged in; at most 256."""

    @abstractmethod
    async def sync_time(self, vm_id: str) -> float:
        """Set the guest's clock to the host's; returns the seconds it was ahead, negative if it was behind."""

    @abstractmethod
    async def execute(self, vm_id: str, command: GuestCommand) -> CommandResult:
        """Run a program. Running it twice is two runs; one whose caller is cancelled runs on.

        Raises:
            GuestAgentRefused: also for a program that cannot be started, where the guest says so.
        """

    @abstractmethod
    async def read_file(self, vm_id: str, path: str, max_bytes: int) -> GuestFile:
        """Read the beginning of a file.

        Args:
            max_bytes: 1 to `MAX_FILE_BYTES`.
        """

    @abstractmethod
    async def write_file(self, vm_id: str, path: str, data: bytes, mode: int, *, makes_parents: bool) -> None:
        """Replace a file's contents, or make it. Idempotent.

        On guests with a POSIX shell the old contents stay until the new ones are complete; on others, only `mode` 0
        without `makes_parents` is taken.

        Args:
            data: at most `MAX_FILE_BYTES`.
            mode: permission bits; 0 keeps those of a file that is there and gives a new one 0644.
            makes_parents: makes directories that are missing.
        """

    @abstractmethod
    async def set_password(self, vm_id: str, user: str, password: str) -> None:
        """Set a user's password. Idempotent."""

    @abstractmethod
    async def shut_down(self, vm_id: str, *, reboots: bool = False, delay_s: int = 0, message: str = "") -> None:
        """Have the guest shut down or reboot, and return once it took that in.

        Args:
            delay_s: 0 to `MAX_DELAY_S`, kept by the guest; it and `message`, which the guest shows to its users, take
                a guest with a POSIX shell.
        """

    @abstractmethod
    async def freeze(self, vm_id: str) -> int:
        """Have the guest write everything out and hold all further writes; returns how many file systems hold.

        Every agent refuses nearly everything while it is frozen. Whoever freezes has to see to the thaw.
        """

    @abstractmethod
    async def thaw(self, vm_id: str) -> int:
        """Let writes go on; returns how many file systems were held. Fine if none was."""

    @abstractmethod
    async def freeze_status(self, vm_id: str) -> FreezeStatus:
        """Ask whether file systems are frozen."""
