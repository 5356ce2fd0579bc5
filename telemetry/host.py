"""Facts and usage of the machine this process runs on, by psutil, /proc and /sys.

Every function here reads files of the kernel and may block for some milliseconds (a dead NFS mount: longer), so a
program with an event loop calls them in a thread. What a machine does not tell is empty or 0, never an error.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_CPUINFO = Path("/proc/cpuinfo")
_BLOCK_DEVICES = Path("/sys/block")
_NETWORK_INTERFACES = Path("/sys/class/net")
_SECTOR_BYTES = 512
"""Unit of /sys/block/*/size whatever the device's own sector. Source: Linux, Documentation/block/stat.rst."""
_VIRTUAL_BLOCK_DEVICES = ("loop", "ram", "zram", "nbd", "dm-", "md", "sr", "fd")
FALLBACK_MANAGEMENT_IP = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The processors; `frequency_mhz` is the highest known, 0 if the machine does not say."""

    model: str
    socket_count: int
    cores_per_socket: int
    threads_per_core: int
    thread_count: int
    frequency_mhz: int
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FilesystemFacts:
    """A mounted file system on a real device, and how full it is."""

    device: str
    mount_point: str
    kind: str
    total_bytes: int
    used_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A whole disk of the machine; `is_mounted` says that it, or a part of it, is in use by the host."""

    path: str
    model: str
    serial: str
    size_bytes: int
    is_rotational: bool
    is_mounted: bool


@dataclass(frozen=True, slots=True)
class NicFacts:
    """A network interface, the loopback left out; `speed_mbps` 0 is unknown."""

    name: str
    mac_address: str
    ip_addresses: tuple[str, ...]
    speed_mbps: int
    mtu: int
    is_up: bool
    driver: str


@dataclass(frozen=True, slots=True)
class SystemFacts:
    """The operating system; `boot_time_s` is Unix time."""

    os_name: str
    os_version: str
    kernel_version: str
    boot_time_s: float


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host is, as opposed to how busy it is."""

    hostname: str
    management_ip: str
    cpu: CpuFacts
    memory_total_bytes: int
    filesystems: tuple[FilesystemFacts, ...]
    disks: tuple[DiskFacts, ...]
    nics: tuple[NicFacts, ...]
    system: SystemFacts
    bridges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostUsage:
    """How busy the host is; `cpu_percent` covers the time since the sampler's call before, 0 to 100 of all CPUs."""

    cpu_percent: float
    memory_total_bytes: int
    memory_used_bytes: int
    memory_available_bytes: int
    disk_total_bytes: int
    disk_used_bytes: int
    load_1m: float
    load_5m: float
    load_15m: float


class UsageSampler:
    """Measures usage between calls; one object for one reader, since each call starts the next interval."""

    def __init__(self, disk_path: Path) -> None:
        """Begin the first interval.

        Args:
            disk_path: whose file system counts as the disk; while it does not exist, its nearest parent does.
        """
        self._disk_path = disk_path
        self._disk_before = (0, 0)
        self._cpu_before = psutil.cpu_times()

    def sample(self) -> HostUsage:
        """Measure; a disk that fails has what it had before. Blocks."""
        memory = psutil.virtual_memory()
        with contextlib.suppress(OSError):
            disk = psutil.disk_usage(str(nearest_existing(self._disk_path)))
            self._disk_before = (disk.total, disk.used)
        disk_total_bytes, disk_used_bytes = self._disk_before
        load_1m, load_5m, load_15m = psutil.getloadavg()
        return HostUsage(
            cpu_percent=self._cpu_percent(),
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.total - memory.available,
            memory_available_bytes=memory.available,
            disk_total_bytes=disk_total_bytes,
            disk_used_bytes=disk_used_bytes,
            load_1m=load_1m,
            load_5m=load_5m,
            load_15m=load_15m,
        )

    def _cpu_percent(self) -> float:
        # psutil.cpu_percent() keeps its interval in a global, which any other caller in the process would cut short.
        before, now = self._cpu_before, psutil.cpu_times()
        self._cpu_before = now
        # guest time is part of user time already. Source: Linux, proc(5), /proc/stat.
        total = sum(now) - sum(before) - (now.guest - before.guest) - (now.guest_nice - before.guest_nice)
        idle = now.idle - before.idle + now.iowait - before.iowait
        return min(max(100.0 * (total - idle) / total, 0.0), 100.0) if total > 0 else 0.0


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest of its parents that exists."""
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))


def read_host_facts() -> HostFacts:
    """Collect everything. Blocks, some 20 ms on an ordinary host."""
    nics = _read_nics()
    partitions = psutil.disk_partitions(all=False)
    return HostFacts(
        hostname=socket.gethostname(),
        management_ip=management_ip(address for nic in nics if nic.is_up for address in nic.ip_addresses),
        cpu=_read_cpu(_read_text(_CPUINFO)),
        memory_total_bytes=psutil.virtual_memory().total,
        filesystems=tuple(_read_filesystems(partitions)),
        disks=tuple(_read_disks({partition.device for partition in partitions})),
        nics=nics,
        system=_read_system(),
        bridges=read_bridges(),
    )


def management_ip(addresses: Iterable[str]) -> str:
    """Pick the first IPv4 address that is neither loopback nor link-local; 127.0.0.1 if there is none."""
    for text in addresses:
        address = ipaddress.ip_address(text)
        if address.version == 4 and not (address.is_loopback or address.is_link_local or address.is_unspecified):
            return text
    return FALLBACK_MANAGEMENT_IP


def _read_cpu(cpuinfo: str) -> CpuFacts:
    """Read the processors from the text of /proc/cpuinfo; a machine that names no sockets (ARM) has one."""
    blocks = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in cpuinfo.strip().split("\n\n")
    ]
    first = blocks[0]
    thread_count = psutil.cpu_count(logical=True) or 1
    core_count = len({(block.get("physical id", "0"), block["core id"]) for block in blocks if "core id" in block})
    core_count = core_count or psutil.cpu_count(logical=False) or thread_count
    socket_count = len({block["physical id"] for block in blocks if "physical id" in block}) or 1
    frequency = psutil.cpu_freq()
    return CpuFacts(
        model=first.get("model name") or first.get("Model") or platform.processor() or platform.machine(),
        socket_count=socket_count,
        cores_per_socket=max(core_count // socket_count, 1),
        threads_per_core=max(thread_count // core_count, 1),
        thread_count=thread_count,
        frequency_mhz=int(max(frequency.max, frequency.current)) if frequency else 0,
        features=tuple(sorted((first.get("flags") or first.get("Features") or "").split())),
    )


def _read_filesystems(partitions: Iterable[psutil._ntp.sdiskpart]) -> Iterable[FilesystemFacts]:
    seen: set[str] = set()
    for partition in partitions:
        if partition.device in seen:  # bind mounts show the same device again
            continue
        seen.add(partition.device)
        try:
            usage = psutil.disk_usage(partition.mountpoint)
        except OSError:  # a mount we may not look into is left out
            continue
        yield FilesystemFacts(
            partition.device, partition.mountpoint, partition.fstype, usage.total, usage.used, usage.free
        )


def _read_disks(mounted_devices: set[str]) -> Iterable[DiskFacts]:
    if not _BLOCK_DEVICES.is_dir():
        return
    for directory in sorted(_BLOCK_DEVICES.iterdir()):
        size = _read_text(directory / "size")
        if directory.name.startswith(_VIRTUAL_BLOCK_DEVICES) or not size.isdigit() or size == "0":
            continue
        path = f"/dev/{directory.name}"
        yield DiskFacts(
            path=path,
            model=_read_text(directory / "device/model"),
            serial=_read_text(directory / "device/serial") or _read_text(directory / "serial"),
            size_bytes=int(size) * _SECTOR_BYTES,
            is_rotational=_read_text(directory / "queue/rotational") == "1",
            is_mounted=any(device.startswith(path) for device in mounted_devices),
        )


def _read_nics() -> tuple[NicFacts, ...]:
    states = psutil.net_if_stats()
    return tuple(
        NicFacts(
            name=name,
            mac_address=next((a.address for a in addresses if a.family == psutil.AF_LINK), ""),
            # "fe80::1%eth0": the zone means something on this host only
            ip_addresses=tuple(
                a.address.partition("%")[0] for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)
            ),
            speed_mbps=max(states[name].speed, 0) if name in states else 0,
            mtu=states[name].mtu if name in states else 0,
            is_up=name in states and states[name].isup,
            driver=_driver_of(name),
        )
        for name, addresses in psutil.net_if_addrs().items()
        if name != "lo"
    )


def read_bridges(interfaces: Path = _NETWORK_INTERFACES) -> tuple[str, ...]:
    """Name the bridges of the kernel. Source: Linux, Documentation/ABI/testing/sysfs-class-net, `bridge/`."""
    try:
        return tuple(sorted(place.name for place in interfaces.iterdir() if (place / "bridge").is_dir()))
    except OSError:
        return ()


def _driver_of(nic_name: str) -> str:
    link = Path("/sys/class/net", nic_name, "device/driver")
    try:
        return os.path.basename(os.readlink(link))
    except OSError:  # virtual interfaces have none
        return ""


def _read_system() -> SystemFacts:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return SystemFacts(
        os_name=release.get("NAME", platform.system()),
        os_version=release.get("VERSION_ID", ""),
        kernel_version=platform.release(),
        boot_time_s=psutil.boot_time(),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
