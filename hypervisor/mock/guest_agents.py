"""The agent inside simulated guests: there once they have booted, with files, users and programs to act on."""

from __future__ import annotations

import hashlib
import ipaddress

from hypervisor import guest_answers
from hypervisor.errors import GuestAgentAbsent, GuestAgentRefused, GuestAgentSilent
from hypervisor.guest_answers import BadAnswer
from hypervisor.guests import (
    MAX_DELAY_S,
    MAX_FILE_BYTES,
    MAX_OUTPUT_BYTES,
    AgentPresence,
    CommandResult,
    FreezeStatus,
    GuestAgents,
    GuestCommand,
    GuestFile,
    GuestFileSystem,
    GuestInterface,
    GuestSystem,
    GuestUser,
)
from hypervisor.mock.faults import Operation
from hypervisor.mock.guest_disk import DiskFile, GuestFault, read_files, write_file
from hypervisor.mock.guest_programs import RELEASE, Inside, run
from hypervisor.mock.host import MockHost
from hypervisor.mock.store import MockVm
from hypervisor.types import EventKind, NicConfig, PowerState

VERSION = "8.0.0-mock"
SILENCE_S = 0.05
"""How long a silent agent keeps its caller waiting."""
FILE_SYSTEM_BYTES = 10 * 2**30
_PATH = "/usr/bin:/bin"
_SHADOW = "/etc/shadow"
_NETWORK = ipaddress.ip_network("10.0.0.0/8")
_GARBAGE = '{"return": [[[{"ip-addresses": NaN}'


class MockGuestAgents(GuestAgents):
    """Agents of simulated guests; see `GuestAgents` for every method."""

    def __init__(self, host: MockHost) -> None:
        self._host = host

    async def ping(self, vm_id: str) -> AgentPresence:
        """See `GuestAgents`."""
        vm = await self._reach(vm_id)
        return AgentPresence(VERSION, self._host.age_s(vm))

    async def system(self, vm_id: str) -> GuestSystem:
        """See `GuestAgents`."""
        vm = await self._reach(vm_id)
        return GuestSystem("Simulated Linux", "1", RELEASE, guest_answers.clean(vm.config.name), VERSION)

    async def interfaces(self, vm_id: str) -> tuple[GuestInterface, ...]:
        """Give each network card an address that follows from its MAC address."""
        vm = await self._reach(vm_id)
        cards = (_interface(number, nic) for number, nic in enumerate(vm.config.nics))
        return (GuestInterface("lo", "00:00:00:00:00:00", ("127.0.0.1", "::1")), *cards)

    async def file_systems(self, vm_id: str) -> tuple[GuestFileSystem, ...]:
        """See `GuestAgents`; there is one."""
        vm = await self._reach(vm_id)
        used_bytes = 2**30 + sum(len(each.data) for each in read_files(vm.disk_text).values())
        return (GuestFileSystem("/", "ext4", "vda1", FILE_SYSTEM_BYTES, used_bytes),)

    async def users(self, vm_id: str) -> tuple[GuestUser, ...]:
        """See `GuestAgents`; root is logged in on the console since the boot."""
        vm = await self._reach(vm_id)
        return (GuestUser("root", self._host.now_s() - self._host.age_s(vm)),)

    async def sync_time(self, vm_id: str) -> float:
        """See `GuestAgents`; a simulated guest looks at the host's clock."""
        await self._reach(vm_id)
        return 0.0

    async def execute(self, vm_id: str, command: GuestCommand) -> CommandResult:
        """See `GuestAgents`; what there is to run is in `guest_programs`."""
        vm = await self._reach(vm_id)
        if command.working_directory and not command.working_directory.startswith("/"):
            raise GuestAgentRefused(vm_id, f"cd: {guest_answers.clean(command.working_directory)}: No such directory")
        inside = Inside(
            guest_answers.clean(vm.config.name),
            lambda path: self._read(vm, path),
            {"PATH": _PATH, **command.environment},
            command.working_directory or "/",
            command.input,
        )
        ended = run((command.path, *command.arguments), inside)
        if not command.waits:
            return CommandResult(None)
        has_timed_out = ended.takes_s > command.time_limit_s
        if ended.takes_s:
            await self._host.sleep(min(ended.takes_s, command.time_limit_s))
        return CommandResult(
            None if has_timed_out else ended.exit_code,
            ended.stdout[:MAX_OUTPUT_BYTES],
            ended.stderr[:MAX_OUTPUT_BYTES],
            len(ended.stdout) > MAX_OUTPUT_BYTES,
            len(ended.stderr) > MAX_OUTPUT_BYTES,
            has_timed_out,
            was_killed=has_timed_out,
            duration_s=min(ended.takes_s, command.time_limit_s),
        )

    async def read_file(self, vm_id: str, path: str, max_bytes: int) -> GuestFile:
        """See `GuestAgents`."""
        if not 1 <= max_bytes <= MAX_FILE_BYTES:
            raise ValueError(f"max_bytes must be from 1 to {MAX_FILE_BYTES}")
        vm = await self._reach(vm_id)
        data = self._read(vm, path)
        if data is None:
            name = guest_answers.clean(path)
            raise GuestAgentRefused(vm_id, f"failed to open file '{name}' (mode: 'rb'): No such file or directory")
        return GuestFile(data[:max_bytes], len(data))

    async def write_file(self, vm_id: str, path: str, data: bytes, mode: int, *, makes_parents: bool) -> None:
        """See `GuestAgents`."""
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"data may hold {MAX_FILE_BYTES} bytes")
        vm = await self._reach(vm_id)
        try:
            vm.disk_text = write_file(vm.disk_text, path, DiskFile(data, mode or 0o644), makes_parents=makes_parents)
        except GuestFault as error:
            raise GuestAgentRefused(vm_id, guest_answers.clean(str(error), guest_answers.MAX_WORDS_CHARS)) from error
        self._host.touch(vm)
        await self._host.save()

    async def set_password(self, vm_id: str, user: str, password: str) -> None:
        """See `GuestAgents`; what is kept of it in the guest's /etc/shadow is a digest."""
        vm = await self._reach(vm_id)
        lines = [
            line for line in (self._read(vm, _SHADOW) or b"").decode().splitlines() if not line.startswith(f"{user}:")
        ]
        lines.append(f"{user}:{hashlib.sha256(f'{vm_id}{password}'.encode()).hexdigest()}")
        await self.write_file(
            vm_id, _SHADOW, "".join(f"{line}\n" for line in lines).encode(), 0o600, makes_parents=True
        )

    async def shut_down(self, vm_id: str, *, reboots: bool = False, delay_s: int = 0, message: str = "") -> None:
        """See `GuestAgents`; there is nobody in a simulated guest to keep a delay."""
        if not 0 <= delay_s <= MAX_DELAY_S:
            raise ValueError(f"delay_s must be from 0 to {MAX_DELAY_S}")
        vm = await self._reach(vm_id)
        if delay_s:
            raise GuestAgentRefused(vm_id, "a simulated guest shuts down at once or not at all")
        await self._host.sleep(self._host.settings.shutdown_s)
        vm = self._host.vm(vm_id)
        if vm.state is not PowerState.RUNNING:
            return
        if reboots:
            self._host.archive_log(vm)
            vm.cpu_before_s, vm.load_since_s = self._host.cpu_s(vm), 0.0
            vm.run_before_s, vm.running_since_s = 0.0, self._host.now_s()
            self._host.change(vm, PowerState.RUNNING, EventKind.REBOOTED)
        else:
            self._host.power_off(vm)
            self._host.change(vm, PowerState.STOPPED, EventKind.STOPPED, "guest shut down")
        await self._host.save()

    async def freeze(self, vm_id: str) -> int:
        """See `GuestAgents`."""
        vm = await self._reach(vm_id)
        vm.is_frozen = True
        self._host.touch(vm)
        await self._host.save()
        return 1

    async def thaw(self, vm_id: str) -> int:
        """See `GuestAgents`."""
        vm = await self._reach(vm_id, may_be_frozen=True)
        was_frozen, vm.is_frozen = vm.is_frozen, False
        self._host.touch(vm)
        await self._host.save()
        return int(was_frozen)

    async def freeze_status(self, vm_id: str) -> FreezeStatus:
        """See `GuestAgents`."""
        vm = await self._reach(vm_id, may_be_frozen=True)
        return FreezeStatus.FROZEN if vm.is_frozen else FreezeStatus.THAWED

    async def _reach(self, vm_id: str, *, may_be_frozen: bool = False) -> MockVm:
        """Return the VM if its agent answers now."""
        lost = await self._host.strike(Operation.ASK_GUEST, vm_id)
        vm, faults = self._host.vm(vm_id), self._host.faults
        self._host.require(vm, "ask the guest agent of", {PowerState.RUNNING})
        if vm_id in faults.absent_agent_vm_ids or self._host.age_s(vm) < self._host.settings.boot_s:
            raise GuestAgentAbsent(vm_id)
        if vm_id in faults.silent_agent_vm_ids:
            await self._host.sleep(SILENCE_S)
            raise GuestAgentSilent(vm_id, "it does not react; it may hang, or be busy")
        if vm_id in faults.garbage_agent_vm_ids:
            try:
                guest_answers.parse(_GARBAGE)
            except BadAnswer as error:
                raise GuestAgentRefused(vm_id, str(error)) from error
        if vm.is_frozen and not may_be_frozen:
            raise GuestAgentRefused(vm_id, "its file systems are frozen; the command is disabled meanwhile")
        self._host.lose_answer(lost)
        return vm

    def _read(self, vm: MockVm, path: str) -> bytes | None:
        made = {
            "/etc/hostname": f"{guest_answers.clean(vm.config.name)}\n".encode(),
            "/etc/os-release": b'NAME="Simulated Linux"\nVERSION_ID=1\n',
            "/proc/uptime": f"{self._host.age_s(vm):.2f} 0.00\n".encode(),
        }
        found = read_files(vm.disk_text).get(path)
        return found.data if found is not None else made.get(path)


def _interface(number: int, nic: NicConfig) -> GuestInterface:
    digest = int.from_bytes(hashlib.sha256(nic.mac_address.encode()).digest()[:3])
    return GuestInterface(f"eth{number}", nic.mac_address, (str(_NETWORK.network_address + digest),))
