"""Filters that look at the host: what it reaches, what it has, and what of that is free.

What a host did not tell of is unknown, and lets the VM pass: the host looks itself before it builds it.
"""

from __future__ import annotations

from difflib import get_close_matches

from controlplane.domain.vm import BYTES_PER_MIB
from controlplane.scheduler.inventory import SourceCpu, devices_for, numa_fits
from controlplane.scheduler.rejection import Rejection, Words, listed
from controlplane.scheduler.snapshot import Candidate, PlacementRequest

_NEAR_COUNT = 3
"""Names that a message offers for one that is perhaps misspelt."""

_GUEST_NUMA = "guest NUMA node"


STORAGE_POOLS = Words(
    "storage pools", "does not reach its storage pools", "do not reach its storage pools", "missing {}"
)


def storage_pools(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that do not reach the storage pool of every disk."""
    missing = request.storage_pool_ids - candidate.storage_pool_ids
    if not missing:
        return None
    names = listed(missing)
    return Rejection(STORAGE_POOLS, f"does not reach storage pool {names}", found=names)


STORAGE_DOMAINS = Words(
    "storage domains", "does not have the storage of its disks", "do not have the storage of its disks", "missing {}"
)


def storage_domains(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that do not have the storage in which the VM's disks lie; one that tells of none has none."""
    missing = request.needs.storage_domain_ids - candidate.inventory.storage_domain_ids
    if not missing:
        return None
    return Rejection(STORAGE_DOMAINS, f"does not have storage {listed(missing)}", found=listed(missing))


NETWORKS = Words("networks", "lacks networks", "lack networks", "missing {}")


def networks(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes without a bridge or a host network of the VM's cards, if they tell which they have."""
    inventory, needs = candidate.inventory, request.needs
    missing = {f"bridge {name}" for name in needs.bridges - inventory.bridges if inventory.bridges}
    if inventory.host_networks:
        missing |= {f"host network {name}" for name in needs.host_networks - inventory.host_networks}
    if not missing:
        return None
    return Rejection(NETWORKS, f"does not have {listed(missing)}", found=listed(missing))


CPU_MODEL = Words("cpu model", "has an unfit processor", "have unfit processors")


def cpu_model(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes whose processor cannot be what the guest needs, or what it already sees while it runs."""
    inventory, needs = candidate.inventory, request.needs
    models = inventory.machine.cpu_models if inventory.machine else frozenset()
    if needs.cpu_model and models and needs.cpu_model not in models:
        near = get_close_matches(needs.cpu_model, sorted(models), _NEAR_COUNT)
        hint = f"; near are {', '.join(near)}" if near else ""
        return Rejection(CPU_MODEL, f"cannot run CPU model {needs.cpu_model}{hint}", f"need model {needs.cpu_model}")
    if inventory.cpu_features and (missing := needs.cpu_features - inventory.cpu_features):
        wanted = f"need {listed(needs.cpu_features)}"
        return Rejection(CPU_MODEL, f"lacks processor features {listed(missing)}", wanted, f"no {listed(missing)}")
    if needs.needs_nested_virtualization and inventory.machine and not inventory.machine.has_nested_virtualization:
        return Rejection(CPU_MODEL, "lets guests run no VMs of their own", "need nested virtualization")
    return None if needs.source_cpu is None else _unlike(candidate, needs.source_cpu)


def _unlike(candidate: Candidate, source: SourceCpu) -> Rejection | None:
    inventory = candidate.inventory
    if source.model != inventory.cpu_model:
        there = inventory.cpu_model or "an unknown one"
        message = f"has another processor, {there}, than the running guest sees, {source.model}"
        return Rejection(CPU_MODEL, message, f"need {source.model}", there)
    if missing := source.features - inventory.cpu_features:
        message = f"lacks processor features that the running guest sees: {listed(missing)}"
        return Rejection(CPU_MODEL, message, "", f"no {listed(missing)}")
    return None


MACHINE = Words("machine", "cannot build its machine", "cannot build its machine", "no {}")


def machine(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes that cannot give the VM its firmware, TPM or display, if they tell what they can."""
    abilities, needs = candidate.inventory.machine, request.needs
    if abilities is None:
        return None
    missing = []
    if needs.needs_uefi and not abilities.has_uefi:
        missing.append("UEFI firmware")
    elif needs.needs_secure_boot and not abilities.has_secure_boot:
        missing.append("secure boot")
    if needs.tpm_version and needs.tpm_version not in abilities.tpm_versions:
        missing.append(f"TPM {needs.tpm_version}")
    if needs.display and abilities.displays and needs.display not in abilities.displays:
        missing.append(f"{needs.display} display")
    if not missing:
        return None
    return Rejection(MACHINE, f"has no {listed(missing)}", found=listed(missing))


MAX_VCPUS = Words("max vCPUs", "runs no VM that large", "run no VM that large", "at most {}")


def max_vcpus(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes whose machines cannot have as many vCPUs as the VM has or may grow to."""
    abilities = candidate.inventory.machine
    if abilities is None or not abilities.max_vcpus:
        return None
    limit, wanted = abilities.max_vcpus, max(request.vcpus, request.needs.most_vcpus)
    if wanted <= limit:
        return None
    return Rejection(MAX_VCPUS, f"runs VMs of at most {limit} vCPUs, needs {wanted}", f"need {wanted} vCPUs", limit)


NUMA = Words("numa", "has no NUMA nodes that fit", "have no NUMA nodes that fit", "most free {} MiB")


def numa(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes whose NUMA nodes cannot each hold what the guest's NUMA nodes need, if they tell of any."""
    inventory, needs = candidate.inventory, request.needs
    if not inventory.numa_bytes or numa_fits(needs, inventory, candidate.taken):
        return None
    taken = candidate.taken.numa_bytes
    free = {node: max(total - taken.get(node, 0), 0) for node, total in inventory.numa_bytes.items()}
    need = max(needs.numa, key=lambda need: need.memory_bytes)
    need_mib = -(-need.memory_bytes // BYTES_PER_MIB)
    shown = ", ".join(f"{node}: {free_bytes // BYTES_PER_MIB} MiB" for node, free_bytes in sorted(free.items())[:4])
    guests = _GUEST_NUMA if len(needs.numa) == 1 else f"{len(needs.numa)} {_GUEST_NUMA}s"
    wanted = f"need {guests} of up to {need_mib} MiB"
    return Rejection(NUMA, f"cannot seat {guests} of up to {need_mib} MiB; free are {shown}", wanted, _most_mib(free))


def _most_mib(free: dict[int, int]) -> int:
    return max(free.values()) // BYTES_PER_MIB


HUGE_PAGES = Words("huge pages", "lacks huge pages", "lack huge pages", "free {}")


def huge_pages(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes with too few free huge pages of the size that the VM's memory lies in, if they tell of any."""
    needs = request.needs
    total = candidate.inventory.page_counts.get(needs.page_bytes)
    if total is None:
        return None
    free = max(total - candidate.taken.page_counts.get(needs.page_bytes, 0), 0)
    if needs.page_count <= free:
        return None
    size = f"{needs.page_bytes // BYTES_PER_MIB} MiB"
    message = f"needs {needs.page_count} huge pages of {size}, {free} of {total} free"
    return Rejection(HUGE_PAGES, message, f"need {needs.page_count} of {size}", free)


DEVICES = Words("devices", "lacks devices", "lack devices", "{}")


def devices(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes without a free device for each that the VM is to have."""
    inventory, needs = candidate.inventory, request.needs
    chosen = devices_for(needs, inventory, candidate.taken, request.vm_id)
    missing = [need for need, device in zip(needs.devices_in_turn, chosen, strict=True) if device is None]
    if not missing:
        return None
    texts = []
    for need in missing:
        meant = [device for device in inventory.devices if need.means(device)]
        why = next((device.obstacle for device in meant if device.obstacle), "in use")
        texts.append(f"{need.name} ({why if meant else 'not there'})")
    return Rejection(DEVICES, f"cannot give {listed(texts)}", found=listed(texts))
