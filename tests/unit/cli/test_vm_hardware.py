"""The options for machines, and what is shown of them."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.cli.vm_hardware import FAMILIES
from limiquantix.compute.v1.vm_pb2 import GuestOSFamily
from tests.support.fake_http_api import FakeApi, Run

VM_ID = "0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11"
NODE_ID = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"


def vm(**status: Any) -> dict[str, Any]:
    return {
        "id": VM_ID,
        "name": "web-1",
        "spec": {"cpu": {"cores": 4, "maxVcpus": 8}, "memory": {"sizeMib": "1024"}, "tpm": {"enabled": True}},
        "status": {"state": "RUNNING", **status},
        "isManaged": True,
    }


PENDING = {
    "pendingChanges": ["spec.cpu.cores", "spec.memory.size_mib"],
    "pendingReasons": ["the VM was started with room for 2 vCPUs"],
    "runningVcpus": 2,
    "runningMemoryMib": "512",
}


@pytest.fixture(autouse=True)
def answers(api: FakeApi) -> None:
    api.answers["ListNodes"] = lambda request: {"nodes": []}
    api.answers["ListVMs"] = lambda request: {"vms": [vm(**PENDING)]}
    api.answers["GetVM"] = lambda request: vm(**PENDING)
    api.answers["CreateVM"] = lambda request: vm()
    api.answers["UpdateVM"] = lambda request: vm(**PENDING)


def test_families_are_those_of_the_contract() -> None:
    names = GuestOSFamily.DESCRIPTOR.values_by_name
    named = {name.removeprefix("GUEST_OS_FAMILY_").lower().replace("_", "-") for name in names}
    assert set(FAMILIES) == named - {"unspecified"}


def test_options_of_the_machine_become_the_spec(run: Run, api: FakeApi) -> None:
    options = "--cpus 2 --max-cpus 8 --max-memory 4GiB --balloon --guest-os windows-server --tpm 2.0"
    result = run("vm", "create", "web-1", *options.split(), "--watchdog", "pause", "--display", "spice")

    assert result.exit_code == 0, result.output
    assert api.request("CreateVM")["spec"] == {
        "cpu": {"cores": 2, "maxVcpus": 8},
        "memory": {"maxMemoryMib": 4096, "ballooningEnabled": True},
        "guestOs": {"family": "GUEST_OS_FAMILY_WINDOWS_SERVER"},
        "tpm": {"enabled": True, "version": "TPM_2_0"},
        "watchdog": {"enabled": True, "action": "PAUSE"},
        "display": {"type": "SPICE"},
    }


def test_options_of_the_machine_win_over_the_file_and_keep_the_rest_of_it(run: Run, api: FakeApi) -> None:
    text = "name: web-1\nspec: {guest_os: {family: GUEST_OS_FAMILY_RHEL, variant: '9'}, cpu: {max_vcpus: 2, cores: 1}}"
    result = run("vm", "create", "--guest-os", "debian", "--max-cpus", "4", "--from-file", "-", input=text.encode())

    assert result.exit_code == 0, result.output
    assert api.request("CreateVM")["spec"] == {
        "guestOs": {"family": "GUEST_OS_FAMILY_DEBIAN", "variant": "9"},
        "cpu": {"cores": 1, "maxVcpus": 4},
    }


def test_update_names_each_option_in_its_mask_and_tells_what_waits(run: Run, api: FakeApi) -> None:
    result = run("vm", "update", VM_ID, "--cpus", "4", "--no-balloon", "--max-memory", "2GiB")

    request = api.request("UpdateVM")
    assert set(request["updateMask"].split(",")) == {
        "spec.cpu.cores",
        "spec.memory.ballooningEnabled",
        "spec.memory.maxMemoryMib",
    }
    assert request["spec"]["memory"] == {"maxMemoryMib": 2048, "ballooningEnabled": False}
    assert result.output.splitlines()[-1] == (
        "at its next start: cpu.cores, memory.size_mib (the VM was started with room for 2 vCPUs)"
    )


def test_show_tells_the_machine_what_waits_and_what_runs(run: Run) -> None:
    shown = run("vm", "show", VM_ID).output

    assert "room for 2 vCPUs" in shown
    assert "2 vCPUs, 512 MiB" in shown
    assert "Most vCPUs" in shown
    assert "changes at next start" in run("vm", "list").output


DEVICES = [
    {
        "kind": "PCI",
        "address": "0000:00:03.0",
        "vendorId": "1af4",
        "productId": "1041",
        "vendor": "Red Hat",
        "product": "card\u001b[2J",
        "driver": "virtio-pci",
        "obstacle": "it is in no IOMMU group",
    },
    {"kind": "PCI", "address": "0000:3b:00.0", "iommuGroup": 7},
]


@pytest.fixture
def node(api: FakeApi) -> dict[str, Any]:
    machine = {"supportsUefi": True, "canAddVcpus": True, "tpmVersions": ["2.0"], "cpuModels": ["Nehalem"]}
    machine |= {"hugePages": {"pages2mbTotal": "4", "pages2mbFree": "3"}}
    found = {"id": NODE_ID, "hostname": "host-1", "spec": {"devices": DEVICES, "machine": machine}}
    api.answers["GetNode"] = lambda request: found
    return found


def test_devices_of_a_node_are_listed_with_what_keeps_them_from_vms(run: Run, node: dict[str, Any]) -> None:
    lines = run("node", "devices", NODE_ID).output.splitlines()

    assert "no: it is in no IOMMU group" in lines[1]
    assert lines[2].split()[0] == "0000:3b:00.0"
    assert lines[2].split()[-1] == "yes"
    assert "\x1b" not in "".join(lines)
    assert run("-o", "json", "node", "devices", NODE_ID).exit_code == 0


def test_node_shows_what_its_machines_can_have(run: Run, node: dict[str, Any]) -> None:
    shown = run("node", "show", NODE_ID).output
    assert "UEFI, adding vCPUs" in shown
    assert "3 of 4 of 2 MiB" in shown
