"""Filters that look at what is claimed: vCPUs and memory."""

from __future__ import annotations

from controlplane.domain.vm import BYTES_PER_MIB
from controlplane.scheduler.rejection import Rejection, Words
from controlplane.scheduler.snapshot import Candidate, PlacementRequest

CPU = Words("cpu", "lacks CPU", "lack CPU", "free {}")


def cpu(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes with fewer unclaimed vCPUs than the VM has."""
    free = candidate.capacity.vcpus - candidate.allocated.vcpus
    if request.vcpus <= free:
        return None
    free = max(free, 0)
    need = "1 vCPU" if request.vcpus == 1 else f"{request.vcpus} vCPUs"
    return Rejection(CPU, f"needs {need}, {free} of {candidate.capacity.vcpus} free", f"need {need}", free)


MEMORY = Words("memory", "lacks memory", "lack memory", "free {} MiB")


def memory(candidate: Candidate, request: PlacementRequest) -> Rejection | None:
    """Refuse nodes with less unclaimed memory than the VM has."""
    free_bytes = candidate.capacity.memory_bytes - candidate.allocated.memory_bytes
    if request.memory_bytes <= free_bytes:
        return None
    # The need is rounded up and the rest down, so that a message never claims to lack what it says is free.
    need_mib = -(-request.memory_bytes // BYTES_PER_MIB)
    free_mib = max(free_bytes, 0) // BYTES_PER_MIB
    capacity_mib = candidate.capacity.memory_bytes // BYTES_PER_MIB
    message = f"needs {need_mib} MiB, {free_mib} of {capacity_mib} MiB free"
    return Rejection(MEMORY, message, f"need {need_mib} MiB", free_mib)
