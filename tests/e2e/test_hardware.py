"""A VM with a Windows guest's machine, from the command line down to QEMU: made, resized while it runs, and stopped."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.dev_cluster import COMMAND, DevCluster
from tests.support.private_libvirt_host import skip_unless_private_libvirt

NAME = "win"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    directory = tmp_path_factory.mktemp("real") / "data"
    asyncio.run(skip_unless_private_libvirt(directory))
    with DevCluster(directory, "--hypervisor", "libvirt") as cluster:
        yield cluster


def command(cluster: DevCluster, *words: str) -> str:
    """Run `limiquantix` and return what it printed."""
    done = subprocess.run(
        [COMMAND, *words], capture_output=True, text=True, timeout=200, env=cluster.environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(cluster: DevCluster) -> dict[str, Any]:
    vm = cluster.vm(NAME)
    assert vm is not None
    return vm


def test_machine_of_a_windows_guest_goes_all_the_way_and_is_resized(real: DevCluster) -> None:
    options = "--cpus 1 --max-cpus 4 --memory 512MiB --guest-os windows-server --firmware uefi-secure-boot --tpm 2.0"
    command(real, "vm", "create", NAME, *options.split(), "--watchdog", "reset", "--display", "spice", "--start")
    vm_id = shown(real)["id"]
    definition = real.virsh("dumpxml", vm_id)
    for part in ("secure='yes'", "<tpm model='tpm-crb'>", "<hyperv", "offset='localtime'", "type='spice'", "i6300esb"):
        assert part in definition

    grown = command(real, "vm", "update", NAME, "--cpus", "3", "--memory", "1GiB")
    assert "at its next start: memory.size_mib (the VM was started with room for 512 MiB)" in grown
    assert real.virsh("vcpucount", vm_id, "--current", "--live") == "3"
    assert shown(real)["status"]["runningMemoryMib"] == "512"

    command(real, "vm", "stop", NAME, "--force")
    assert "pendingChanges" not in shown(real)["status"]
    command(real, "vm", "start", NAME)
    assert real.virsh("vcpucount", vm_id, "--current", "--live") == "3"
    assert int(real.virsh("dommemstat", vm_id).split("actual ")[1].split()[0]) == 1024 * 1024
    command(real, "vm", "delete", NAME, "--force", "--yes")


def test_what_the_host_lacks_is_refused_with_the_reason_and_leaves_nothing(real: DevCluster) -> None:
    nodes = real.call("NodeService/ListNodes")["nodes"]
    devices = json.loads(command(real, "-o", "json", "node", "devices", nodes[0]["hostname"]))["devices"]
    assert nodes[0]["spec"]["machine"]["supportsSecureBoot"]
    device = next(each for each in devices if each.get("obstacle"))
    spec = {
        "cpu": {"cores": 1, "model": "Westmear"},
        "memory": {"sizeMib": 64},
        "pciDevices": [{"hostAddress": device["address"]}],
    }
    text = json.dumps({"name": "refused", "spec": spec})

    complaint = subprocess.run(
        [COMMAND, "vm", "create", "--from-file", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=200,
        env=real.environment,
        check=False,
    ).stderr

    assert "near are" in complaint
    assert "Westmere" in complaint
    assert f"cannot give PCI device {device['address']} ({device['obstacle']})" in complaint
    assert real.vm("refused") is None
