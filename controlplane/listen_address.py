"""How addresses to listen on are written."""

from __future__ import annotations

MAX_PORT = 65_535


def check_address(value: str) -> str:
    """Return "host:port", on the loopback address if no host is named; ValueError for what is no such thing."""
    host, separator, port = value.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        raise ValueError(f'{value!r} is not "host:port" (port 0 takes a free one)')
    return f"{host or '127.0.0.1'}:{port}"
