"""A host that is shut down or rebooted on purpose, as the daemon does it: `nodedaemon.planned_shutdown`, simplified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest
from limiquantix.errors import ApiError
from tests.simulation.cluster.kernel import Ask

if TYPE_CHECKING:
    from tests.simulation.cluster.host import Host

ANNOUNCE_LIMIT_S = 5.0
SETTLES_COUNT = 10
"""How often it looks whether starts that are under way are over."""
UNTRUE_S = 20.0
CALL_OFF_PAUSE_S = 1.0


async def go_down(host: Host, kind: AnnounceShutdownRequest.Kind.ValueType, take_s: float) -> None:
    """Say so, end all VMs, say that they ended, and go; in the host's daemon.

    Args:
        take_s: how long the machine goes on after the daemon ended.
    """
    draw, rules, boot_count = host.kernel.random, host.rules, host.boot_count
    is_heard = await _announce(host, kind, has_ended=not rules.ends_before_saying)
    if is_heard and not rules.ends_before_saying:
        host.is_mute = True  # else that it tells how many run, which is asked too, would save them
        await host.daemon.sleep(UNTRUE_S)
    await host.daemon.sleep(draw.uniform(0.2, 3.0))
    host.is_closed = True
    host.end(host.in_memory())
    for _ in range(SETTLES_COUNT):
        if not host.starting or not rules.shuts_door:
            host.end(host.in_memory())
            if rules.stays_shut:
                await host.fencing.shut()
            await _announce(host, kind, has_ended=True)
            break
        await host.daemon.sleep(1.0)
    else:
        host.end(host.in_memory())
    host.kernel.after(take_s, lambda: host.lose_power() if host.boot_count == boot_count else None)
    host.daemon.die()


async def call_off(host: Host) -> None:
    """Take back, in the next daemon of a boot, that all VMs ended; nothing is started before."""
    while not await _announce(host, AnnounceShutdownRequest.CANCELLED, has_ended=False):
        await host.daemon.sleep(CALL_OFF_PAUSE_S)
    await host.fencing.reopen()
    host.kernel.note(f"{host.id} takes back that it goes")


async def _announce(host: Host, kind: AnnounceShutdownRequest.Kind.ValueType, *, has_ended: bool) -> bool:
    """Tell any control plane; returns whether one took it."""
    boot_id = f"{host.id}-{host.boot_count}"
    said_at_ms = host.clock.now_ns() // 1_000_000 if host.rules.orders_words else 0
    request = AnnounceShutdownRequest(
        node_id=host.id, kind=kind, boot_id=boot_id, all_vms_ended=has_ended, said_at_ms=said_at_ms
    )
    host.last_word = request
    for plane in host.kernel.random.sample(list(host.planes), len(host.planes)):
        serve = lambda answer, plane=plane: host.hear_out(plane, request, answer)  # noqa: E731
        try:
            asked: Ask = host.network.call(host.daemon, host.id, plane, serve, ANNOUNCE_LIMIT_S)
            await asked
        except ApiError:
            continue
        return True
    return False
