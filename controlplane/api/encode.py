"""Answers of hosts to the contract's messages for callers."""

from __future__ import annotations

from limiquantix.compute.v1 import vm_pb2
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_CONSOLE_TYPES = {
    "vnc": vm_pb2.ConsoleInfo.CONSOLE_TYPE_VNC,
    "spice": vm_pb2.ConsoleInfo.CONSOLE_TYPE_SPICE,
    "serial": vm_pb2.ConsoleInfo.CONSOLE_TYPE_SERIAL,
}


def console(info: node_v1.ConsoleInfoResponse) -> vm_pb2.ConsoleInfo:
    """Encode a one-time entry to a console; the address is one of the VM's host, not of the control plane."""
    message = vm_pb2.ConsoleInfo(
        console_type=_CONSOLE_TYPES.get(info.type, vm_pb2.ConsoleInfo.CONSOLE_TYPE_UNSPECIFIED),
        host=info.host,
        port=info.port,
        password=info.password,
    )
    if info.HasField("expires_at"):
        message.expires_at.CopyFrom(info.expires_at)
    return message
