"""What filters about hosts, labels and other VMs refuse and let through: as tables for the tests of all filters."""

from __future__ import annotations

from dataclasses import replace

from controlplane.scheduler import filters
from controlplane.scheduler.filters import Check
from controlplane.scheduler.inventory import (
    SMALL_PAGE_BYTES,
    Device,
    DeviceNeed,
    Inventory,
    MachineAbilities,
    Needs,
    NumaNeed,
    SourceCpu,
    Taken,
)
from controlplane.scheduler.sight import Even, Far, Near, Sight
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from limiquantix.compute.v1.node_pb2 import HostDevice
from limiquantix.compute.v1.vm_pb2 import NodeLabelRule, PlacementPolicy
from tests.unit.scheduler.placement_builders import MIB, a_candidate

SMALL = PlacementRequest(vcpus=1, memory_bytes=128 * MIB)
PCI = DeviceNeed(HostDevice.PCI, "0000:3b:00.0")
CARD = Device(HostDevice.PCI, "0000:3b:00.0", "10de", "1eb8")
CAMERA = Device(HostDevice.USB, "1:4", "046d", "0825")
SLICE = Device(HostDevice.MEDIATED, "aaaa", profiles=frozenset({"q-2"}))


def needing(**needs: object) -> PlacementRequest:
    """Make a small request with these needs."""
    return replace(SMALL, needs=Needs(**needs))  # type: ignore[arg-type]


def ruled(key: str, operator: NodeLabelRule.Operator.ValueType, *values: str, weight: int = 0) -> PlacementRequest:
    """Make a small request with one rule about labels."""
    rule = NodeLabelRule(key=key, operator=operator, values=values, weight=weight)
    return replace(SMALL, policy=PlacementPolicy(node_rules=[rule]))


def having(**inventory: object) -> Candidate:
    """Make a node that told this of itself."""
    return a_candidate(inventory=Inventory(**inventory))  # type: ignore[arg-type]


def seeing(**sight: object) -> PlacementRequest:
    """Make a small request for which other VMs mean this."""
    return replace(SMALL, sight=Sight(**sight))  # type: ignore[arg-type]


IN, NOT_IN = NodeLabelRule.IN, NodeLabelRule.NOT_IN
EXISTS, DOES_NOT_EXIST = NodeLabelRule.EXISTS, NodeLabelRule.DOES_NOT_EXIST
IN_RACK_1 = a_candidate(labels={"rack": "1"})
FULL_PAGES = replace(having(page_counts={SMALL_PAGE_BYTES: 100}), taken=Taken(page_counts={SMALL_PAGE_BYTES: 90}))
TWO_CELLS = replace(having(numa_bytes={0: 1024 * MIB, 1: 512 * MIB}), taken=Taken(numa_bytes={0: 768 * MIB}))
EVEN = Even("rack", {"1": 2, "2": 1}, 1, 1, 1, "VMs with app=db")

HOST_REFUSED: list[tuple[Check, Candidate, PlacementRequest, str]] = [
    (filters.node_rules, a_candidate(labels={"a": "3"}), ruled("a", IN, "1", "2"), "must have a in 1/2, has a=3"),
    (filters.node_rules, a_candidate(), ruled("a", IN, "1"), "must have a in 1, has no a"),
    (filters.node_rules, a_candidate(labels={"a": "1"}), ruled("a", NOT_IN, "1"), "must have a not in 1, has a=1"),
    (filters.node_rules, a_candidate(), ruled("a", EXISTS), "must have a label a, has no a"),
    (filters.node_rules, a_candidate(labels={"a": ""}), ruled("a", DOES_NOT_EXIST), "must have no label a, has a="),
    (
        filters.together,
        IN_RACK_1,
        seeing(near=(Near("rack", frozenset({"2"}), "VMs with app=db"),)),
        "must be near VMs with app=db, which are in rack 2",
    ),
    (
        filters.together,
        a_candidate(),
        seeing(near=(Near("rack", None, "VMs with app=db"),)),
        "has no label rack, by which the VM must be near VMs with app=db",
    ),
    (
        filters.together,
        a_candidate("n1"),
        seeing(near=(Near("", frozenset(), "VMs a"),)),
        "must be near VMs a, none of which has a place that all share",
    ),
    (
        filters.apart,
        IN_RACK_1,
        seeing(far=(Far("rack", frozenset({"1"}), "VMs with app=db"),)),
        "must be apart from VMs with app=db, of which rack 1 has some",
    ),
    (
        filters.apart,
        a_candidate("n1"),
        seeing(far=(Far("", frozenset({"n1"}), "VMs a"),)),
        "must be apart from VMs a, of which this node has some",
    ),
    (
        filters.spread,
        IN_RACK_1,
        seeing(even=(EVEN,)),
        "rack 1 has 2 of VMs with app=db, the emptiest 1; with this VM it may have 1 more",
    ),
    (
        filters.spread,
        a_candidate(),
        seeing(even=(EVEN,)),
        "has no label rack, over which VMs with app=db are spread",
    ),
    (
        filters.storage_domains,
        having(storage_domain_ids=frozenset({"s1"})),
        needing(storage_domain_ids=frozenset({"s1", "s2"})),
        "does not have storage s2",
    ),
    (
        filters.networks,
        having(bridges=frozenset({"br0"}), host_networks=frozenset({"default"})),
        needing(bridges=frozenset({"br1"}), host_networks=frozenset({"lab"})),
        "does not have bridge br1, host network lab",
    ),
    (
        filters.cpu_model,
        having(machine=MachineAbilities(cpu_models=frozenset({"Nehalem"}))),
        needing(cpu_model="Skylake-Server"),
        "cannot run CPU model Skylake-Server",
    ),
    (
        filters.cpu_model,
        having(cpu_features=frozenset({"aes"})),
        needing(cpu_features=frozenset({"aes", "avx512f"})),
        "lacks processor features avx512f",
    ),
    (
        filters.cpu_model,
        having(machine=MachineAbilities()),
        needing(needs_nested_virtualization=True),
        "lets guests run no VMs of their own",
    ),
    (
        filters.cpu_model,
        having(cpu_model="EPYC"),
        needing(source_cpu=SourceCpu("Xeon", frozenset())),
        "has another processor, EPYC, than the running guest sees, Xeon",
    ),
    (
        filters.cpu_model,
        having(cpu_model="Xeon", cpu_features=frozenset({"aes"})),
        needing(source_cpu=SourceCpu("Xeon", frozenset({"aes", "avx2"}))),
        "lacks processor features that the running guest sees: avx2",
    ),
    (
        filters.machine,
        having(machine=MachineAbilities(tpm_versions=frozenset({"1.2"}), displays=frozenset({"vnc"}))),
        needing(needs_uefi=True, needs_secure_boot=True, tpm_version="2.0", display="spice"),
        "has no TPM 2.0, UEFI firmware, spice display",
    ),
    (
        filters.machine,
        having(machine=MachineAbilities(has_uefi=True)),
        needing(needs_uefi=True, needs_secure_boot=True),
        "has no secure boot",
    ),
    (
        filters.max_vcpus,
        having(machine=MachineAbilities(max_vcpus=16)),
        needing(most_vcpus=32),
        "runs VMs of at most 16 vCPUs, needs 32",
    ),
    (filters.devices, having(), needing(devices=(PCI,)), "cannot give PCI device 0000:3b:00.0 (not there)"),
    (
        filters.devices,
        having(devices=(replace(CARD, obstacle="its group has another"),)),
        needing(devices=(PCI,)),
        "cannot give PCI device 0000:3b:00.0 (its group has another)",
    ),
    (
        filters.devices,
        replace(having(devices=(CARD,)), taken=Taken(devices=frozenset({(HostDevice.PCI, "0000:3b:00.0")}))),
        needing(devices=(DeviceNeed(HostDevice.PCI, vendor_id="10de", product_id="1eb8"),)),
        "cannot give PCI device 10de:1eb8 (in use)",
    ),
    (
        filters.devices,
        having(devices=(replace(SLICE, used_by_vm_id="other"),)),
        needing(devices=(DeviceNeed(HostDevice.MEDIATED, profile="q-2"),)),
        "cannot give mediated device of profile q-2 (in use)",
    ),
    (
        filters.huge_pages,
        FULL_PAGES,
        needing(page_bytes=SMALL_PAGE_BYTES, page_count=11),
        "needs 11 huge pages of 2 MiB, 10 of 100 free",
    ),
    (
        filters.numa,
        TWO_CELLS,
        needing(numa=(NumaNeed(600 * MIB),)),
        "cannot seat guest NUMA node of up to 600 MiB; free are 0: 256 MiB, 1: 512 MiB",
    ),
    (
        filters.numa,
        TWO_CELLS,
        needing(numa=(NumaNeed(400 * MIB, (0,)),)),
        "cannot seat guest NUMA node of up to 400 MiB; free are 0: 256 MiB, 1: 512 MiB",
    ),
]

HOST_ALLOWED: list[tuple[Check, Candidate, PlacementRequest]] = [
    (filters.node_rules, a_candidate(labels={"a": "2"}), ruled("a", IN, "1", "2")),
    (filters.node_rules, a_candidate(), ruled("a", NOT_IN, "1")),
    (filters.node_rules, a_candidate(labels={"a": ""}), ruled("a", EXISTS)),
    (filters.node_rules, a_candidate(labels={"b": ""}), ruled("a", DOES_NOT_EXIST)),
    (filters.node_rules, a_candidate(), ruled("a", EXISTS, weight=10)),
    (filters.together, IN_RACK_1, seeing(near=(Near("rack", frozenset({"1"}), ""), Near("rack", None, "")))),
    (filters.apart, IN_RACK_1, seeing(far=(Far("rack", frozenset({"2"}), ""),))),
    (filters.apart, a_candidate(), seeing(far=(Far("rack", frozenset({"2"}), ""),))),
    (filters.spread, a_candidate(labels={"rack": "2"}), seeing(even=(EVEN,))),
    (
        filters.storage_domains,
        having(storage_domain_ids=frozenset({"s1", "s2"})),
        needing(storage_domain_ids=frozenset({"s1"})),
    ),
    (filters.networks, having(bridges=frozenset({"br0"})), needing(bridges=frozenset({"br0"}))),
    (filters.networks, having(), needing(bridges=frozenset({"br0"}), host_networks=frozenset({"lab"}))),
    (filters.cpu_model, having(), needing(cpu_model="EPYC", cpu_features=frozenset({"aes"}))),
    (
        filters.cpu_model,
        having(cpu_model="Xeon", cpu_features=frozenset({"aes", "avx"})),
        needing(source_cpu=SourceCpu("Xeon", frozenset({"aes"}))),
    ),
    (filters.machine, having(), needing(needs_uefi=True, tpm_version="2.0")),
    (
        filters.machine,
        having(machine=MachineAbilities(has_uefi=True, tpm_versions=frozenset({"2.0"}))),
        needing(needs_uefi=True, tpm_version="2.0", display="vnc"),
    ),
    (filters.max_vcpus, having(machine=MachineAbilities(max_vcpus=16)), needing(most_vcpus=16)),
    (filters.max_vcpus, having(machine=MachineAbilities()), needing(most_vcpus=16)),
    (filters.devices, having(devices=(CARD,)), needing(devices=(PCI,))),
    (
        filters.devices,
        having(devices=(replace(CARD, used_by_vm_id="me"),)),
        replace(needing(devices=(PCI,)), vm_id="me"),
    ),
    (
        filters.devices,
        having(devices=(CAMERA, replace(CAMERA, address="1:5"))),
        needing(
            devices=(
                DeviceNeed(HostDevice.USB, vendor_id="046d", product_id="0825"),
                DeviceNeed(HostDevice.USB, "1:4"),
            )
        ),
    ),
    (filters.huge_pages, FULL_PAGES, needing(page_bytes=SMALL_PAGE_BYTES, page_count=10)),
    (filters.huge_pages, having(), needing(page_bytes=SMALL_PAGE_BYTES, page_count=10)),
    (filters.numa, TWO_CELLS, needing(numa=(NumaNeed(200 * MIB), NumaNeed(500 * MIB)))),
    (filters.numa, having(), needing(numa=(NumaNeed(200 * MIB),))),
]
