"""Machines that are Debian with a systemd of their own, in containers, each with one cable to a bridge.

What is installed is what a bare Debian has, and what is done on it then. A machine keeps its files when its plug is
pulled. Needs root, debootstrap, systemd-nspawn and Debian's archive.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import pytest

from tests.support.private_libvirt_host import TEST_CACHE_DIR

SUITE: Final = "bookworm"
PROGRAMS: Final = ("debootstrap", "systemd-nspawn", "ip", "nsenter", "git")
_BARE: Final = "systemd,systemd-sysv,dbus,libpam-systemd,ca-certificates,curl,iproute2,procps"
_OF_THIS_MACHINE: Final = ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")
"""What reaches the archives from here does so from there."""
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
_SPACES: Final = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd")
_SWITCH: Final = "lqsd-switch"
_DEADLINE_S: Final = 120.0

T = TypeVar("T")


def skip_unless_machines() -> None:
    """Skip the test where machines cannot be made."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"machines with systemd need root and {', '.join(missing or PROGRAMS)}")


def until(look: Callable[[], T | None], what: str, deadline_s: float = _DEADLINE_S) -> T:
    """Return what `look` finds as soon as it finds something; fails naming `what` when it never does."""
    until_s = time.monotonic() + deadline_s
    while time.monotonic() < until_s:
        if (found := look()) is not None:
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what}: not within {deadline_s:.0f} s")


def bare_debian() -> Path:
    """Return the files of a bare Debian, fetched once."""
    kept = TEST_CACHE_DIR / "debian" / SUITE
    if not kept.exists():
        new = kept.with_name(f"new-{uuid.uuid4()}")
        new.mkdir(parents=True)
        _do("debootstrap", "--variant=minbase", f"--include={_BARE}", SUITE, str(new))
        new.replace(kept)
    return kept


def install(root: Path, checkout: Path, script: str) -> None:
    """Make a bare Debian, with the files of a checkout in /root/limiquantix, and run a script there as root."""
    _do("cp", "--archive", str(bare_debian()), str(root))
    for name in _OF_THIS_MACHINE:
        if Path("/", name).exists():
            shutil.copy(Path("/", name), root / name)
    there = root / "root" / "limiquantix"
    for name in _output("git", "-C", str(checkout), "ls-files", "-z").split("\0")[:-1]:
        if (checkout / name).is_file():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkout / name, there / name)
    inside = ("bash", "-ec", f"cd /root/limiquantix\n{script}")
    _do("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={root}", "--pipe", *inside)


@dataclass
class Machine:
    """One of them; `installed` are the files that it began with."""

    name: str
    address: str
    directory: Path
    installed: Path
    shared: Path
    hosts: dict[str, str]
    _container: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def root(self) -> Path:
        """Its files."""
        return self.directory / "root"

    @property
    def namespace(self) -> str:
        """Its network, which outlives it."""
        return f"lqsd-{self.name}"

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._container is not None and self._container.poll() is None

    def plug_in(self) -> None:
        """Give it files, a name, and the files that all machines share."""
        for name in ("new", "work", "root"):
            (self.directory / name).mkdir(parents=True)
        layers = f"lowerdir={self.installed},upperdir={self.directory / 'new'},workdir={self.directory / 'work'}"
        _do("mount", "-t", "overlay", "overlay", "-o", layers, str(self.root))
        (self.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        names = "".join(f"{address} {name}\n" for name, address in self.hosts.items())
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{names}")

    def switch_on(self) -> None:
        """Boot it, and wait until systemd has started all that it is to; no unit may have failed."""
        words = [
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", f"--directory={self.root}"),
            *(f"--machine={self.name}", f"--hostname={self.name}", "--capability=all", "--resolv-conf=off"),
            f"--network-namespace-path=/run/netns/{self.namespace}",
            f"--bind={self.shared}:/var/lib/limiquantix/images",
        ]
        groups = [str(group / "cgroup.procs") for group in self._own_groups()]
        joined = 'for group; do shift; [ "$group" != -- ] || break; echo $$ > "$group"; done; exec "$@"'
        words = ["sh", "-c", joined, "sh", *groups, "--", *words]
        with (self.directory / "console.log").open("ab") as log:
            self._container = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_ENVIRONMENT, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
        until(self._is_up, f"the start of {self.name}, see {self.directory / 'console.log'}")
        assert self.run("systemctl --failed --no-legend") == ""

    def _is_up(self) -> bool | None:
        assert self.is_on, (self.directory / "console.log").read_text(errors="replace")[-2000:]
        try:
            state = self.run("systemctl is-system-running || true").strip()
        except (AssertionError, OSError, IndexError):  # its first process is not there yet
            return None
        return True if state in ("running", "degraded") else None

    def _own_groups(self) -> list[Path]:
        """Make it a control group of its own below each root that systemd uses."""
        roots = [
            Path(words[1])
            for words in map(str.split, Path("/proc/mounts").read_text().splitlines())
            if words[2] == "cgroup2" or (words[2] == "cgroup" and "name=systemd" in words[3])
        ]
        groups = [root / self.namespace for root in roots]
        for group in groups:
            group.mkdir(exist_ok=True)
        return groups

    @property
    def leader_pid(self) -> int:
        """Its first process, as seen from here."""
        assert self._container is not None
        pid = self._container.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def enter_words(self) -> list[str]:
        """Return what runs the words after it as root in the machine."""
        return ["nsenter", "--target", str(self.leader_pid), *_SPACES, "--"]

    def run(self, script: str, stdin: str = "") -> str:
        """Run a script as root, as somebody who logged in would; returns what it printed."""
        words = [*self.enter_words(), "bash", "-ec", script]
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, env=_ENVIRONMENT, timeout=_DEADLINE_S, check=False
        )
        assert done.returncode == 0, f"{self.name}: {script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def pull_the_plug(self) -> None:
        """End all that runs in it, at once."""
        if self.is_on:
            assert self._container is not None
            os.kill(self.leader_pid, signal.SIGKILL)
            self._container.wait(_DEADLINE_S)

    def until_off(self) -> None:
        """Wait until it went down by itself."""
        assert self._container is not None
        self._container.wait(_DEADLINE_S)

    def remove(self) -> None:
        """End it and what it has."""
        self.pull_the_plug()
        if self.root.is_mount():
            _do("umount", str(self.root))
        for group in self._own_groups():
            for each in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                each.rmdir()
            group.rmdir()


@contextmanager
def machines_on_a_switch(directory: Path, installed: Path, addresses: dict[str, str]) -> Iterator[list[Machine]]:
    """Make machines by name and IPv4 address, all in one network of 24 bits; they are off. They share their images."""
    shared = directory / "shared"
    shared.mkdir()
    with ExitStack() as stack:
        _add_network(stack, _SWITCH)
        _do("ip", "-n", _SWITCH, "link", "add", "br0", "type", "bridge")
        _do("ip", "-n", _SWITCH, "link", "set", "br0", "up")
        machines = []
        for number, (name, address) in enumerate(addresses.items()):
            machine = Machine(name, address, directory / name, installed, shared, addresses)
            _add_network(stack, machine.namespace)
            port = f"p{number}"
            cable = ("link", "add", "eth0", "netns", machine.namespace, "type", "veth", "peer", "name", port)
            _do("ip", *cable, "netns", _SWITCH)
            _do("ip", "-n", _SWITCH, "link", "set", port, "master", "br0", "up")
            _do("ip", "-n", machine.namespace, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _do("ip", "-n", machine.namespace, "link", "set", link, "up")
            stack.callback(machine.remove)
            machine.plug_in()
            machines.append(machine)
        yield machines


def running_vms(machine: Machine) -> dict[str, list[str]]:
    """Return the command lines of what QEMU runs in a machine, by VM id, as the kernel has them."""
    found = {}
    listed = machine.run("for pid in $(pgrep qemu-system || true); do tr '\\0' '\\n' </proc/$pid/cmdline; echo; done")
    for text in listed.split("\n\n"):
        words = text.strip().split("\n")
        if "-uuid" in words:
            found[words[words.index("-uuid") + 1]] = words
    return found


def _add_network(stack: ExitStack, name: str) -> None:
    _do("ip", "netns", "add", name)
    stack.callback(_do, "ip", "netns", "del", name)


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def program_ssh(machines: Sequence[Machine], directory: Path) -> Path:
    """Write an `ssh` that reaches machines by their names, without a network; returns the directory it is in."""
    directory.mkdir()
    cases = "\n".join(f'root@{each.name}) set -- {" ".join(each.enter_words())} "$@" ;;' for each in machines)
    program = directory / "ssh"
    program.write_text(f'#!/bin/sh\nhost=$1\nshift\ncase $host in\n{cases}\nesac\nexec "$@"\n')
    program.chmod(0o755)
    return directory
