"""What others reach this daemon by: its gRPC service and its metrics."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

import structlog

from limiquantix.node.v1.node_daemon_pb2_grpc import add_NodeDaemonServiceServicer_to_server
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import RpcServer
from nodedaemon.composition.machine import Machine
from nodedaemon.config import NodeConfig, join_address, split_address
from nodedaemon.fence_gate import FenceGate
from nodedaemon.servicer import SERVICE, NodeDaemonServicer
from telemetry.metrics import RpcMetrics, build_registry, start_metrics_server

STOP_GRACE_S: Final = 10.0
"""For calls under way when the daemon is told to end."""

_log = structlog.get_logger(__name__)


class StartError(Exception):
    """The daemon cannot start; the message says why and what to do."""


async def listen(
    config: NodeConfig, stack: AsyncExitStack, servicer: NodeDaemonServicer, gate: FenceGate, machine: Machine
) -> int:
    """Serve until the end; returns the port of the service.

    Raises:
        StartError, AddressInUse: an address cannot be had.
    """
    registry = build_registry()
    host, _ = split_address(config.server.listen_address)
    metrics_host = config.server.metrics_host.strip("[]")
    metrics_port = _serve_metrics(join_address(metrics_host, config.server.metrics_port), registry, stack)
    server = RpcServer(
        CallPipeline({}, RpcMetrics(registry), machine.guard),
        [SERVICE],
        lambda s: add_NodeDaemonServiceServicer_to_server(servicer, s),
        machine.listening,
        gate.admit,
    )
    port = await server.start(config.server.listen_address)
    stack.push_async_callback(server.stop, STOP_GRACE_S)
    _log.info(
        "listening",
        grpc_address=join_address(host, port),
        metrics_address=join_address(metrics_host, metrics_port),
        backend=config.hypervisor.backend,
        storage_path=str(config.hypervisor.storage_path),
    )
    return port


def warn_of_plaintext(config: NodeConfig) -> None:
    """Say what others can read."""
    if not config.migration.tls:
        _log.warning(
            "plaintext_migration", advice="what guests have in memory can be read on the way; set migration.tls"
        )


def _serve_metrics(address: str, registry: Any, stack: AsyncExitStack) -> int:
    try:
        metrics = start_metrics_server(address, registry)
    except OSError as error:
        raise StartError(f"cannot serve metrics on {address}: {error.strerror}") from error
    stack.push_async_callback(asyncio.to_thread, metrics.stop)
    return metrics.port
