"""What goes wrong, drawn from the seed: machines, processes, links, the database and etcd, each for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest
from tests.simulation.product.cluster import Cluster
from tests.simulation.product.host import Host
from tests.simulation.product.loop import Process
from tests.simulation.product.network import Trap

MAX_STEPS = 400
"""A process that is to die does so within as many of its steps."""
_COMMANDS = frozenset({"CreateVM", "AdoptVM", "StartVM"})
"""What brings a VM up."""


def strike(cluster: Cluster, *, only_hosts: bool) -> None:
    """Have one thing go wrong, now; only with hosts, so that there is a chance that VMs move before the next fault."""
    draw = cluster.loop.random
    weights = {fault: weight for fault, weight in _FAULTS.items() if not only_hosts or fault in _OF_HOSTS}
    fault = draw.choices(list(weights), list(weights.values()))[0]
    cluster.loop.note(f"fault: {fault.__name__[1:]}")
    fault(cluster)


def _for_a_while(cluster: Cluster, holder: Any, name: str, value: Any, after: Any, longest_s: float = 30.0) -> None:
    setattr(holder, name, value)
    cluster.loop.outside(cluster.loop.random.uniform(2.0, longest_s), lambda: setattr(holder, name, after))


def _any_host(cluster: Cluster) -> Host:
    """Pick one that has guests, if there is any: the others matter little."""
    return cluster.loop.random.choice([host for host in cluster.hosts if host.in_memory()] or cluster.hosts)


def _host_dies(cluster: Cluster) -> None:
    host = _any_host(cluster)
    host.power_off()
    cluster.loop.outside(cluster.loop.random.uniform(10.0, 60.0), host.power_on)


def _process_dies_at_a_step(cluster: Cluster) -> None:
    process = _any_process(cluster)
    process.dies_in_steps = cluster.loop.random.randrange(MAX_STEPS)


def _process_stands_still(cluster: Cluster) -> None:
    _any_process(cluster).pause(cluster.loop.random.choice((0.5, 3.0, 12.0, 30.0)) * cluster.loop.random.random())


def _any_process(cluster: Cluster) -> Process:
    daemon = _any_host(cluster).daemon
    if daemon is not None and daemon.is_alive and cluster.loop.random.random() < 0.5:
        return daemon
    return cluster.loop.random.choice(cluster.processes() or [cluster.desk])


def _host_stands_still(cluster: Cluster) -> None:
    _any_host(cluster).freeze(0.8 * cluster.loop.random.random())


def _host_is_cut_off(cluster: Cluster) -> None:
    _cut_host_off(cluster, _any_host(cluster).name, cluster.loop.random.uniform(4.0, 60.0))


def _cut_host_off(cluster: Cluster, host: str, span_s: float) -> None:
    planes = [plane.name for plane in cluster.planes]
    _cut(cluster, {(host, plane) for plane in planes} | {(plane, host) for plane in planes}, span_s)


def _host_is_cut_off_one_way(cluster: Cluster) -> None:
    host = _any_host(cluster).name
    links = {(host, plane.name) for plane in cluster.planes}
    _cut(cluster, links if cluster.loop.random.random() < 0.5 else {(there, here) for here, there in links})


def _link_is_cut(cluster: Cluster) -> None:
    """A host is cut off from whoever decides, if anybody does, while others may hear it; or does not reach it."""
    plane = cluster.leader() or cluster.loop.random.choice(cluster.planes)
    link = (_any_host(cluster).name, plane.name)
    _cut(cluster, {link, link[::-1]} if cluster.loop.random.random() < 0.5 else {link})


def _cut(cluster: Cluster, links: set[tuple[str, str]], span_s: float | None = None) -> None:
    cluster.network.cut |= links
    span_s = cluster.loop.random.uniform(4.0, 60.0) if span_s is None else span_s
    cluster.loop.outside(span_s, lambda: cluster.network.cut.difference_update(links))


def _guest_ends(cluster: Cluster) -> None:
    host = _any_host(cluster)
    if guests := sorted(host.in_memory()):
        host.lose_guest(cluster.loop.random.choice(guests))


def _command_hangs(cluster: Cluster) -> None:
    """A command hangs in the network while its host is cut off, and arrives when the VM may run elsewhere."""
    draw, host = cluster.loop.random, _any_host(cluster)
    hold_s = draw.uniform(15.0, 40.0)
    cut_s = hold_s + draw.uniform(-5.0, 20.0)  # so it mostly arrives while the host knows nothing of what happened
    trap = Trap(host.name, _COMMANDS, hold_s, lambda: _cut_host_off(cluster, host.name, cut_s))
    cluster.network.traps.append(trap)
    if guests := sorted(host.in_memory()):
        host.lose_guest(draw.choice(guests))  # it is restarted there, which is such a command


def _host_goes_down(cluster: Cluster) -> None:
    draw = cluster.loop.random
    kind = draw.choice((AnnounceShutdownRequest.REBOOT, AnnounceShutdownRequest.POWER_OFF))
    is_reboot = kind == AnnounceShutdownRequest.REBOOT
    _any_host(cluster).shut_down(kind, draw.uniform(2.0, 8.0) if is_reboot else draw.uniform(15.0, 60.0))


def _controller_is_silent(cluster: Cluster) -> None:
    if cluster.controllers is not None:
        silent, name = cluster.controllers.silent, _any_host(cluster).name
        silent.add(name)
        cluster.loop.outside(cluster.loop.random.uniform(10.0, 60.0), lambda: silent.discard(name))


def _plane_loses_etcd(cluster: Cluster) -> None:
    _lose(cluster, cluster.site.cut)


def _plane_loses_the_database(cluster: Cluster) -> None:
    _lose(cluster, cluster.database.cut)


def _lose(cluster: Cluster, cut: set[str]) -> None:
    name = cluster.loop.random.choice(cluster.planes).name
    cut.add(name)
    cluster.loop.outside(cluster.loop.random.uniform(2.0, 30.0), lambda: cut.discard(name))


def _etcd_is_away(cluster: Cluster) -> None:
    _for_a_while(cluster, cluster.site, "is_away", True, False)


def _database_is_away(cluster: Cluster) -> None:
    _for_a_while(cluster, cluster.database, "is_away", True, False, longest_s=15.0)


def _database_fails(cluster: Cluster) -> None:
    _for_a_while(cluster, cluster.database, "failing", cluster.loop.random.choice((0.02, 0.3)), 0.0)


def _database_is_slow(cluster: Cluster) -> None:
    _for_a_while(cluster, cluster.database, "slow_s", cluster.loop.random.choice((0.2, 3.0)), 0.0)


def _network_loses(cluster: Cluster) -> None:
    _for_a_while(cluster, cluster.network, "loss", cluster.loop.random.choice((0.05, 0.4)), 0.0)


def _network_is_slow(cluster: Cluster) -> None:
    _for_a_while(cluster, cluster.network, "slow_s", cluster.loop.random.choice((0.3, 3.0)), 0.0)


def _messages_straggle(cluster: Cluster) -> None:
    _for_a_while(cluster, cluster.network, "straggle", cluster.loop.random.choice((0.02, 0.2)), 0.0)


_FAULTS: dict[Callable[[Cluster], None], int] = {
    _host_dies: 4,
    _process_dies_at_a_step: 6,
    _process_stands_still: 5,
    _host_stands_still: 1,
    _host_is_cut_off: 4,
    _host_is_cut_off_one_way: 3,
    _link_is_cut: 2,
    _host_goes_down: 3,
    _controller_is_silent: 1,
    _guest_ends: 2,
    _command_hangs: 3,
    _plane_loses_etcd: 2,
    _plane_loses_the_database: 2,
    _etcd_is_away: 1,
    _database_is_away: 1,
    _database_fails: 2,
    _database_is_slow: 1,
    _network_loses: 1,
    _network_is_slow: 1,
    _messages_straggle: 2,
}

_OF_HOSTS = frozenset(
    {
        _host_dies,
        _host_is_cut_off,
        _host_is_cut_off_one_way,
        _host_goes_down,
        _process_stands_still,
        _guest_ends,
        _command_hangs,
    }
)
