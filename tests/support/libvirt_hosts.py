"""Several libvirt hosts on one machine, each in a network of its own, between which guests migrate.

Each has a private libvirt daemon (see `PrivateLibvirt`) in its own network and host-name namespace, on one bridge with
the others, and listens there for its peers: by TLS with certificates of the tests' own cluster, until its daemon joins
another, and in the clear.
Storage is whatever directories the caller names: all hosts see the same file system, and share those that are the same.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from controlplane.authority.migration_authority import MigrationAuthority
from controlplane.cli.dev.libvirt_choice import LibvirtKind, choose_libvirt, observe_host
from controlplane.cli.dev.libvirtd import PrivateLibvirt
from hypervisor.libvirt.peer_certificates import write
from hypervisor.migration import PeerCertificate
from nodedaemon.identity.requests import new_request
from tests.support.own_cluster import own_cluster
from tests.support.private_libvirt_host import TEST_CACHE_DIR, leave_out, virsh

_PREFIX: Final = "lqt"
_NETWORK: Final = "10.97.0"
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_TOOLS: Final = ("ip", "unshare", "hostname", "tc")
_FOR_EVER: Final = 'hostname "$0"; while :; do "$@"; sleep 0.3; done'
"""Starts the daemon anew whenever it was killed, as systemd does: what it had started before lives on."""


class MigrationHost(PrivateLibvirt):
    """One host of several; `address` is where its peers reach it."""

    def __init__(self, directory: Path, namespace: str, address: str) -> None:
        super().__init__(directory, cache_dir=directory / "cache", bridge=None)
        self.directory = directory
        self.namespace = namespace
        self.address = address

    @property
    def pki(self) -> Path:
        """What libvirt and QEMU see as /etc/pki."""
        return self.directory / "pki"

    @property
    def fabric_namespace(self) -> str:
        """The network that its cable ends in."""
        return self.namespace.rpartition("h")[0]

    @property
    def pid_dir(self) -> Path:
        """Where its libvirt notes the process of each VM that runs."""
        return self._run_dir / "qemu"

    @property
    def tls_uri(self) -> str:
        """Where peers reach it by TLS."""
        return f"qemu+tls://{self.address}/system"

    @property
    def plain_uri(self) -> str:
        """Where peers reach it in the clear."""
        return f"qemu+tcp://{self.address}/system"

    @property
    def libvirtd_pid(self) -> int:
        """The daemon's process."""
        return int((self._run_dir / "daemon.pid").read_text())

    def kill_libvirtd(self) -> None:
        """Kill the daemon as `kill -9` does; guests go on, and it is started again."""
        os.kill(self.libvirtd_pid, signal.SIGKILL)

    def run(self, *words: str) -> str:
        """Run a program in the host's network; returns what it printed."""
        return _run("ip", "netns", "exec", self.namespace, *words)

    async def hurry_migration(self, vm_id: str) -> None:
        """Let a VM's migration from here end now, however much its guest writes meanwhile."""
        await virsh(self.uri, "migrate-setmaxdowntime", vm_id, "2000")
        await virsh(self.uri, "migrate-setspeed", vm_id, "1000")

    def unplug(self) -> None:
        """Cut its network cable."""
        _run("ip", "-n", self.namespace, "link", "set", "eth0", "down")

    def plug(self) -> None:
        """Mend its network cable."""
        _run("ip", "-n", self.namespace, "link", "set", "eth0", "up")

    def _configuration(self, daemon: Path, host_uuid: str) -> dict[str, str]:
        files = super()._configuration(daemon, host_uuid)
        files["qemu.conf"] += (
            f'migration_host = "{self.address}"\nmigration_address = "{self.address}"\n'
            "keepalive_interval = 1\nkeepalive_count = 3\n"
            'migrate_tls_x509_cert_dir = "/etc/pki/qemu"\nmigrate_tls_x509_verify = 1\n'
        )
        files[f"{daemon.name}.conf"] += (
            f'listen_tls = 1\nlisten_tcp = 1\nlisten_addr = "{self.address}"\nauth_tcp = "none"\nauth_tls = "none"\n'
            "tls_no_sanity_certificate = 1\nmax_client_requests = 32\n"
        )
        return files

    def _binds(self) -> dict[Path, Path]:
        return super()._binds() | {Path("/etc/pki"): self.pki}

    def _command(self, daemon: Path) -> list[str]:
        words = super()._command(daemon)
        for_ever = ["unshare", "--uts", "--", "sh", "-c", _FOR_EVER, self.namespace]
        return ["ip", "netns", "exec", self.namespace, *for_ever, *words, "--listen"]


@dataclass(frozen=True, slots=True)
class Fabric:
    """What the hosts hang on."""

    name: str

    def host(self, number: int, directory: Path) -> MigrationHost:
        """Make a host, not started, with its namespace and its cable."""
        namespace, address = f"{self.name}h{number}", f"{_NETWORK}.{number}"
        _run("ip", "netns", "add", namespace)
        _run(
            "ip",
            "link",
            "add",
            f"{self.name}v{number}",
            "netns",
            self.name,
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            namespace,
        )
        _run("ip", "-n", self.name, "link", "set", f"{self.name}v{number}", "master", "fab0", "up")
        for device in ("eth0", "lo"):
            _run("ip", "-n", namespace, "link", "set", device, "up")
        _run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        _seed_cache(directory / "cache")
        host = MigrationHost(directory, namespace, address)
        _certify(host.pki, address)
        return host


async def why_no_hosts(directory: Path) -> str:
    """Say why hosts cannot be had on this machine; "" if they can."""
    if os.geteuid() != 0:
        return "hosts in networks of their own need root"
    facts = await observe_host(directory)
    if facts.daemon is None or facts.qemu is None or not facts.may_mount:
        choice = choose_libvirt(facts, directory)
        return choice.reason if choice.kind is LibvirtKind.NONE else "libvirt or QEMU is not installed"
    if facts.daemon.name != "libvirtd":
        return "several hosts need the monolithic libvirtd, which listens for its peers itself"
    if missing := [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]:
        return f"programs for hosts in networks of their own are not installed: {', '.join(missing)}"
    name = f"{_PREFIX}{os.getpid()}"
    try:
        await asyncio.to_thread(_run, "ip", "netns", "add", name)
        await asyncio.to_thread(_run, "ip", "netns", "delete", name)
    except RuntimeError as error:
        return f"no network namespace can be made: {error}"
    return ""


@asynccontextmanager
async def migration_hosts(directory: Path, count: int = 2) -> AsyncIterator[Sequence[MigrationHost]]:
    """Run that many hosts with their own data below `directory`; skips the test where that is not possible."""
    if reason := await why_no_hosts(directory):
        leave_out(reason)
    async with running_hosts(directory, count) as hosts:
        yield hosts


@asynccontextmanager
async def running_hosts(directory: Path, count: int = 2) -> AsyncIterator[Sequence[MigrationHost]]:
    """Run that many hosts where `why_no_hosts` found no reason against it."""
    async with AsyncExitStack() as stack:
        fabric = await asyncio.to_thread(_make_fabric, directory)
        stack.callback(_remove, fabric.name)
        hosts = [
            await asyncio.to_thread(fabric.host, number + 1, directory / f"h{number + 1}") for number in range(count)
        ]
        await asyncio.gather(*(stack.enter_async_context(host) for host in hosts))
        _keep_cache(hosts[0])
        yield hosts


def _make_fabric(directory: Path) -> Fabric:
    _remove_orphans()
    name = f"{_PREFIX}{os.getpid()}"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "-n", name, "link", "add", "fab0", "type", "bridge")
        _run("ip", "-n", name, "link", "set", "fab0", "up")
    except BaseException:
        _remove(name)
        raise
    return Fabric(name)


def _certify(pki: Path, address: str) -> None:
    """Make what libvirtd cannot start without, as a control plane would; a host that joins another cluster loses it."""
    authority, node_id = MigrationAuthority(own_cluster()), str(uuid.uuid4())
    key_pem, request_pem = new_request()
    now = datetime.now(UTC)
    certificate_pem = authority.certify(node_id, [address], request_pem, now)
    revocations_pem = authority.revocation_list([], now)
    write(pki, PeerCertificate(certificate_pem, key_pem, authority.certificate_pem, revocations_pem), None)


def _seed_cache(cache: Path) -> None:
    """Give a host what an earlier one learnt about QEMU, which costs it more than a second."""
    known = TEST_CACHE_DIR / "libvirt"
    if known.is_dir() and not cache.exists():
        with suppress(OSError):  # another process's libvirt learns just now, and a file of it went away
            shutil.copytree(known, cache, ignore_dangling_symlinks=True)


def _keep_cache(host: MigrationHost) -> None:
    known = TEST_CACHE_DIR / "libvirt"
    if not known.exists():
        with suppress(OSError):  # another process keeps its own just now
            shutil.copytree(host.directory / "cache", known)


def _remove(name: str) -> None:
    for namespace in _namespaces():
        if namespace == name or namespace.startswith(f"{name}h"):
            with suppress(RuntimeError):
                _run("ip", "netns", "delete", namespace)


def _remove_orphans() -> None:
    """Remove what test runs that were killed left."""
    for namespace in _namespaces():
        number = namespace.removeprefix(_PREFIX).partition("h")[0]
        if namespace.startswith(_PREFIX) and number.isdecimal() and not Path(f"/proc/{number}").exists():
            with suppress(RuntimeError):
                _run("ip", "netns", "delete", namespace)


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line.strip()]


def _run(program: str, *words: str) -> str:
    found = shutil.which(program, path=_PATH)
    done = subprocess.run(
        [found or program, *words], check=False, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise RuntimeError(f"{program} {' '.join(words)}: {done.stderr.strip()[-300:]}")
    return done.stdout
