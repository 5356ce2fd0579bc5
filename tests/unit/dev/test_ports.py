"""Ports of the cluster on one machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from controlplane.cli.dev.processes import PortInUse, free_port, require_free_port


def test_any_free_port_is_none_that_the_kernel_gives_to_others_meanwhile() -> None:
    given_out_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if given_out_from <= 20_000:
        pytest.skip("this kernel gives out nearly all ports")
    assert all(20_000 <= require_free_port(0, "") < given_out_from for _ in range(20))


def test_taken_port_is_refused_by_the_flag_or_another_one_picked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match="--http-port"):
            require_free_port(port, "--http-port")
        assert free_port(port) != port
    assert require_free_port(port, "--http-port") == port
