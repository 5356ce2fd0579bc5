"""Private etcd servers for tests: on loopback, on free ports, in a directory of their own, ended by their pid.

Nothing is synced to disk, since no test pulls the machine's plug: a killed member keeps what it wrote to files.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest

from etcdserverpb import rpc_pb2 as pb
from etcdserverpb import rpc_pb2_grpc as rpc
from tests.support.ports import own_ports

NEED_ETCD = ("LIMIQUANTIX_TESTS_NEED_ETCD", "LIMIQUANTIX_TESTS_NEED_LIBVIRT")
"""Any set, a test that cannot have etcd fails instead of being skipped: where everything must be there, as in CI."""

START_DEADLINE_S = 60.0
_POLL_S = 0.02


def require_etcd() -> str:
    """Find the program, or leave the test out."""
    found = shutil.which("etcd")
    if found is not None:
        return found
    reason = "etcd (package etcd-server) is not installed"
    if any(os.environ.get(name) for name in NEED_ETCD):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(slots=True)
class EtcdMember:
    """One process of etcd, which can be killed, stopped and started again."""

    name: str
    directory: Path
    client_url: str
    peer_url: str
    flags: tuple[str, ...] = ()
    namespace: str = ""
    """Name of the network it runs in; "" for ours."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log_path(self) -> Path:
        """What it says."""
        return self.directory / f"{self.name}.log"

    def start(self, initial_cluster: str) -> None:
        """Start it, or start it again with what it has stored; does not wait until it serves.

        From the main thread only: it is told to end when the thread that started it does.
        """
        command = [
            require_etcd(), "--name", self.name, "--data-dir", str(self.directory / self.name),
            "--listen-client-urls", self.client_url, "--advertise-client-urls", self.client_url,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", initial_cluster, "--initial-cluster-state", "new", "--unsafe-no-fsync",
            "--logger", "zap", "--log-outputs", "stderr", *self.flags,
        ]  # fmt: skip
        if self.namespace:
            command = ["ip", "netns", "exec", self.namespace, *command]
        # However this process dies, the kernel ends the member too.
        command = ["setpriv", "--pdeathsig", "KILL", *command]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it at once, stopped or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Have it do nothing, while its connections stay."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "start it first"
        self._process.send_signal(number)

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None


class EtcdCluster:
    """Members that know of one another. Blocking: call it from a thread where an event loop runs."""

    def __init__(
        self, directory: Path, member_count: int = 1, client_flags: tuple[str, ...] = (), namespace: str = ""
    ) -> None:
        scheme = "https" if client_flags else "http"
        ports = own_ports(2 * member_count)
        self.members = [
            EtcdMember(
                f"n{number}",
                directory,
                f"{scheme}://127.0.0.1:{ports[2 * number]}",
                f"http://127.0.0.1:{ports[2 * number + 1]}",
                client_flags,
                namespace,
            )
            for number in range(member_count)
        ]
        self._initial = ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    @property
    def endpoints(self) -> list[str]:
        """Where clients call, in the order of the members."""
        return [member.client_url for member in self.members]

    def start(self, *members: EtcdMember) -> None:
        """Start members, all if none is named; does not wait until they serve."""
        for member in members or self.members:
            member.start(self._initial)

    def stop(self) -> None:
        """Kill all."""
        for member in self.members:
            member.kill()

    def wait_until_healthy(self) -> None:
        """Wait until every running member answers a reading that takes the majority."""
        for member in self.members:
            if member.is_running:
                _wait_until_healthy(member)

    def leader(self) -> EtcdMember:
        """Find the member that leads the others; on a busy machine they may have to elect one first."""
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            for member in self.members:
                if member.is_running and _leads(member):
                    return member
            time.sleep(_POLL_S)
        raise AssertionError("no member leads")

    def revision(self) -> int:
        """Read how often the store has been changed."""
        with _channel(self.members[0]) as channel:
            return rpc.KVStub(channel).Range(pb.RangeRequest(key=b"health"), timeout=START_DEADLINE_S).header.revision


@contextmanager
def etcd_cluster(directory: Path, member_count: int = 1) -> Iterator[EtcdCluster]:
    """Run a healthy cluster."""
    require_etcd()
    directory.mkdir(parents=True, exist_ok=True)
    cluster = EtcdCluster(directory, member_count)
    try:
        cluster.start()
        cluster.wait_until_healthy()
        yield cluster
    finally:
        cluster.stop()


def _leads(member: EtcdMember) -> bool:
    told = httpx.get(f"{member.client_url}/metrics", timeout=START_DEADLINE_S).text
    return "\netcd_server_is_leader 1\n" in told


def _wait_until_healthy(member: EtcdMember) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    with _channel(member) as channel:
        while True:
            with suppress(grpc.RpcError):
                rpc.KVStub(channel).Range(pb.RangeRequest(key=b"health"), timeout=1, wait_for_ready=True)
                return
            assert member.is_running, member.log_path.read_text()
            assert time.monotonic() < deadline, member.log_path.read_text()
            time.sleep(_POLL_S)


def _channel(member: EtcdMember) -> grpc.Channel:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    options += [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    return grpc.insecure_channel(member.client_url.partition("://")[2], options=options)
