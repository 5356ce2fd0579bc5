"""The daemons as real processes on free ports, for tests that are not async themselves.

Each context manager ends only the process it started, and shows its log if that did not come up.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.support import node_daemon_process
from tests.support.entry import Entry, authority_of, prepare, security_settings
from tests.support.ports import own_port

FoundT = TypeVar("FoundT")

START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A process that was started, and where it logs."""

    process: subprocess.Popen[bytes]
    log_path: Path

    def kill(self) -> None:
        """Kill it as `kill -9` does."""
        self.process.kill()
        self.process.wait(STOP_DEADLINE_S)

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass(frozen=True, slots=True)
class ControlPlaneProcess(RunningDaemon):
    """A running control plane."""

    entry: Entry

    @property
    def http_url(self) -> str:
        """Such as "https://127.0.0.1:40001"."""
        return self.entry.http_url

    @property
    def grpc_address(self) -> str:
        """Such as "127.0.0.1:40002"; for people and programs."""
        return self.entry.grpc_address

    @property
    def hosts_address(self) -> str:
        """Such as "127.0.0.1:40003"; for hosts."""
        return self.entry.hosts_address

    def environment(self, server: str = "") -> dict[str, str]:
        """Make the environment of a command line, see `Entry.environment`."""
        return self.entry.environment(self.log_path.parent, server)

    def call(self, service: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Call a method of `limiquantix.compute.v1` as JSON; any refusal fails the test."""
        return self.entry.call(service, method, request)


@dataclass(frozen=True, slots=True)
class MockNodeProcess(RunningDaemon):
    """A running node daemon that simulates its hypervisor; the control plane has it as READY."""

    node_id: str
    hostname: str


@contextmanager
def start_control_plane(
    directory: Path,
    database_url: str = "",
    settings: Mapping[str, Any] | None = None,
    *,
    grpc_listen: str = "127.0.0.1:0",
    hosts_listen: str = "",
) -> Iterator[ControlPlaneProcess]:
    """Run a control plane.

    Args:
        directory: for all its files; outlives it.
        database_url: where state is, of all control planes whose directories lie in the same one; "" makes a database
            below `directory`.
        settings: what else its configuration file says.
        grpc_listen: where people and programs call it.
        hosts_listen: where hosts call it; one that takes the place of another must be where that was. "" for a port
            that stays free for whoever takes its place.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ready_path = directory / "ready.json"
    ready_path.unlink(missing_ok=True)
    listen_flags = ("--http-listen", "127.0.0.1:0", "--grpc-listen", grpc_listen, "--ready-file", str(ready_path))
    url = database_url or f"sqlite:///{directory / 'state' / 'limiquantix.db'}"
    config_path = directory / "controlplane.yaml"
    hosts_listen = hosts_listen or f"127.0.0.1:{own_port()}"
    key_file = (directory.parent if database_url else directory) / "secret.key"
    config_path.write_text(
        yaml.safe_dump(security_settings(directory, key_file, hosts_listen=hosts_listen) | dict(settings or {}))
    )
    token = prepare(url)
    flags = ("--config", str(config_path), "--database-url", url, *listen_flags)
    daemon = _start(directory / "control-plane.log", ["controlplane", *flags])
    try:
        ready = _until(daemon, lambda: json.loads(ready_path.read_text()) if ready_path.exists() else None)
        entry = Entry(f"https://{ready['http']}", ready["grpc"], ready["hosts"], authority_of(url), token)
        yield ControlPlaneProcess(daemon.process, daemon.log_path, entry)
    finally:
        daemon.stop()


@contextmanager
def start_mock_node(
    directory: Path, *planes: ControlPlaneProcess, hostname: str = "mock-1", **mock: float
) -> Iterator[MockNodeProcess]:
    """Run a node daemon with a mock hypervisor and wait until the control plane has it as READY.

    Args:
        directory: for all its data; outlives it.
        planes: processes of the control plane, of which it calls whichever answers.
        mock: settings of the simulated host, such as vcpu_count, memory_mib or boot_secs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "node": {"hostname": hostname, "data_dir": str(directory / "data")},
        "server": {"listen_address": "127.0.0.1:0", "metrics_port": 0},
        "hypervisor": {
            "backend": "mock",
            "storage_path": str(directory / "images"),
            "mock": {"boot_secs": 0, "shutdown_secs": 0, **mock},
        },
        "control_plane": {
            "address": ",".join(plane.hosts_address for plane in planes),
            "heartbeat_interval_secs": 1,
        },
    }
    config_path = directory / "node.yaml"
    config_path.write_text(yaml.safe_dump(config))
    planes[0].entry.admit_now(directory / "data", hostname)
    daemon = _start(directory / "node.log", ["nodedaemon", "--config", str(config_path)])

    def ready_node_id() -> str | None:
        nodes = planes[0].call("NodeService", "ListNodes", {"phases": ["READY"], "pageSize": 1000}).get("nodes", ())
        return next((str(node["id"]) for node in nodes if node["hostname"] == hostname), None)

    try:
        node_id = _until(daemon, ready_node_id)
        yield MockNodeProcess(daemon.process, daemon.log_path, node_id, hostname)
    finally:
        daemon.stop()


def _start(log_path: Path, module_and_flags: list[str]) -> RunningDaemon:
    module, *flags = module_and_flags
    command = [node_daemon_process.command()[0], "-m", module, *flags]
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=node_daemon_process.environment())
    return RunningDaemon(process, log_path)


def _until(daemon: RunningDaemon, find: Callable[[], FoundT | None]) -> FoundT:
    """Wait until something is found, while the process lives."""
    deadline = time.monotonic() + START_DEADLINE_S
    while (found := find()) is None:
        assert daemon.process.poll() is None, f"it ended:\n{daemon.log_path.read_text()}"
        assert time.monotonic() < deadline, f"it did not come up in time:\n{daemon.log_path.read_text()}"
        time.sleep(_POLL_S)
    return found
