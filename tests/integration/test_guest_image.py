"""The demo's guest, made from real packages and booted by a real libvirt and QEMU."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.cli.dev.guest_image import (
    GuestImage,
    GuestImageError,
    GuestReport,
    build_guest_image,
    find_guest_report,
)
from controlplane.cli.dev.libvirt_choice import find_barred_directory
from controlplane.cli.dev.libvirtd import PrivateLibvirt
from tests.support.private_libvirt_host import (
    TEST_CACHE_DIR,
    domain_xml,
    eventually,
    private_libvirt,
    skip_unless_private_libvirt,
    virsh,
)

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def real_apt() -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get: the guest image is made from Debian's or Ubuntu's packages")


@pytest.fixture
async def image() -> GuestImage:
    return await asyncio.to_thread(build_guest_image, TEST_CACHE_DIR / "guest", print)


@pytest.fixture
async def libvirt(tmp_path: Path) -> AsyncIterator[PrivateLibvirt]:
    await skip_unless_private_libvirt(tmp_path)
    async with private_libvirt(tmp_path / "data") as running:
        yield running


async def boot(libvirt: PrivateLibvirt, image: GuestImage, directory: Path, name: str) -> GuestReport:
    """Start a VM and return what its guest says once it is up."""
    description, log = directory / "vm.xml", directory / "serial.log"
    description.write_text(domain_xml(name, image, log))
    await virsh(libvirt.uri, "define", str(description))
    started_s = time.monotonic()
    await virsh(libvirt.uri, "start", name)

    async def look() -> GuestReport | None:
        return find_guest_report(log.read_text(errors="replace")) if log.exists() else None

    report = await eventually(look, "the guest's own line on its serial port", deadline_s=60)
    print(f"guest up {time.monotonic() - started_s:.2f} s after start, {report.uptime_s} s of them in its kernel")
    return report


async def test_guest_image_booted_tells_its_name_and_size_and_obeys_the_power_button(
    libvirt: PrivateLibvirt, image: GuestImage, tmp_path: Path
) -> None:
    report = await boot(libvirt, image, tmp_path, "hello")

    assert (report.hostname, report.vcpus, report.kernel) == ("hello", 1, image.kernel_version)
    assert 64 <= report.memory_mib <= 128
    await virsh(libvirt.uri, "shutdown", "hello", "--mode", "acpi")

    async def look() -> str | None:
        state = await virsh(libvirt.uri, "domstate", "hello", "--reason")
        return state if state.startswith("shut off") else None

    assert await eventually(look, "the end of the guest") == "shut off (shutdown)"


async def test_guest_image_agent_answers_and_shuts_the_guest_down(
    libvirt: PrivateLibvirt, image: GuestImage, tmp_path: Path
) -> None:
    if not image.has_agent:
        pytest.skip("the guest image was made without the agent: its package or a library was not to be had")
    await boot(libvirt, image, tmp_path, "agent")

    async def ask() -> dict[str, dict[str, str]] | None:
        try:
            answer = await virsh(libvirt.uri, "qemu-agent-command", "agent", '{"execute":"guest-get-host-name"}')
        except RuntimeError:  # not up yet
            return None
        found: dict[str, dict[str, str]] = json.loads(answer)
        return found

    assert await eventually(ask, "the agent's answer") == {"return": {"host-name": "agent"}}
    try:
        await virsh(libvirt.uri, "shutdown", "agent", "--mode", "agent")
    except RuntimeError as error:
        # A guest that goes down at once takes the agent along before libvirt has seen the agent take the order.
        if "End of file from agent socket" not in str(error):
            raise

    async def look() -> str | None:
        state = await virsh(libvirt.uri, "domstate", "agent", "--reason")
        return state if state.startswith("shut off") else None

    assert await eventually(look, "the end of the guest") == "shut off (shutdown)"


def test_guest_image_built_once_is_found_again_without_apt(image: GuestImage, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("PATH", "/nonexistent")

    assert build_guest_image(TEST_CACHE_DIR / "guest", said.append) == image
    assert said == []


def test_guest_image_without_apt_is_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(GuestImageError, match="has no apt-get"):
        build_guest_image(tmp_path / "cache", print)

    assert list((tmp_path / "cache").iterdir()) == []


BUILD_AS_NOBODY = """
import os, pwd, sys
from pathlib import Path
from controlplane.cli.dev.guest_image import build_guest_image
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
print(build_guest_image(Path(sys.argv[1]), lambda line: None).initrd)
"""


def test_guest_image_built_as_ordinary_user_is_complete_and_readable() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; the other tests built the image as an ordinary one")
    if (barred := find_barred_directory(PROJECT, "nobody")) is not None:
        pytest.skip(f"user nobody may not enter {barred} on the way to this checkout")
    with tempfile.TemporaryDirectory(prefix="limiquantix-guest-", dir="/tmp") as name:
        cache = Path(name)
        shutil.chown(cache, "nobody")
        done = subprocess.run(
            [sys.executable, "-c", BUILD_AS_NOBODY, name],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

        assert done.returncode == 0, done.stderr
        initrd = Path(done.stdout.strip())
        assert initrd.stat().st_mode & 0o444 == 0o444
        assert initrd.owner() == "nobody"
        assert [path.name for path in cache.iterdir()] == [initrd.parent.name]
