"""Make the demo's guest: a distribution kernel and busybox in memory, a few MiB, up in about two seconds.

Everything comes from the distribution's packages, downloaded and unpacked below a cache directory; nothing is installed
and no root is needed. The guest says on its serial line that it is up, obeys the power button, asks for an address by
DHCP and, where the package can be had, runs QEMU's guest agent.
"""

import hashlib
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.cli.dev.cpio import Archive
from controlplane.cli.dev.kernel_modules import KernelModuleError, load_order
from controlplane.cli.dev.libvirt_choice import is_supported_machine
from controlplane.cli.dev.packages import PackageError, PackageSource

READY_MARKER: Final = "LIMIQUANTIX-GUEST READY"
KERNEL_ARGUMENTS: Final = "console=ttyS0 quiet cryptomgr.notests"
"""The kernel's tests of its own cryptography take 0.3 s of an emulated processor and tell us nothing."""
_FORMAT: Final = 1
"""Raised whenever this file builds a different image from the same inputs."""
_FILES: Final = Path(__file__).with_name("guest")
_KERNEL_PACKAGES: Final = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64", "linux-image-generic")
"""Debian's and Ubuntu's kernels for virtual machines, then those for any machine. Each only names the real package."""
_MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "button",
    "evdev",
)
_MORE_MODULES: Final = ("virtio_scsi", "sd_mod", "sr_mod", "isofs", "crc32c_generic", "ext4")
"""Loaded on request, by `load-more`: drivers for more devices and file systems cost every boot some time."""
_POWER_BUTTON_SCRIPT: Final = "/etc/acpi/PWRF/00000080"
"""The path busybox's acpid looks up for the event of the power button."""
_ABANDONED_AFTER_S: Final = 3600.0
"""A build takes seconds; a working directory this old belongs to one that was killed."""
_READY_LINE: Final = re.compile(
    re.escape(READY_MARKER)
    + r" hostname=(?P<hostname>\S+) memory_mib=(?P<memory_mib>\d+) vcpus=(?P<vcpus>\d+)"
    + r" kernel=(?P<kernel>\S+) uptime_s=(?P<uptime_s>[0-9.]+)\s"
)


class GuestImageError(Exception):
    """The image cannot be made here; the text says why and what to do."""


class LibraryError(Exception):
    """Libraries that a program is linked with cannot be had here; the text says which or why."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What a VM boots directly, and how to know that it did.

    kernel_arguments: the command line to boot with; append `hostname=NAME` to give the guest its name.
    has_agent: QEMU's guest agent is inside and runs when the VM has its channel.
    """

    kernel: Path
    initrd: Path
    kernel_version: str
    ready_marker: str
    kernel_arguments: str
    has_agent: bool


@dataclass(frozen=True, slots=True)
class GuestReport:
    """What the guest says of itself. memory_mib is what its kernel leaves of the memory the VM has."""

    hostname: str
    memory_mib: int
    vcpus: int
    kernel: str
    uptime_s: float


def find_guest_report(serial_text: str) -> GuestReport | None:
    """Return the guest's latest report in what its serial line printed, None while it has not come up."""
    report: GuestReport | None = None
    for match in _READY_LINE.finditer(serial_text):
        report = GuestReport(
            match["hostname"], int(match["memory_mib"]), int(match["vcpus"]), match["kernel"], float(match["uptime_s"])
        )
    return report


def build_guest_image(cache_dir: Path, progress: Callable[[str], None]) -> GuestImage:
    """Return the image below `cache_dir`, building it if there is none yet; blocks for seconds then, else no time.

    progress: called with one line before each step that takes time.
    Several processes may build at once; the first one wins. Raises `GuestImageError`, leaving nothing half made.
    """
    if (found := _find_existing(cache_dir)) is not None:
        return found
    if not is_supported_machine():
        raise GuestImageError(f"the guest is made for x86-64 machines only; this is {os.uname().machine}")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache_dir)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=cache_dir) as work:
            _build(Path(work), cache_dir, progress)
    except (PackageError, KernelModuleError) as error:
        raise GuestImageError(f"cannot make the guest image: {error}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise GuestImageError(f"cannot make the guest image below {cache_dir}: {error}") from error
    found = _find_existing(cache_dir)
    if found is None:
        raise GuestImageError(f"the guest image vanished from {cache_dir} while it was made; try again")
    return found


def _builder_version() -> str:
    """Return a short text that changes whenever the image would."""
    inputs = hashlib.sha256(repr((_FORMAT, _MODULES, _MORE_MODULES)).encode())
    for path in sorted(_FILES.iterdir()):
        inputs.update(path.name.encode() + b"\0" + path.read_bytes())
    return inputs.hexdigest()[:10]


def _find_existing(cache_dir: Path) -> GuestImage | None:
    """Return the newest image of this builder, one with the agent before one without."""
    version = _builder_version()
    images: list[tuple[bool, float, GuestImage]] = []
    for directory in cache_dir.glob(f"guest-*-{version}-*"):
        kernel_version, _, kind = directory.name.removeprefix("guest-").partition(f"-{version}-")
        kernel, initrd = directory / "vmlinuz", directory / "initrd"
        if kernel.is_file() and initrd.is_file():
            image = GuestImage(kernel, initrd, kernel_version, READY_MARKER, KERNEL_ARGUMENTS, kind == "agent")
            images.append((image.has_agent, directory.stat().st_mtime, image))
    return max(images, key=lambda item: item[:2])[2] if images else None


def _remove_abandoned(cache_dir: Path) -> None:
    for directory in cache_dir.glob(".building-*"):
        if time.time() - directory.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(directory, ignore_errors=True)


def _build(work: Path, cache_dir: Path, progress: Callable[[str], None]) -> None:
    source = PackageSource(work)
    unpacked = work / "unpacked"
    kernel, modules = _fetch_kernel(source, unpacked, progress)
    archive = Archive()
    _add_base(archive, _find_busybox(source, unpacked, progress))
    _add_modules(archive, modules)
    has_agent = _add_agent(archive, source, unpacked, progress)

    result = work / "result"
    result.mkdir(mode=0o755)
    shutil.copyfile(kernel, result / "vmlinuz")
    # Not compressed: on an emulated processor undoing it takes longer than handing over the 9 MB.
    (result / "initrd").write_bytes(archive.to_bytes())
    for path in (result / "vmlinuz", result / "initrd"):
        path.chmod(0o644)  # read by the user QEMU runs as
    name = f"guest-{modules.name}-{_builder_version()}-{'agent' if has_agent else 'plain'}"
    try:
        result.rename(cache_dir / name)
    except OSError:
        if not (cache_dir / name).is_dir():
            raise
        # Another process was faster; its image is as good as ours.


def _fetch_kernel(source: PackageSource, unpacked: Path, progress: Callable[[str], None]) -> tuple[Path, Path]:
    """Return the kernel and its directory of modules, whose name is the kernel's version."""
    package = _kernel_package(source)
    if package is None:
        progress("fetching package lists")
        source.refresh()
        package = _kernel_package(source)
    if package is None:
        raise PackageError(
            f"none of {', '.join(_KERNEL_PACKAGES)} is in apt's lists; "
            "check the sources in /etc/apt and run apt-get update"
        )
    progress(f"downloading {package}")
    source.unpack(package, unpacked)
    # Ubuntu has the modules in a package of their own.
    for needed in source.depends(package):
        if needed.startswith("linux-modules-"):
            progress(f"downloading {needed}")
            source.unpack(needed, unpacked)
    for kernel in unpacked.glob("boot/vmlinuz-*"):
        version = kernel.name.removeprefix("vmlinuz-")
        for modules in (unpacked / "lib/modules" / version, unpacked / "usr/lib/modules" / version):
            if modules.is_dir():
                return kernel, modules
    raise PackageError(f"package {package} holds no kernel with modules")


def _kernel_package(source: PackageSource) -> str | None:
    """Return the package of the current kernel, which the distribution's fixed names depend on."""
    for name in _KERNEL_PACKAGES:
        for needed in source.depends(name):
            if re.match(r"linux-image-\d", needed):
                return needed
    return None


def _find_busybox(source: PackageSource, unpacked: Path, progress: Callable[[str], None]) -> Path:
    """Return a busybox that needs no libraries: the installed one, or the package's."""
    installed = shutil.which("busybox")
    if installed is not None and is_static_executable(Path(installed)):
        return Path(installed)
    progress("downloading busybox-static")
    source.unpack("busybox-static", unpacked)
    for place in ("bin/busybox", "usr/bin/busybox"):
        if (unpacked / place).is_file():
            return unpacked / place
    raise PackageError("package busybox-static holds no busybox")


def is_static_executable(path: Path) -> bool:
    """Tell whether a 64-bit ELF program asks for no interpreter, so that it runs where there are no libraries.

    Source: elf(5): e_phoff at 32, e_phentsize and e_phnum at 54; PT_INTERP is 3.
    """
    with path.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):
            return False
        (offset,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(size * count)
    return all(struct.unpack_from("<I", table, index * size)[0] != 3 for index in range(count))


def _add_base(archive: Archive, busybox: Path) -> None:
    for directory in ("/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/var/log", "/mnt"):  # noqa: S108 - the guest's
        archive.add_directory(directory)
    archive.add_symlink("/var/run", "/run")
    archive.add_character_device("/dev/console", 5, 1)
    archive.add_file("/bin/busybox", busybox.read_bytes(), 0o755)
    listed = subprocess.run([str(busybox), "--list"], check=True, capture_output=True, text=True, timeout=10)
    for applet in listed.stdout.split():
        if applet != "busybox":
            archive.add_symlink(f"/bin/{applet}", "busybox")
    archive.add_file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.add_file("/etc/group", b"root:x:0:\n")
    archive.add_file(
        "/etc/os-release", b'NAME="LimiQuantix guest"\nID=limiquantix-guest\nPRETTY_NAME="LimiQuantix guest"\n'
    )
    archive.add_file("/init", (_FILES / "init").read_bytes(), 0o755)
    archive.add_file("/sbin/dhcp-event", (_FILES / "dhcp-event").read_bytes(), 0o755)
    archive.add_file("/sbin/first-boot", (_FILES / "first-boot").read_bytes(), 0o755)
    archive.add_file("/sbin/load-more", (_FILES / "load-more").read_bytes(), 0o755)
    archive.add_file("/sbin/shutdown", (_FILES / "power-off").read_bytes(), 0o755)
    archive.add_symlink(_POWER_BUTTON_SCRIPT, "/sbin/shutdown")
    archive.add_file("/etc/shadow", b"root:*:0:0:99999:7:::\n", 0o600)
    archive.add_file("/sbin/chpasswd", (_FILES / "chpasswd").read_bytes(), 0o755)
    archive.add_symlink("/sbin/hwclock", "/bin/busybox")  # where the agent looks for it


def _add_modules(archive: Archive, modules: Path) -> None:
    first = load_order(modules, _MODULES)
    more = [module for module in load_order(modules, (*_MODULES, *_MORE_MODULES)) if module not in first]
    for module in (*first, *more):
        archive.add_file(f"/modules/{module.name}.ko", module.data)
    archive.add_file("/modules/order", "".join(f"{module.name}\n" for module in first).encode())
    archive.add_file("/modules/more", "".join(f"{module.name}\n" for module in more).encode())


def _add_agent(archive: Archive, source: PackageSource, unpacked: Path, progress: Callable[[str], None]) -> bool:
    """Add QEMU's guest agent and its libraries; without them the guest is still good, and False is returned."""
    progress("downloading qemu-guest-agent")
    try:
        source.unpack("qemu-guest-agent", unpacked)
    except PackageError as error:
        progress(f"the guest has no agent: {error}")
        return False
    agent = next((path for path in sorted(unpacked.glob("usr/*bin/qemu-ga")) if path.is_file()), None)
    if agent is None:
        progress("the guest has no agent: the package holds no qemu-ga")
        return False
    try:
        libraries = linked_libraries([agent])
    except LibraryError as error:
        progress(f"the guest has no agent: {error}")
        return False
    archive.add_file("/sbin/qemu-ga", agent.read_bytes(), 0o755)
    for library in libraries:
        archive.add_file(str(library), library.read_bytes(), stat.S_IMODE(library.stat().st_mode))
    return True


def linked_libraries(programs: Sequence[Path]) -> Sequence[Path]:
    """Find what the dynamic loader would load for some programs, the loader itself included, each once.

    Raises:
        LibraryError: this machine lacks some, or cannot tell.
    """
    ldd = shutil.which("ldd")
    if ldd is None:
        raise LibraryError("ldd is missing")
    listed = subprocess.run([ldd, *map(str, programs)], check=False, capture_output=True, text=True, timeout=10)
    missing = re.findall(r"(\S+) => not found", listed.stdout)
    if listed.returncode != 0 or missing:
        raise LibraryError(f"this machine lacks {', '.join(missing) or 'the libraries it needs'}")
    found = re.findall(r"(?:=> |^\s*)(/\S+) \(0x", listed.stdout, re.MULTILINE)
    return [Path(path) for path in dict.fromkeys(found)]
