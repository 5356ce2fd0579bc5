"""QEMU's guest agent, through libvirt: one call of the agent's protocol is one visit to a thread.

libvirt drops answers that nobody waits for, and after a time-out synchronises with the agent before it goes on; it
bounds an answer to 10 MiB, and its protocol with us to 4 MiB. Its threads and those here are held for seconds by an
agent that hangs; so agents have threads of their own, a VM has at most one of them, and nobody queues for an agent that
is known to be silent while another call tries it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from hypervisor import guest_answers
from hypervisor.errors import GuestAgentAbsent, GuestAgentRefused, GuestAgentSilent, WrongState
from hypervisor.guest_answers import BadAnswer, ProcessState
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
from hypervisor.libvirt import guest_scripts
from hypervisor.libvirt.agent_errors import AgentErrors
from hypervisor.libvirt.library import load_libvirt_qemu
from hypervisor.libvirt.visits import Visits
from hypervisor.libvirt.worker_pool import Lane

T = TypeVar("T")

CALL_S: Final = 5
"""For an answer. libvirt waits 5 s more for an agent to synchronise that did not answer the last time."""
SLOW_CALL_S: Final = 20
"""For what waits for disks or for other programs in the guest: freezing, passwords, the clock."""
ACCEPTED_S: Final = 3
"""An agent that can shut down says nothing; one that cannot says so within milliseconds."""
_VISIT_MARGIN_S: Final = 15.0
"""Beyond the agent's time: libvirt's for synchronising, and for our calls that are before this one."""
MAX_REQUEST_BYTES: Final = 160 * 2**10
"""libvirt 9.0 was seen to mangle requests that its socket does not take at once; Linux lets that hold 208 KiB."""
_READ_PIECE_BYTES: Final = 256 * 2**10
_WRITE_PIECE_BYTES: Final = 64 * 2**10
"""As base64, with a command as long as one may be, well below the largest request."""
_SCRIPT_LIMIT_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 1.0
_END_OF_KILLED_S: Final = 3.0


class LibvirtGuestAgents(GuestAgents):
    """Agents of QEMU guests on one host; see `GuestAgents` for every method."""

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._errors = AgentErrors(visits.connection.library)
        self._silent: set[str] = set()
        self._asking: Counter[str] = Counter()

    # looking

    async def ping(self, vm_id: str) -> AgentPresence:
        """Ask for the version, and for the uptime if the guest is a Linux."""
        version = await self._ask(vm_id, guest_answers.read_version, "guest-info")
        with contextlib.suppress(GuestAgentRefused, ValueError, IndexError):
            text = (await self.read_file(vm_id, "/proc/uptime", 64)).data.decode("ascii")
            uptime_s = float(text.split()[0])
            if 0 <= uptime_s < 2**33:
                return AgentPresence(version, uptime_s)
        return AgentPresence(version)

    async def system(self, vm_id: str) -> GuestSystem:
        """See `GuestAgents`; agents before QEMU 2.10 only tell their version."""
        version = await self._ask(vm_id, guest_answers.read_version, "guest-info")
        hostname = ""
        with contextlib.suppress(GuestAgentRefused):
            hostname = await self._ask(vm_id, guest_answers.read_hostname, "guest-get-host-name")
        system = GuestSystem(hostname=hostname, agent_version=version)
        with contextlib.suppress(GuestAgentRefused):
            read = partial(guest_answers.read_system, hostname=hostname, agent_version=version)
            system = await self._ask(vm_id, read, "guest-get-osinfo")
        return system

    async def interfaces(self, vm_id: str) -> tuple[GuestInterface, ...]:
        """See `GuestAgents`."""
        return await self._ask(vm_id, guest_answers.read_interfaces, "guest-network-get-interfaces")

    async def file_systems(self, vm_id: str) -> tuple[GuestFileSystem, ...]:
        """See `GuestAgents`; QEMU's agent lists those on disks."""
        return await self._ask(vm_id, guest_answers.read_file_systems, "guest-get-fsinfo")

    async def users(self, vm_id: str) -> tuple[GuestUser, ...]:
        """See `GuestAgents`."""
        return await self._ask(vm_id, guest_answers.read_users, "guest-get-users")

    # acting

    async def sync_time(self, vm_id: str) -> float:
        """See `GuestAgents`; the guest's clock is compared in the middle of the asking."""
        asked_s = time.time()
        guest_ns = await self._ask(vm_id, guest_answers.read_time_ns, "guest-get-time")
        ahead_s = guest_ns / 1e9 - (asked_s + time.time()) / 2
        await self._ask(
            vm_id, guest_answers.read_nothing, "guest-set-time", {"time": time.time_ns()}, limit_s=SLOW_CALL_S
        )
        return ahead_s

    async def set_password(self, vm_id: str, user: str, password: str) -> None:
        """See `GuestAgents`."""
        arguments = {"username": user, "password": _encode(password.encode()), "crypted": False}
        try:
            await self._ask(
                vm_id, guest_answers.read_nothing, "guest-set-user-password", arguments, limit_s=SLOW_CALL_S
            )
        except GuestAgentRefused as error:
            if password in error.words:  # an agent that tells everybody what it was told
                raise GuestAgentRefused(vm_id, "the password was not taken") from None
            raise

    async def shut_down(self, vm_id: str, *, reboots: bool = False, delay_s: int = 0, message: str = "") -> None:
        """See `GuestAgents`. An agent that obeys does not answer, so it is asked for a sign of life before."""
        if not 0 <= delay_s <= MAX_DELAY_S:
            raise ValueError(f"delay_s must be from 0 to {MAX_DELAY_S}")
        if delay_s or message:
            words = (str(delay_s), "-r" if reboots else "-P", message)
            script = ("-c", guest_scripts.SHUT_DOWN, guest_scripts.NAME, *words)
            await self._start(vm_id, guest_scripts.SHELL, script, {"PATH": guest_scripts.DEFAULT_PATH})
            return
        await self._ask(vm_id, guest_answers.read_nothing, "guest-ping")
        mode = {"mode": "reboot" if reboots else "powerdown"}
        with contextlib.suppress(GuestAgentSilent, GuestAgentAbsent, WrongState):
            await self._ask(vm_id, guest_answers.read_nothing, "guest-shutdown", mode, limit_s=ACCEPTED_S)
        self._silent.discard(vm_id)

    async def freeze(self, vm_id: str) -> int:
        """See `GuestAgents`."""
        return await self._ask(vm_id, guest_answers.read_count, "guest-fsfreeze-freeze", limit_s=SLOW_CALL_S)

    async def thaw(self, vm_id: str) -> int:
        """See `GuestAgents`."""
        return await self._ask(vm_id, guest_answers.read_count, "guest-fsfreeze-thaw", limit_s=SLOW_CALL_S)

    async def freeze_status(self, vm_id: str) -> FreezeStatus:
        """See `GuestAgents`."""
        return await self._ask(vm_id, guest_answers.read_freeze_status, "guest-fsfreeze-status")

    # commands

    async def execute(self, vm_id: str, command: GuestCommand) -> CommandResult:
        """See `GuestAgents`.

        A POSIX shell stands between the agent and the command, to bound what it prints; where there is none, a command
        that prints more than some 3 MiB fails.
        """
        began_s = time.monotonic()
        mark = secrets.token_hex(16)
        pid = await self._start_command(vm_id, command, mark)
        if not command.waits:
            return CommandResult(None)
        state = await self._wait(vm_id, pid, began_s + command.time_limit_s)
        has_timed_out = state.exit_code is None
        was_killed = False
        if has_timed_out:
            was_killed, state = await self._kill(vm_id, pid, mark)
        return CommandResult(
            None if has_timed_out else state.exit_code,
            state.stdout,
            state.stderr,
            state.is_stdout_cut,
            state.is_stderr_cut,
            has_timed_out,
            was_killed,
            time.monotonic() - began_s,
        )

    async def _start_command(self, vm_id: str, command: GuestCommand, mark: str) -> int:
        environment = {"PATH": guest_scripts.DEFAULT_PATH, **command.environment, guest_scripts.MARK: mark}
        data, input_path = command.input, ""
        if len(data) > _WRITE_PIECE_BYTES:
            data, input_path = b"", f"/tmp/.limiquantix-{mark}"  # noqa: S108 - the guest's, of a name nobody can guess
            await self._stage(vm_id, input_path, command.input)
        words = (command.working_directory, input_path, command.path, *command.arguments)
        # One byte more than is kept shows that there was more.
        bounded = (guest_scripts.BOUNDED, guest_scripts.NAME, str(MAX_OUTPUT_BYTES + 1))
        script = bounded if command.waits else (guest_scripts.DETACHED, guest_scripts.NAME)
        try:
            return await self._start(
                vm_id, guest_scripts.SHELL, ("-c", *script, *words), environment, data, captures=command.waits
            )
        except GuestAgentRefused:
            if command.working_directory or input_path:
                raise
        # No such shell: a Windows, whose programs need more of their environment than we know.
        environment = {**command.environment} if command.environment else {}
        return await self._start(vm_id, command.path, command.arguments, environment, data, captures=command.waits)

    async def _stage(self, vm_id: str, path: str, data: bytes) -> None:
        """Put a long input into a file of the guest, which the command's shell removes as it opens it."""
        first, rest = data[:_WRITE_PIECE_BYTES], data[_WRITE_PIECE_BYTES:]
        await self._run_script(vm_id, ("-c", guest_scripts.APPEND, guest_scripts.NAME, path), first)
        await self._write_pieces(vm_id, path, rest, "ab")

    async def _start(
        self,
        vm_id: str,
        path: str,
        arguments: tuple[str, ...],
        environment: dict[str, str],
        data: bytes = b"",
        *,
        captures: bool = False,
    ) -> int:
        """Start a program and return its process id."""
        request: dict[str, Any] = {"path": path, "arg": list(arguments), "capture-output": captures}
        if environment:
            request["env"] = [f"{name}={value}" for name, value in environment.items()]
        if data:
            request["input-data"] = _encode(data)
        return await self._ask(vm_id, guest_answers.read_pid, "guest-exec", request)

    async def _wait(self, vm_id: str, pid: int, until_s: float) -> ProcessState:
        """Return how a process ended, or that it has not by that time of the monotonic clock."""
        pause_s = _FIRST_PAUSE_S
        while True:
            state = await self._ask(
                vm_id,
                partial(guest_answers.read_process, max_output_bytes=MAX_OUTPUT_BYTES),
                "guest-exec-status",
                {"pid": pid},
                limit_s=SLOW_CALL_S,
            )
            left_s = until_s - time.monotonic()
            if state.exit_code is not None or left_s <= 0:
                return state
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)

    async def _kill(self, vm_id: str, pid: int, mark: str) -> tuple[bool, ProcessState]:
        """Kill a command with all it started; returns whether that worked, and what it had printed."""
        script = ("-c", guest_scripts.KILL, guest_scripts.NAME, f"{guest_scripts.MARK}={mark}")
        with contextlib.suppress(GuestAgentRefused):
            await self._run_script(vm_id, script)
            state = await self._wait(vm_id, pid, time.monotonic() + _END_OF_KILLED_S)
            return state.exit_code is not None, state
        return False, ProcessState(None)

    async def _run_script(self, vm_id: str, arguments: tuple[str, ...], data: bytes = b"") -> bytes:
        """Run one of our own programs, which print little and end soon; returns what it printed.

        Raises:
            GuestAgentRefused: it failed; with what it complained of.
        """
        environment = {"PATH": guest_scripts.DEFAULT_PATH}
        pid = await self._start(vm_id, guest_scripts.SHELL, arguments, environment, data, captures=True)
        state = await self._wait(vm_id, pid, time.monotonic() + _SCRIPT_LIMIT_S)
        if state.exit_code is None:
            raise GuestAgentSilent(vm_id, f"what it runs took longer than {_SCRIPT_LIMIT_S:g} s")
        if state.exit_code != 0:
            complaint = state.stderr.decode(errors="replace").strip()
            words = guest_answers.clean(complaint, guest_answers.MAX_WORDS_CHARS)
            raise GuestAgentRefused(vm_id, words or f"what it runs ended with {state.exit_code}")
        return state.stdout

    # files

    async def read_file(self, vm_id: str, path: str, max_bytes: int) -> GuestFile:
        """See `GuestAgents`."""
        if not 1 <= max_bytes <= MAX_FILE_BYTES:
            raise ValueError(f"max_bytes must be from 1 to {MAX_FILE_BYTES}")
        arguments: dict[str, Any] = {"path": path, "mode": "rb"}
        handle = await self._ask(vm_id, guest_answers.read_handle, "guest-file-open", arguments)
        try:
            data = await self._read_pieces(vm_id, handle, max_bytes)
            size_bytes = len(data)
            with contextlib.suppress(GuestAgentRefused):  # a pipe has no end to go to
                arguments = {"handle": handle, "offset": 0, "whence": "end"}
                size_bytes = await self._ask(vm_id, guest_answers.read_position, "guest-file-seek", arguments)
        finally:
            await self._close_file(vm_id, handle)
        return GuestFile(data, max(size_bytes, len(data)))

    async def _read_pieces(self, vm_id: str, handle: int, max_bytes: int) -> bytes:
        data = b""
        is_end = False
        while not is_end and len(data) < max_bytes:
            count = min(_READ_PIECE_BYTES, max_bytes - len(data))
            piece, is_end = await self._ask(
                vm_id,
                partial(guest_answers.read_piece, max_bytes=count),
                "guest-file-read",
                {"handle": handle, "count": count},
            )
            data += piece
        return data

    async def write_file(self, vm_id: str, path: str, data: bytes, mode: int, *, makes_parents: bool) -> None:
        """See `GuestAgents`."""
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"data may hold {MAX_FILE_BYTES} bytes")
        if not await self._has_shell(vm_id):
            if mode or makes_parents:
                raise GuestAgentRefused(vm_id, f"without {guest_scripts.SHELL} it can set no mode and make no parents")
            await self._write_pieces(vm_id, path, data, "wb")
            return
        words = (path, f"{mode or 0o644:o}", "1" if makes_parents else "", secrets.token_hex(8))
        script = ("-c", guest_scripts.WRITE, guest_scripts.NAME, *words)
        if len(data) > _WRITE_PIECE_BYTES:
            # The agent's own way to write is faster, but can neither make a file that is private nor replace one.
            told = await self._run_script(vm_id, (*script, ""), data[:_WRITE_PIECE_BYTES])
            unfinished = told.decode(errors="replace")
            try:
                await self._write_pieces(vm_id, unfinished, data[_WRITE_PIECE_BYTES:], "ab")
            except GuestAgentRefused:
                with contextlib.suppress(GuestAgentRefused):
                    await self._run_script(vm_id, ("-c", guest_scripts.DROP, guest_scripts.NAME, unfinished))
                raise
            data = b""
        await self._run_script(vm_id, (*script, "1"), data)

    async def _has_shell(self, vm_id: str) -> bool:
        try:
            await self._run_script(vm_id, ("-c", ":"))
        except GuestAgentRefused:
            return False
        return True

    async def _write_pieces(self, vm_id: str, path: str, data: bytes, mode: str) -> None:
        """Write by the agent's own means; what cannot be completed is left as far as it came."""
        arguments: dict[str, Any] = {"path": path, "mode": mode}
        handle = await self._ask(vm_id, guest_answers.read_handle, "guest-file-open", arguments)
        try:
            for piece in _pieces(data):
                read = partial(guest_answers.read_written, asked_bytes=len(piece))
                request = {"handle": handle, "buf-b64": _encode(piece)}
                if await self._ask(vm_id, read, "guest-file-write", request) != len(piece):
                    raise GuestAgentRefused(vm_id, "it wrote less than it was given; its disk may be full")
        finally:
            await self._close_file(vm_id, handle)

    async def _close_file(self, vm_id: str, handle: int) -> None:
        with contextlib.suppress(GuestAgentRefused, GuestAgentSilent, GuestAgentAbsent, WrongState):
            await self._ask(vm_id, guest_answers.read_nothing, "guest-file-close", {"handle": handle})

    # one call

    async def _ask(
        self,
        vm_id: str,
        read: Callable[[Any], T],
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        limit_s: int = CALL_S,
    ) -> T:
        """Make one call of the protocol and read its answer."""
        if vm_id in self._silent and self._asking[vm_id]:
            raise GuestAgentSilent(vm_id, "it did not answer earlier calls, and another is being tried")
        whole = {"execute": command, **({"arguments": arguments} if arguments else {})}
        request = json.dumps(whole, ensure_ascii=False)
        if len(request.encode()) > MAX_REQUEST_BYTES:
            raise GuestAgentRefused(vm_id, f"its channel carries {MAX_REQUEST_BYTES} bytes at once, and this is more")
        library = load_libvirt_qemu()

        def call(connection: Any) -> T:
            domain = self._visits.operations.find(connection, vm_id)
            with self._errors.explained(domain, vm_id, command, limit_s):
                text = library.qemuAgentCommand(domain, request, limit_s, 0)
            return read(guest_answers.parse(text))

        self._asking[vm_id] += 1
        try:
            found = await self._visits.connection.run(
                call, lane=Lane.AGENT, vm_id=vm_id, deadline_s=limit_s + _VISIT_MARGIN_S
            )
        except BadAnswer as error:
            self._silent.discard(vm_id)
            raise GuestAgentRefused(vm_id, str(error)) from None  # what it sent is in there
        except GuestAgentSilent:
            self._silent.add(vm_id)
            raise
        except (GuestAgentAbsent, GuestAgentRefused, WrongState):
            self._silent.discard(vm_id)
            raise
        finally:
            self._asking[vm_id] -= 1
            if not self._asking[vm_id]:
                del self._asking[vm_id]
        self._silent.discard(vm_id)
        return found


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + _WRITE_PIECE_BYTES] for start in range(0, len(data), _WRITE_PIECE_BYTES)]


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
