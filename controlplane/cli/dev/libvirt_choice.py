"""Decide which libvirt daemon a development machine offers, and say why.

Looking at the machine (`observe_host`) is apart from deciding (`choose_libvirt`), so that every decision can be tested
with facts made up, and shown to the user with its reason.
"""

import asyncio
import os
import platform
import pwd
import re
import shutil
import stat
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SYSTEM_SOCKETS = (Path("/run/libvirt/virtqemud-sock"), Path("/run/libvirt/libvirt-sock"))
"""Where the system daemon listens: the QEMU daemon of a modular libvirt, or the one daemon of a monolithic one."""
DAEMON_NAMES = ("libvirtd", "virtqemud")
"""In the order of preference: the monolithic one brings the network and storage drivers along."""
SYSTEM_BIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_QEMU_CONF = Path("/etc/libvirt/qemu.conf")
_DISTRIBUTION_QEMU_USERS = ("libvirt-qemu", "qemu")
_CAP_SYS_ADMIN = 21  # Source: capabilities(7), linux/capability.h

# Source: libvirt's remote protocol, https://libvirt.org/kbase/internals/rpc.html: length, program, version,
# procedure (66 asks for the ways to authenticate, which needs no authentication), type call, serial 0, status ok.
_AUTH_LIST_CALL = struct.pack(">7I", 28, 0x20008086, 1, 66, 0, 0, 0)


class LibvirtKind(StrEnum):
    """Which libvirt the development cluster uses."""

    SYSTEM = "system"
    PRIVATE = "private"
    SESSION = "session"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class LibvirtChoice:
    """The decision. `uri` is None for NONE, and for PRIVATE until `PrivateLibvirt.start` has made one."""

    kind: LibvirtKind
    uri: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the decision rests on.

    is_root: may become any user; may_mount: holds CAP_SYS_ADMIN, which root in a container often does not.
    qemu, daemon: the programs, None when not installed.
    system_answers: a system libvirt daemon answers us.
    qemu_user: as whom that daemon runs QEMU.
    barred_directory: the directory on the way to the data directory that this user cannot pass, None when it can.
    """

    is_root: bool
    may_mount: bool
    qemu: Path | None
    daemon: Path | None
    system_answers: bool
    qemu_user: str
    barred_directory: Path | None


async def find_libvirt(data_dir: Path, observe: Callable[[Path], Awaitable[HostFacts]] | None = None) -> LibvirtChoice:
    """Look at this machine and say which libvirt can run VMs whose disks lie below `data_dir`. Changes nothing."""
    return choose_libvirt(await (observe or observe_host)(data_dir), data_dir)


def choose_libvirt(facts: HostFacts, data_dir: Path) -> LibvirtChoice:
    """Choose: the system's libvirt where it can be used, else a private one, else the user's session, else none."""
    if facts.qemu is None:
        return LibvirtChoice(
            LibvirtKind.NONE, None, "qemu-system-x86_64 is not installed; deploy/setup-host.sh installs it"
        )
    if facts.system_answers and facts.barred_directory is None:
        return LibvirtChoice(LibvirtKind.SYSTEM, "qemu:///system", "the system's libvirt daemon answers")
    why = "no system libvirt daemon answers"
    if facts.system_answers:
        why = (
            f"the system's libvirt runs QEMU as user {facts.qemu_user}, who may not enter {facts.barred_directory} "
            f"on the way to {data_dir} (chmod o+x {facts.barred_directory}, or another --data-dir, would change that)"
        )
    if facts.daemon is None:
        return LibvirtChoice(
            LibvirtKind.NONE,
            None,
            f"{why}, and neither {' nor '.join(DAEMON_NAMES)} is installed; deploy/setup-host.sh installs it",
        )
    if not facts.is_root:
        return LibvirtChoice(LibvirtKind.SESSION, "qemu:///session", f"{why}; not root, so VMs run in your session")
    if facts.may_mount:
        return LibvirtChoice(LibvirtKind.PRIVATE, None, f"{why}; {facts.daemon} runs privately below {data_dir}")
    return LibvirtChoice(
        LibvirtKind.NONE,
        None,
        f"{why}, and a private one needs to mount (CAP_SYS_ADMIN), which this container withholds",
    )


async def observe_host(data_dir: Path) -> HostFacts:
    """Collect the facts of this machine; takes milliseconds, or up to 5 s where a system daemon hangs."""
    answers = False
    for socket in SYSTEM_SOCKETS:
        answers = answers or await libvirt_answers(socket, timeout_s=5.0)
    return await asyncio.to_thread(_observe_files, data_dir, answers)


def _observe_files(data_dir: Path, system_answers: bool) -> HostFacts:
    qemu_user = configured_qemu_user(_QEMU_CONF)
    return HostFacts(
        is_root=os.geteuid() == 0,
        may_mount=_has_capability(_CAP_SYS_ADMIN),
        qemu=_program("qemu-system-x86_64"),
        daemon=find_daemon(),
        system_answers=system_answers,
        qemu_user=qemu_user,
        barred_directory=find_barred_directory(data_dir, qemu_user),
    )


async def libvirt_answers(socket: Path, timeout_s: float) -> bool:
    """Tell whether a libvirt daemon behind `socket` answers a call within `timeout_s`.

    Connecting alone says little: libvirtd listens long before its drivers are ready, and calls wait until then.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            writer.write(_AUTH_LIST_CALL)
            await writer.drain()
            header = await reader.readexactly(len(_AUTH_LIST_CALL))
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()
    # The answer repeats program, version and procedure; type 1 is a reply.
    return header[4:16] == _AUTH_LIST_CALL[4:16] and header[16:20] == struct.pack(">I", 1)


def find_daemon() -> Path | None:
    """Return the libvirt daemon installed here that can run QEMU, also when /usr/sbin is not on the user's PATH."""
    return next((found for found in map(_program, DAEMON_NAMES) if found is not None), None)


def _program(name: str) -> Path | None:
    found = shutil.which(name) or shutil.which(name, path=SYSTEM_BIN_PATH)
    return Path(found) if found else None


def configured_qemu_user(conf: Path) -> str:
    """Return the user the system's libvirt runs QEMU as: what `conf` says, else the distribution's own user."""
    try:
        text = conf.read_text()
    except OSError:  # absent, or readable by root only
        text = ""
    if match := re.search(r'^\s*user\s*=\s*"\+?([^"]+)"', text, re.MULTILINE):
        return match.group(1)
    for name in _DISTRIBUTION_QEMU_USERS:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    return "root"


def find_barred_directory(path: Path, user: str) -> Path | None:
    """Return the topmost existing directory of `path` that `user` may not enter, by mode bits (no ACLs), or None."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        return None
    if entry.pw_uid == 0:
        return None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    resolved = path.resolve()
    for directory in [*reversed(resolved.parents), resolved]:
        try:
            found = directory.stat()
        except OSError:
            return None
        if found.st_uid == entry.pw_uid:
            needed = stat.S_IXUSR
        else:
            needed = stat.S_IXGRP if found.st_gid in groups else stat.S_IXOTH
        if not found.st_mode & needed:
            return directory
    return None


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def is_supported_machine() -> bool:
    """Tell whether this is an x86-64 machine, the only kind the demo's guest is made for."""
    return platform.machine() == "x86_64"
