"""Which libvirt is chosen, and with what explanation, for machines made up."""

import asyncio
import os
import pwd
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.cli.dev.libvirt_choice import (
    HostFacts,
    LibvirtKind,
    choose_libvirt,
    configured_qemu_user,
    find_barred_directory,
    find_libvirt,
    libvirt_answers,
)

DATA_DIR = Path("/home/ada/work/.limiquantix")
ROOT_WITHOUT_SYSTEM_DAEMON = HostFacts(
    is_root=True,
    may_mount=True,
    qemu=Path("/usr/bin/qemu-system-x86_64"),
    daemon=Path("/usr/sbin/libvirtd"),
    system_answers=False,
    qemu_user="libvirt-qemu",
    barred_directory=None,
)


async def test_find_libvirt_system_daemon_that_answers_is_used() -> None:
    async def observe(data_dir: Path) -> HostFacts:
        assert data_dir == DATA_DIR
        return replace(ROOT_WITHOUT_SYSTEM_DAEMON, system_answers=True)

    choice = await find_libvirt(DATA_DIR, observe)

    assert (choice.kind, choice.uri) == (LibvirtKind.SYSTEM, "qemu:///system")


def test_choose_libvirt_root_without_system_daemon_gets_a_private_one() -> None:
    choice = choose_libvirt(ROOT_WITHOUT_SYSTEM_DAEMON, DATA_DIR)

    assert (choice.kind, choice.uri) == (LibvirtKind.PRIVATE, None)
    assert str(DATA_DIR) in choice.reason


def test_choose_libvirt_home_closed_to_the_system_qemu_gets_a_private_one_and_says_why() -> None:
    facts = replace(ROOT_WITHOUT_SYSTEM_DAEMON, system_answers=True, barred_directory=Path("/home/ada"))

    choice = choose_libvirt(facts, DATA_DIR)

    assert choice.kind is LibvirtKind.PRIVATE
    assert "libvirt-qemu" in choice.reason
    assert "chmod o+x /home/ada" in choice.reason


@pytest.mark.parametrize("barred", [None, Path("/home/ada")])
def test_choose_libvirt_user_without_usable_system_daemon_gets_the_session(barred: Path | None) -> None:
    facts = replace(
        ROOT_WITHOUT_SYSTEM_DAEMON, is_root=False, may_mount=False, system_answers=bool(barred), barred_directory=barred
    )

    choice = choose_libvirt(facts, DATA_DIR)

    assert (choice.kind, choice.uri) == (LibvirtKind.SESSION, "qemu:///session")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (replace(ROOT_WITHOUT_SYSTEM_DAEMON, qemu=None), "qemu-system-x86_64 is not installed"),
        (replace(ROOT_WITHOUT_SYSTEM_DAEMON, qemu=None, system_answers=True), "qemu-system-x86_64 is not installed"),
        (replace(ROOT_WITHOUT_SYSTEM_DAEMON, daemon=None), "neither libvirtd nor virtqemud is installed"),
        (replace(ROOT_WITHOUT_SYSTEM_DAEMON, may_mount=False), "CAP_SYS_ADMIN"),
    ],
)
def test_choose_libvirt_machine_that_cannot_run_one_gets_none_with_the_reason(facts: HostFacts, reason: str) -> None:
    choice = choose_libvirt(facts, DATA_DIR)

    assert (choice.kind, choice.uri) == (LibvirtKind.NONE, None)
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("text", "user"),
    [('user = "ada"\n', "ada"), ('#user = "root"\n  user="+1000"', "1000"), ('user = "qemu"\ngroup = "kvm"', "qemu")],
)
def test_configured_qemu_user_named_in_the_file_is_returned(tmp_path: Path, text: str, user: str) -> None:
    conf = tmp_path / "qemu.conf"
    conf.write_text(text)

    assert configured_qemu_user(conf) == user


def test_find_barred_directory_closed_directory_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "inside").mkdir(parents=True)
    closed.chmod(0o700)
    for opened in (tmp_path, *tmp_path.parents):
        if opened == Path(tempfile.gettempdir()):
            break
        opened.chmod(0o755)
    stranger = next(user.pw_name for user in pwd.getpwall() if user.pw_uid not in (0, os.geteuid()))

    assert find_barred_directory(closed / "inside", stranger) == closed
    assert find_barred_directory(closed / "inside", "root") is None
    closed.chmod(0o701)
    assert find_barred_directory(closed / "inside", stranger) is None


@asynccontextmanager
async def listening(socket: Path, answer: bytes) -> AsyncIterator[None]:
    """A server on `socket` that sends `answer` to whoever calls."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(28)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(socket))
    async with server:
        yield


async def test_libvirt_answers_socket_of_another_program_is_no_libvirt(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", b"HTTP/1.1 400 Bad Request, and more to fill it"):
        assert not await libvirt_answers(tmp_path / "s", timeout_s=60)


async def test_libvirt_answers_reply_to_the_call_is_a_libvirt(tmp_path: Path) -> None:
    reply = bytes.fromhex("00000024 20008086 00000001 00000042 00000001 00000000 00000000 00000001 00000000")
    async with listening(tmp_path / "s", reply):
        assert await libvirt_answers(tmp_path / "s", timeout_s=60)


async def test_libvirt_answers_socket_that_is_silent_or_absent_is_no_libvirt(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", b""):
        assert not await libvirt_answers(tmp_path / "s", timeout_s=60)
    assert not await libvirt_answers(tmp_path / "nothing", timeout_s=60)
