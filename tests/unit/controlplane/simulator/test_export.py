"""A live cluster as a file."""

from __future__ import annotations

import yaml

from controlplane.domain.node import Capacity
from controlplane.simulator.cluster_file import read_cluster
from controlplane.simulator.export import export_cluster
from controlplane.simulator.run import simulate
from controlplane.simulator.scenario import Scenario

NODE = {
    "id": "8d2f0e3c-0000-4000-8000-000000000001",
    "hostname": "host-1",
    "labels": {"rack": "a"},
    "spec": {
        "cpu": {"totalThreads": 16},
        "memory": {"totalBytes": str(32 * 2**30)},
        "role": {"compute": True},
        "scheduling": {"schedulable": True, "taints": [{"key": "gpu", "value": "true", "effect": "NO_EXECUTE"}]},
        "agent": {"endpoint": "10.0.0.1:9090"},
        "bridges": ["br0"],
        "newField": 1,
    },
    "status": {
        "phase": "READY",
        "resources": {
            "cpu": {"allocatableVcpus": 30, "allocatedVcpus": 3, "usagePercent": 12.3456},
            "memory": {
                "allocatableBytes": str(40 * 2**30 + 1),
                "usedBytes": str(5 * 2**30),
                "availableBytes": str(27 * 2**30),
            },
        },
    },
}
VM = {
    "id": "8d2f0e3c-0000-4000-8000-000000000101",
    "name": "web-1",
    "projectId": "p1",
    "spec": {
        "cpu": {"cores": 2},
        "memory": {"sizeMib": "2048"},
        "placement": {"requiredLabels": {"rack": "a"}},
        "provisioning": {"cloudInit": {"userData": "secret"}},
        "haPolicy": {"autoRestart": True, "priority": 7},
    },
    "status": {"state": "RUNNING", "nodeId": "8d2f0e3c-0000-4000-8000-000000000001", "runningVcpus": 3},
}


def test_exported_cluster_simulated_without_events_is_as_it_was() -> None:
    text = yaml.safe_dump(export_cluster([NODE], [VM]))
    result = simulate(read_cluster(text.encode()), Scenario())

    assert result.before == result.after
    (node,) = result.after
    assert node.capacity == Capacity(30, 40 * 2**30 + 1)
    assert node.claimed == Capacity(3, 2 * 2**30)
    assert node.used_cpu_percent == 12.346
    assert [vm.name for vm in node.vms] == ["web-1"]


def test_export_holds_no_first_boot_data_and_no_addresses() -> None:
    text = yaml.safe_dump(export_cluster([NODE], [VM]))

    assert "secret" not in text
    assert "10.0.0.1" not in text
    assert "br0" in text
    assert "NO_EXECUTE" in text


def test_exported_twice_through_a_file_is_the_same() -> None:
    found = read_cluster(yaml.safe_dump(export_cluster([NODE], [VM])).encode())

    assert found.vms[0].spec["haPolicy"]["priority"] == 7
    assert found.nodes[0].key == NODE["id"]


def test_vm_on_no_node_and_in_between_is_exported() -> None:
    vm = VM | {"status": {"state": "MIGRATING"}}
    document = export_cluster([NODE], [vm])

    assert "node" not in document["vms"][0]
    assert "state" not in document["vms"][0]
