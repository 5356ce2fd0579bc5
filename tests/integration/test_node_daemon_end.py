"""A node daemon that is told to end does, whatever hangs in it: the next one is to renew the lease in time."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from nodedaemon.composition.ending import SILENT_END_LIMIT_S
from tests.support.fake_control_plane import fake_control_plane
from tests.support.node_daemon_process import DEADLINE_S, node_daemon

HANGS = """
import time
from hypervisor.mock.backend import MockHypervisor

async def never_returns(self):
    time.sleep(600)

MockHypervisor.close = never_returns
"""
SLACK_S = 15.0
"""For a machine on which everything takes long."""


async def test_what_hangs_at_the_end_is_printed_and_does_not_keep_the_next_daemon_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"))
    async with fake_control_plane() as control_plane, node_daemon(tmp_path, control_plane.address) as daemon:
        await control_plane.until(lambda: bool(control_plane.heartbeats))
        told_s = time.monotonic()

        daemon.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            status = await daemon.process.wait()

        assert status == 1
        assert time.monotonic() - told_s < SILENT_END_LIMIT_S + SLACK_S
        assert "in never_returns" in daemon.log_path.read_text()
