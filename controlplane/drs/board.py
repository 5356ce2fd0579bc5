"""The cluster as columns of numbers, and what moving a VM does to them.

Every node has four loads, in percent: CPU and memory as measured, CPU and memory as claimed. The *cluster's load* is
what is in use of all nodes together, which no move changes. The imbalance is the distance of a node's loads from the
cluster's, as a root mean square over nodes and (weighted) loads. For equal nodes that is the standard deviation. A sum
of squares has two properties that the rest is built upon: what a move gains depends on its two nodes only, and a
measurement that is off by h changes the gain of a move by no more than 4 h times the load moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlplane.drs.snapshot import BalanceConfig, ClusterLoad, LoadOfNode, NodeLoad, VmLoad, Weights

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Flags = NDArray[np.bool_]

USED_CPU: Final = 0
USED_MEMORY: Final = 1
CLAIMED: Final = slice(2, 4)
USED: Final = slice(0, 2)
PERCENT: Final = 100.0


def weights_of(weights: Weights, *, is_measured: bool) -> Floats:
    """Scale weights to a sum of 1; without measures only claims count."""
    used = (weights.used_cpu, weights.used_memory) if is_measured else (0.0, 0.0)
    values = np.array([*used, weights.claimed_cpu, weights.claimed_memory], dtype=np.float64)
    total = float(values.sum())
    if total <= 0:
        return np.array([0.0, 0.0, 0.5, 0.5])
    return values / total


@dataclass(slots=True)
class Board:
    """State of a search; nodes and VMs are named by their place in `nodes` and `vms`.

    `used[i]` is what node i has in use of each kind, `size[v]` what VM v adds to it, in threads, bytes, vCPUs and
    bytes; `capacity[i]` what there is. `largest[i]` is the most that a VM of node i claims of each kind. Of nodes that
    take no part only claims of VMs are known: `stranded` has those that need room here whatever happens, `outside`
    those of each node that may fail like the ones here.
    """

    nodes: tuple[NodeLoad, ...]
    vms: tuple[VmLoad, ...]
    is_measured: bool
    weights: Floats
    capacity: Floats
    used: Floats
    size: Floats
    mean: Floats
    place: Ints
    is_movable: Flags
    is_open: Flags
    vm_count: Ints
    largest: Floats
    stranded: Floats
    outside: tuple[Floats, ...]

    @property
    def loads(self) -> Floats:
        """Loads of all nodes in percent."""
        return PERCENT * self.used / self.capacity

    @property
    def free(self) -> Floats:
        """What may still be claimed: vCPUs and bytes."""
        return self.capacity[:, CLAIMED] - self.used[:, CLAIMED]

    def squares(self) -> float:
        """Sum of squared distances of all nodes from the cluster's load, weighted."""
        return float((((self.loads - self.mean) ** 2) @ self.weights).sum())

    def imbalance(self) -> float:
        """Root mean square distance of the nodes from the cluster's load, in points."""
        return float(np.sqrt(self.squares() / max(len(self.nodes), 1)))

    def has_room(self, vm: int, target: int) -> bool:
        """Whether the VM's claim fits."""
        return bool((self.size[vm, CLAIMED] <= self.free[target]).all())

    def move(self, vm: int, target: int) -> None:
        """Put a VM elsewhere."""
        source, size = self.place[vm], self.size[vm]
        self.used[source] -= size
        self.used[target] += size
        self.place[vm] = target
        self.vm_count[source] -= 1
        self.vm_count[target] += 1
        if (size[CLAIMED] >= self.largest[source]).any():
            self.largest[source] = self.size[self.place == source, CLAIMED].max(axis=0, initial=0.0)
        np.maximum(self.largest[target], size[CLAIMED], out=self.largest[target])

    def load_of(self, node: int) -> LoadOfNode:
        """Loads of one node as a record."""
        cpu, memory, vcpus, claimed = (float(value) for value in PERCENT * self.used[node] / self.capacity[node])
        record = self.nodes[node]
        count = int(self.vm_count[node])
        return LoadOfNode(record.id, record.hostname, cpu, memory, vcpus, claimed, count, self.is_measured)


def board_of(cluster: ClusterLoad, config: BalanceConfig, now_s: float) -> Board:
    """Set up the board of the nodes that take part, in the order of their ids."""
    nodes = tuple(sorted((node for node in cluster.nodes if not node.excluded), key=lambda node: node.id))
    index = {node.id: place for place, node in enumerate(nodes)}
    vms = tuple(sorted((vm for vm in cluster.vms if vm.node_id in index), key=lambda vm: vm.id))
    capacity = np.array(
        [(node.thread_count, node.memory_bytes, node.capacity.vcpus, node.capacity.memory_bytes) for node in nodes],
        dtype=np.float64,
    ).reshape(-1, 4)
    # A node without any capacity takes nothing and is full of whatever it has.
    capacity = np.maximum(capacity, 1.0)
    used = np.array(
        [(node.used_threads, node.used_memory_bytes, node.claimed.vcpus, node.claimed.memory_bytes) for node in nodes],
        dtype=np.float64,
    ).reshape(-1, 4)
    size = np.array(
        [(vm.used_threads, vm.used_memory_bytes, vm.claim.vcpus, vm.claim.memory_bytes) for vm in vms],
        dtype=np.float64,
    ).reshape(-1, 4)
    rests = [_rests(node.moved_at_s, config.node_cool_down_s, now_s) for node in nodes]
    holds = [bool(vm.held) or _rests(vm.moved_at_s, config.hold_s, now_s) for vm in vms]
    place = np.array([index[vm.node_id] for vm in vms], dtype=np.intp)
    largest = np.zeros((len(nodes), 2))
    np.maximum.at(largest, place, size[:, CLAIMED])
    stranded, outside = _claims_elsewhere(cluster)
    return Board(
        nodes=nodes,
        vms=vms,
        is_measured=cluster.is_measured,
        weights=weights_of(config.weights, is_measured=cluster.is_measured),
        capacity=capacity,
        used=used,
        size=size,
        mean=PERCENT * used.sum(axis=0) / np.maximum(capacity.sum(axis=0), 1.0),
        place=place,
        is_movable=~np.array(holds, dtype=np.bool_),
        is_open=~np.array(rests, dtype=np.bool_),
        vm_count=np.bincount(place, minlength=len(nodes)),
        largest=largest,
        stranded=stranded,
        outside=outside,
    )


def _claims_elsewhere(cluster: ClusterLoad) -> tuple[Floats, tuple[Floats, ...]]:
    """Collect what VMs claim on nodes that take no part: of all nodes that are down, and of each of the others."""
    excluded = {node.id: node for node in cluster.nodes if node.excluded}
    claims: dict[str, list[tuple[int, int]]] = {}
    for vm in cluster.vms:
        if vm.node_id in excluded:
            key = "" if excluded[vm.node_id].is_down else vm.node_id
            claims.setdefault(key, []).append((vm.claim.vcpus, vm.claim.memory_bytes))
    rows = {key: np.array(sorted(found), dtype=np.float64) for key, found in claims.items()}
    stranded = rows.pop("", np.zeros((0, 2)))
    return stranded, tuple(rows[key] for key in sorted(rows))


def _rests(moved_at_s: float | None, pause_s: float, now_s: float) -> bool:
    return moved_at_s is not None and now_s - moved_at_s < pause_s
