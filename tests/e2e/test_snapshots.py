"""Saving a VM and going back, by the command line, with a real guest that says what it remembers."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dev_cluster import COMMAND, DevCluster, wait_for
from tests.support.private_libvirt_host import skip_unless_private_libvirt


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """A cluster on libvirt with a guest that runs."""
    directory = tmp_path_factory.mktemp("real") / "data"
    asyncio.run(skip_unless_private_libvirt(directory))
    with DevCluster(directory, "--hypervisor", "libvirt") as cluster:
        yield cluster


class Hello:
    """The demo's VM: commands on it, and its agent as the hands inside."""

    def __init__(self, cluster: DevCluster) -> None:
        self._cluster = cluster
        vm = cluster.vm("hello")
        assert vm is not None
        self.vm_id = str(vm["id"])

    def command(self, *words: str) -> str:
        """Run `limiquantix vm ...` and return what it printed; fails if it did."""
        environment = self._cluster.environment
        done = subprocess.run(
            [COMMAND, "vm", *words], capture_output=True, text=True, timeout=200, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self) -> str | None:
        return self._cluster.state("hello")

    def shell(self, script: str) -> str:
        """Run a script inside and return what it printed."""
        started = self._agent("guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True})
        while not (told := self._agent("guest-exec-status", pid=started["pid"]))["exited"]:
            time.sleep(0.05)
        assert told["exitcode"] == 0, script
        return base64.b64decode(str(told.get("out-data", ""))).decode().strip()

    def until_up(self) -> None:
        """Wait until the agent answers."""

        def answers() -> bool:
            try:
                self._agent("guest-ping")
            except subprocess.CalledProcessError:
                return False
            return True

        wait_for(answers, "an answer of the guest's agent", 60)

    def _agent(self, command: str, **arguments: object) -> dict[str, object]:
        words = json.dumps({"execute": command, "arguments": arguments})
        answer = json.loads(self._cluster.virsh("qemu-agent-command", self.vm_id, words))
        found: dict[str, object] = answer["return"]
        return found


def test_guest_remembers_what_was_saved_and_forgets_what_came_after(real: DevCluster) -> None:
    hello = Hello(real)
    hello.until_up()
    boot_id = hello.shell("echo first >/run/token; cat /proc/sys/kernel/random/boot_id")

    hello.command("suspend", "hello")
    assert hello.state() == "SUSPENDED"
    assert "SUSPENDED" in hello.command("show", "hello")
    hello.command("start", "hello")
    hello.until_up()
    assert hello.shell("cat /run/token /proc/sys/kernel/random/boot_id") == f"first\n{boot_id}"

    hello.shell("echo before | dd of=/dev/vda conv=fsync 2>/dev/null")
    made = hello.command("snapshot", "create", "hello", "with memory", "--memory")
    assert re.search(r"snapshot with memory \([0-9a-f-]{36}\) of VM hello is taken", made)
    hello.command("snapshot", "create", "hello", "quiet", "--quiesce")
    hello.shell("echo second >/run/token; echo after | dd of=/dev/vda conv=fsync 2>/dev/null")
    tree = hello.command("snapshot", "tree", "hello")
    assert tree == "└─ with memory (with memory)\n   └─ quiet\n      └─ (the VM is here)\n"

    hello.command("snapshot", "revert", "hello", "with memory")
    assert hello.state() == "RUNNING"
    hello.until_up()
    assert hello.shell("cat /run/token; head -n1 /dev/vda; cat /proc/sys/kernel/random/boot_id") == (
        f"first\nbefore\n{boot_id}"
    )

    hello.command("snapshot", "delete", "hello", "with memory", "--yes")
    listed = json.loads(hello.command("snapshot", "list", "hello", "-o", "json"))["snapshots"]
    assert [(each["name"], each.get("parentId", ""), each["quiesced"]) for each in listed] == [("quiet", "", True)]
    shown = real.call("VMService/GetVM", id=hello.vm_id)["status"]["snapshots"]
    assert [each["name"] for each in shown["snapshots"]] == ["quiet"]

    hello.command("snapshot", "revert", "hello", "quiet")
    assert hello.state() == "STOPPED"
    images = Path(real.data_dir / "node-1" / "images" / hello.vm_id)
    real.call("VMService/DeleteVM", id=hello.vm_id)
    assert not images.exists()
    assert hello.vm_id not in real.virsh("list", "--all", "--uuid")
