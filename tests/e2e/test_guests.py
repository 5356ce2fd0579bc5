"""Inside a real guest, by the command line and the API: what its agent tells is shown, and what it is asked it does."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.dev_cluster import COMMAND, DevCluster, wait_for
from tests.support.private_libvirt_host import skip_unless_private_libvirt

NAME = "hello"
"""The demo's VM."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """A cluster on libvirt with a guest that runs."""
    directory = tmp_path_factory.mktemp("guests") / "data"
    asyncio.run(skip_unless_private_libvirt(directory))
    with DevCluster(directory, "--hypervisor", "libvirt") as cluster:
        yield cluster


def guest(cluster: DevCluster, *words: str, data: bytes = b"", status: int = 0) -> bytes:
    """Run `limiquantix vm guest ...` and return what it printed; it must end with that status."""
    done = subprocess.run(
        [COMMAND, "vm", "guest", *words],
        input=data,
        capture_output=True,
        timeout=200,
        env=cluster.environment,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def status_of(cluster: DevCluster) -> dict[str, Any]:
    vm = cluster.vm(NAME)
    assert vm is not None
    status: dict[str, Any] = vm["status"]
    return status


def test_what_the_guest_says_of_itself_is_shown_with_the_vm(real: DevCluster) -> None:
    info = wait_for(lambda: status_of(real).get("guestInfo"), "what the guest says of itself", 60)
    assert (info["hostname"], info["osName"]) == (NAME, "LimiQuantix guest")
    assert info["kernelVersion"].encode() == guest(real, "exec", NAME, "--", "uname", "-r").strip()
    assert info["agentVersion"].encode() in guest(real, "ping", NAME)


def test_command_in_the_guest_has_its_outputs_input_and_status(real: DevCluster) -> None:
    assert guest(real, "exec", "-i", NAME, "--", "sh", "-c", "cat; exit 7", data=b"words\n", status=7) == b"words\n"
    assert (
        guest(real, "exec", "--timeout", "1", NAME, "--", "sh", "-c", "echo begun; sleep 60", status=124) == b"begun\n"
    )


def test_file_put_into_the_guest_is_there_for_its_own_programs(real: DevCluster, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "file").write_bytes(data)
    guest(real, "put", NAME, str(tmp_path / "file"), "/srv/new/file", "--parents", "--mode", "0640")
    assert guest(real, "cat", NAME, "/srv/new/file") == data
    listed = guest(real, "exec", NAME, "--", "stat", "-c", "%a %s", "/srv/new/file")
    assert listed == b"640 100000\n"
    assert guest(real, "cat", NAME, "/no/such", status=1) == b""


def test_password_and_clock_are_set(real: DevCluster) -> None:
    guest(real, "set-password", NAME, "--stdin", data=b"s3cret\n")
    assert guest(real, "cat", NAME, "/etc/shadow").startswith(b"root:$6$")
    assert b"is set" in guest(real, "sync-time", NAME)


def test_guest_that_its_agent_shuts_down_is_wanted_off_and_says_nothing_any_more(real: DevCluster) -> None:
    guest(real, "shutdown", NAME)
    wait_for(lambda: real.state(NAME) == "STOPPED", "the end of the guest")
    status = status_of(real)
    assert status["wantedState"] == "STOPPED"
    assert "guestInfo" not in status
    assert "ipAddresses" not in status
    guest(real, "ping", NAME, status=1)
