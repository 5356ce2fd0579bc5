"""Clones, templates and first boot with guests that boot: each says its own name, and reads what its source held."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.dev.guest_image import GuestReport, find_guest_report
from tests.support.dev_cluster import COMMAND, CallRefused, DevCluster, leftovers_of, wait_for
from tests.support.private_libvirt_host import skip_unless_private_libvirt

BOOT_S = 90.0
OFFSET_MIB = 300
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB2kZbV0Jp3nVnXcYz1x9Q2g alice@desk"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    directory = tmp_path_factory.mktemp("clones") / "data"
    asyncio.run(skip_unless_private_libvirt(directory))
    if shutil.which("qemu-io") is None:
        pytest.skip("qemu-io is not installed")
    with DevCluster(directory, "--hypervisor", "libvirt") as running:
        hello = running.vm("hello")
        assert hello is not None
        running.call("VMService/StopVM", id=hello["id"], force=True)
        yield running
    assert leftovers_of(directory) == []


def run(cluster: DevCluster, *arguments: str) -> dict[str, Any]:
    """Run the command and return what it printed."""
    words: list[str | Path] = [COMMAND, *arguments, "-o", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, env=cluster.environment, check=False)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def image_of(cluster: DevCluster, vm: dict[str, Any]) -> Path:
    (disk,) = vm["spec"]["disks"]
    return cluster.data_dir / "node-1" / "images" / str(vm["id"]) / f"{disk['id']}.qcow2"


def write(image: Path, pattern: int) -> None:
    words = ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {OFFSET_MIB}M 1M", str(image)]
    subprocess.run(words, check=True, capture_output=True)


def has(image: Path, pattern: int) -> bool:
    words = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {pattern} {OFFSET_MIB}M 1M", str(image)]
    return b"verification failed" not in subprocess.run(words, check=True, capture_output=True).stdout


def report_of(cluster: DevCluster, vm: dict[str, Any]) -> GuestReport:
    """Wait for what the VM's guest says of itself."""

    def look() -> GuestReport | None:
        log = cluster.call("VMService/GetConsoleLog", vmId=vm["id"])
        return find_guest_report(base64.b64decode(log.get("data", "")).decode(errors="replace"))

    return wait_for(look, f"the guest of {vm['name']}", BOOT_S)


def in_guest(cluster: DevCluster, vm: dict[str, Any], script: str) -> str:
    """Run a script inside by the guest's agent."""

    def ask(**command: Any) -> Any:
        return json.loads(cluster.virsh("qemu-agent-command", vm["id"], json.dumps(command)))["return"]

    def begin() -> Any:
        arguments = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        try:
            return ask(execute="guest-exec", arguments=arguments)["pid"]
        except subprocess.CalledProcessError:  # the agent is not up yet
            return None

    pid = wait_for(begin, "the guest's agent")

    def look() -> Any:
        status = ask(execute="guest-exec-status", arguments={"pid": pid})
        return status if status["exited"] else None

    return base64.b64decode(wait_for(look, "the script's end").get("out-data", "")).decode().strip()


@pytest.fixture(scope="module")
def source(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A VM that boots as `hello` does, with something on its disk and something to be told."""
    hello = cluster.vm("hello")
    assert hello is not None
    key = tmp_path_factory.mktemp("key") / "id.pub"
    key.write_text(KEY + "\n")
    boot = hello["spec"]["boot"]["directBoot"]
    made = run(
        cluster,
        *("vm", "create", "golden", "--cpus", "1", "--memory", "128MiB", "--disk", "1GiB"),
        *("--kernel", boot["kernelPath"], "--initrd", boot["initrdPath"], "--cmdline", boot["cmdline"]),
        *("--hostname", "the-golden-one", "--ssh-key", str(key)),
    )
    write(image_of(cluster, made), 0x41)
    return made


def test_full_and_linked_clones_boot_with_names_of_their_own_and_leave_their_source_alone(
    cluster: DevCluster, source: dict[str, Any]
) -> None:
    full = run(cluster, "vm", "clone", "golden", "full-one", "--start")
    run(cluster, "vm", "template", "create", "golden")
    original = image_of(cluster, source)
    assert stat.S_IMODE(original.stat().st_mode) == 0o400
    linked = run(cluster, "vm", "clone", "golden", "linked-one", "--linked", "--start")
    made = run(cluster, "vm", "create", "made", "--template", "golden", "--linked", "--hostname", "renamed", "--start")

    assert [report_of(cluster, vm).hostname for vm in (full, linked, made)] == ["full-one", "linked-one", "renamed"]
    for vm in (full, linked):
        read = f"dd if=/dev/vda bs=1M skip={OFFSET_MIB} count=1 2>/dev/null | head -c 4; cat /root/.ssh/authorized_keys"
        assert in_guest(cluster, vm, read) == f"AAAA{KEY}"
        in_guest(cluster, vm, f"yes B | head -c 1048576 | dd of=/dev/vda bs=1M seek={OFFSET_MIB} conv=fsync")
        assert f"instance-id: {vm['id']}" in in_guest(cluster, vm, "cat /run/first-boot/meta-data")
    assert has(original, 0x41)
    assert image_of(cluster, linked).stat().st_blocks * 512 < 16 * 2**20


def test_template_stays_while_there_are_linked_clones_and_goes_afterwards(
    cluster: DevCluster, source: dict[str, Any]
) -> None:
    with pytest.raises(CallRefused) as refused:
        cluster.call("VMService/StartVM", id=source["id"])
    assert "template" in refused.value.document["message"]
    with pytest.raises(CallRefused) as refused:
        cluster.call("VMService/DeleteVM", id=source["id"], force=True)
    assert refused.value.document["code"] == "failed_precondition"
    assert has(image_of(cluster, source), 0x41)
    for name in ("linked-one", "made", "full-one"):
        vm = cluster.vm(name)
        assert vm is not None
        cluster.call("VMService/DeleteVM", id=vm["id"], force=True)
    cluster.call("VMService/DeleteVM", id=source["id"])
    assert not image_of(cluster, source).parent.exists()


def test_first_boot_of_a_vm_that_is_off_can_be_changed_and_is_never_shown(cluster: DevCluster, tmp_path: Path) -> None:
    user_data = tmp_path / "user-data"
    user_data.write_text("#cloud-config\npassword: s3cr3t-one\n")
    made = run(cluster, "vm", "create", "told", "--cpus", "1", "--memory", "64MiB", "--user-data", str(user_data))
    seed = cluster.data_dir / "node-1" / "images" / made["id"] / "seed.iso"
    assert b"s3cr3t-one" in seed.read_bytes()
    user_data.write_text("#cloud-config\npassword: s3cr3t-two\n")
    run(cluster, "vm", "update", "told", "--user-data", str(user_data))
    assert b"s3cr3t-two" in seed.read_bytes()
    shown = json.dumps(cluster.call("VMService/GetVM", id=made["id"]))
    assert "s3cr3t" not in shown
    assert "cloud_init.user_data" in shown
    logs = [path for path in cluster.data_dir.rglob("*.log") if b"s3cr3t" in path.read_bytes()]
    assert logs == []
    cluster.call("VMService/DeleteVM", id=made["id"])
    assert not seed.exists()
