"""A real private libvirt daemon: that it answers, keeps what it is told to keep, and leaves nothing."""

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.cli.dev.leftovers import add_bridge
from controlplane.cli.dev.libvirt_choice import libvirt_answers
from controlplane.cli.dev.libvirtd import PrivateLibvirt, PrivateLibvirtError, processes_inside
from tests.support.private_libvirt_host import (
    TEST_CACHE_DIR,
    descendants,
    is_running,
    private_libvirt,
    process_name,
    skip_unless_private_libvirt,
    traces_of,
    virsh,
    wait_until_gone,
)

BRIDGE = f"lqtest{os.getpid() % 100_000_000}"
"""Its own in every test process: names of network devices are machine-wide, and 15 characters at most."""
# A VM without kernel or disk: it idles in its firmware, which is all these tests need.
IDLE_VM = """
<domain type='qemu'>
  <name>idle</name>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices/>
</domain>
"""


@pytest.fixture(autouse=True)
async def real_libvirt(tmp_path: Path) -> None:
    await skip_unless_private_libvirt(tmp_path)


@pytest.fixture
async def libvirt(tmp_path: Path) -> AsyncIterator[PrivateLibvirt]:
    async with private_libvirt(tmp_path / "data") as running:
        yield running


def process_file(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}", name).read_text()


def bridge_address(name: str) -> str | None:
    """Return the MAC address of a bridge, None when there is none of that name."""
    device = Path("/sys/class/net", name)
    return (device / "address").read_text().strip() if (device / "bridge").is_dir() else None


async def start_idle_vm(uri: str, directory: Path) -> None:
    description = directory / "idle.xml"
    description.write_text(IDLE_VM)
    await virsh(uri, "define", str(description))
    await virsh(uri, "start", "idle")


async def test_private_libvirt_stopped_with_a_running_vm_leaves_no_process_mount_or_socket(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    libvirt = private_libvirt(data_dir)
    await libvirt.start()
    await start_idle_vm(libvirt.uri, tmp_path)
    assert libvirt.reaper_pid is not None
    below = descendants(libvirt.reaper_pid)
    assert "qemu-system-x86" in {process_name(pid) for pid in below}
    assert [pid for pid in set(below) - {*processes_inside(data_dir / "run")} if is_running(pid)] == []

    await libvirt.stop()

    assert [pid for pid in below if is_running(pid)] == []
    assert traces_of(data_dir) == []
    assert not (data_dir / "run").exists()
    assert not await libvirt_answers(libvirt.socket, timeout_s=1)
    await libvirt.stop()  # once more is harmless


async def test_private_libvirt_runs_qemu_behind_its_filter_of_system_calls(
    libvirt: PrivateLibvirt, tmp_path: Path
) -> None:
    await start_idle_vm(libvirt.uri, tmp_path)
    assert libvirt.reaper_pid is not None
    (qemu,) = [pid for pid in descendants(libvirt.reaper_pid) if process_name(pid) == "qemu-system-x86"]

    words = process_file(qemu, "cmdline").split("\0")
    assert words[words.index("-sandbox") + 1].startswith("on,obsolete=deny,elevateprivileges=deny,spawn=deny")
    status = process_file(qemu, "status")
    assert "\nSeccomp:\t2\n" in status  # filtered
    assert "\nNoNewPrivs:\t1\n" in status


async def test_private_libvirt_started_again_knows_its_vms_and_is_the_same_host(tmp_path: Path) -> None:
    async with private_libvirt(tmp_path / "data") as first:
        await start_idle_vm(first.uri, tmp_path)
        host = (await virsh(first.uri, "capabilities")).partition("<uuid>")[2].partition("<")[0]

    async with private_libvirt(tmp_path / "data") as second:
        assert await virsh(second.uri, "domstate", "idle") == "shut off"
        assert host in await virsh(second.uri, "capabilities")


def test_private_libvirt_parent_killed_leaves_no_process_mount_or_socket(tmp_path: Path) -> None:
    (tmp_path / "idle.xml").write_text(IDLE_VM)
    program = textwrap.dedent(
        f"""
        import asyncio
        from pathlib import Path
        from tests.integration.test_private_libvirt import start_idle_vm
        from tests.support.private_libvirt_host import private_libvirt
        async def main():
            libvirt = private_libvirt(Path({str(tmp_path / "data")!r}))
            await libvirt.start()
            await start_idle_vm(libvirt.uri, Path({str(tmp_path)!r}))
            print(libvirt.reaper_pid, flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        reaper = int(parent.stdout.readline())
        below = descendants(reaper)
        assert len(below) >= 2
        parent.kill()

    wait_until_gone(reaper)
    assert [pid for pid in below if is_running(pid)] == []
    assert traces_of(tmp_path / "data") == []
    assert not (tmp_path / "data/run").exists()


async def test_private_libvirt_reaper_killed_is_tidied_up_by_the_next_start(tmp_path: Path) -> None:
    libvirt = private_libvirt(tmp_path / "data")
    await libvirt.start()
    await start_idle_vm(libvirt.uri, tmp_path)
    assert libvirt.reaper_pid is not None
    below = descendants(libvirt.reaper_pid)
    os.kill(libvirt.reaper_pid, 9)

    async with private_libvirt(tmp_path / "data") as second:
        for pid in below:
            wait_until_gone(pid)
        assert await virsh(second.uri, "domstate", "idle") == "shut off"
    await libvirt.stop()


async def test_private_libvirt_directory_too_deep_for_sockets_works_and_leaves_nothing_in_run(tmp_path: Path) -> None:
    data_dir = tmp_path / ("deep" * 25)
    libvirt = private_libvirt(data_dir)
    assert len(os.fsencode(libvirt.socket)) <= 107

    async with libvirt:
        assert (libvirt.socket.parent.stat().st_mode & 0o777) == 0o700
        assert "libvirt" in await virsh(libvirt.uri, "version")

    assert not libvirt.socket.parent.exists()


async def test_private_libvirt_directory_with_signs_of_addresses_in_its_name_is_reached(tmp_path: Path) -> None:
    async with private_libvirt(tmp_path / "my data&x=%41?#") as libvirt:
        assert "libvirt" in await virsh(libvirt.uri, "version")


async def test_private_libvirt_second_one_on_the_directory_is_refused(libvirt: PrivateLibvirt, tmp_path: Path) -> None:
    second = private_libvirt(tmp_path / "data")

    with pytest.raises(PrivateLibvirtError, match="another private libvirt daemon uses"):
        await second.start(timeout_s=0.1)

    assert "libvirt" in await virsh(libvirt.uri, "version")


async def test_private_libvirt_daemon_that_cannot_start_is_reported_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "data/lib").mkdir(parents=True)
    (tmp_path / "data/lib/qemu").write_text("a file where the daemon wants a directory")
    libvirt = private_libvirt(tmp_path / "data")

    with pytest.raises(PrivateLibvirtError, match=r"(?s)ended at once.*daemon\.log ends with.*/var/lib/libvirt/qemu"):
        await libvirt.start()

    assert libvirt.reaper_pid is None
    assert traces_of(tmp_path / "data") == []


async def test_private_libvirt_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(PrivateLibvirtError, match="cannot lay out"):
        await private_libvirt(tmp_path / "file/data").start()


async def test_private_libvirt_directory_the_daemon_would_hide_is_refused() -> None:
    with pytest.raises(PrivateLibvirtError, match="lies in /var/lib/libvirt"):
        await private_libvirt(Path("/var/lib/libvirt/limiquantix")).start()


async def test_private_libvirt_bridge_exists_while_it_runs(tmp_path: Path) -> None:
    async with private_libvirt(tmp_path / "data", bridge=BRIDGE):
        assert bridge_address(BRIDGE) is not None

    assert bridge_address(BRIDGE) is None


async def test_private_libvirt_bridge_stays_until_the_last_daemon_that_uses_it_ends(tmp_path: Path) -> None:
    second = private_libvirt(tmp_path / "second", bridge=BRIDGE)
    async with private_libvirt(tmp_path / "first", bridge=BRIDGE):
        made = bridge_address(BRIDGE)
        await second.start()
    try:
        assert bridge_address(BRIDGE) == made
    finally:
        await second.stop()
    assert bridge_address(BRIDGE) is None


async def test_private_libvirt_bridge_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    mac = "52:54:00:00:00:01"
    add_bridge(BRIDGE, mac)
    try:
        async with private_libvirt(tmp_path / "data", bridge=BRIDGE):
            pass
        assert bridge_address(BRIDGE) == mac
    finally:
        await asyncio.to_thread(subprocess.run, ["/sbin/ip", "link", "delete", BRIDGE], check=True)


async def test_private_libvirt_bridge_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    libvirt = PrivateLibvirt(
        tmp_path / "data", cache_dir=TEST_CACHE_DIR / "libvirt", bridge="name-too-long-for-linux", tell=said.append
    )

    async with libvirt:
        assert "libvirt" in await virsh(libvirt.uri, "version")

    assert len(said) == 1
    assert said[0].startswith("no bridge name-too-long-for-linux")
