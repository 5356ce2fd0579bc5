"""A closed cluster as an operator makes one: real processes, real certificates, the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import yaml

from limiquantix.compute.v1 import node_service_pb2, vm_service_pb2
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.node.v1 import node_daemon_pb2
from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceStub
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from tests.support.ports import own_ports

pytestmark = pytest.mark.timeout(300)

CALL_S = 60.0
RUN_S = 120.0
PROGRAMS = Path(sys.executable).parent


FoundT = TypeVar("FoundT")


def wait_until(find: Callable[[], FoundT | None], what: str, said: Callable[[], str]) -> FoundT:
    """Return what `find` finds; shows all logs if it finds nothing."""
    until_s = time.monotonic() + RUN_S
    while time.monotonic() < until_s:
        if (found := find()) is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {RUN_S:g} s\n{said()}")


@dataclass
class Closed:
    """A control plane, and hosts that joined it."""

    directory: Path
    http: int
    grpc: int
    hosts: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.directory / "controlplane.yaml"

    @property
    def authority(self) -> Path:
        return self.directory / "ca.pem"

    def environment(self, user: str = "root") -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LIMIQUANTIX_")}
        return kept | {
            "LIMIQUANTIX_SERVER": f"https://127.0.0.1:{self.http}",
            "LIMIQUANTIX_CA": str(self.authority),
            "XDG_CONFIG_HOME": str(self.directory / f"home-of-{user}"),
        }

    def run(
        self, program: str, *words: str, user: str = "root", given: str = "", fails: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        done = subprocess.run(
            [PROGRAMS / program, *words],
            env=self.environment(user),
            input=given,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert (done.returncode != 0) is fails, (words, done.stdout, done.stderr, self.said())
        return done

    def cli(self, *words: str, user: str = "root", given: str = "", fails: bool = False) -> str:
        """Run the command line; returns what it printed, or complained of."""
        done = self.run("limiquantix", *words, user=user, given=given, fails=fails)
        return done.stderr if fails else done.stdout

    def json(self, *words: str, user: str = "root") -> Any:
        return json.loads(self.cli("--output", "json", *words, user=user))

    def plane(self, *words: str) -> str:
        return self.run("limiquantix-controlplane", "--config", str(self.config), *words).stdout

    def start(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{program}.log").open("ab") as log:
            process = subprocess.Popen([PROGRAMS / program, *words], stderr=log, env=self.environment())
        self.processes.append(process)
        return process

    def said(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.directory.glob("*.log")))

    def start_plane(self) -> subprocess.Popen[bytes]:
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        process = self.start("limiquantix-controlplane", "--config", str(self.config), "--ready-file", str(ready))
        wait_until(lambda: ready.exists() or None, "a control plane", self.said)
        return process

    def node_config(self) -> Path:
        path = self.directory / "node.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    "node": {"hostname": "host-1", "data_dir": str(self.directory / "node")},
                    "server": {"listen_address": "127.0.0.1:0", "metrics_port": 0},
                    "hypervisor": {"backend": "mock", "storage_path": str(self.directory / "images")},
                    "self_fencing": {"run_dir": str(self.directory / "guard")},
                }
            )
        )
        return path

    def join_and_start(self) -> str:
        """Have a host join, and its daemon run; returns its node's id."""
        token = self.json("node", "token", "create")["token"]
        config = str(self.node_config())
        said = self.run("limiquantix-node", "--config", config, "join", "-", given=token).stdout
        assert self.run("limiquantix-node", "--config", config, "join", "-", given=token, fails=True).returncode == 1
        self.start("limiquantix-node", "--config", config)

        def ready() -> str | None:
            nodes = self.json("node", "list")["nodes"]
            return next((n["id"] for n in nodes if n["status"]["phase"] == "READY"), None)

        node_id = wait_until(ready, "a node that is ready", self.said)
        assert node_id in said
        return node_id

    def daemon_address(self) -> str:
        """Return where the daemon listens, as it logs."""
        lines = (self.directory / "limiquantix-node.log").read_text().splitlines()
        return next(str(json.loads(line)["grpc_address"]) for line in lines if '"event":"listening"' in line)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(60)


@contextmanager
def closed_cluster(directory: Path) -> Iterator[Closed]:
    http, grpc_port, hosts = own_ports(3)
    cluster = Closed(directory, http, grpc_port, hosts)
    cluster.config.write_text(
        yaml.safe_dump(
            {
                "http": {"listen_address": f"127.0.0.1:{cluster.http}"},
                "grpc": {"listen_address": f"127.0.0.1:{cluster.grpc}"},
                "database": {"url": f"sqlite:///{directory / 'limiquantix.db'}"},
                "security": {
                    "hosts_listen_address": f"127.0.0.1:{cluster.hosts}",
                    "runtime_dir": str(directory / "run"),
                },
                "secrets": {"key_file": str(directory / "secret.key")},
            }
        )
    )
    try:
        cluster.plane("migrate")
        yield cluster
    finally:
        cluster.close()


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    found: grpc.StatusCode = caught.value.code()
    return found


def test_cluster_is_closed_from_its_first_start_and_everything_works(tmp_path: Path) -> None:
    with closed_cluster(tmp_path) as cluster:
        password = cluster.plane("admin", "create", "root", "--generate").rpartition(": ")[2].strip()
        plane = cluster.start_plane()
        cluster.authority.write_text(cluster.plane("authority"))

        assert "log in" in cluster.cli("vm", "list", fails=True)
        assert "password" in cluster.cli("login", "root", given="wrong\n", fails=True)
        cluster.cli("login", "root", given=f"{password}\n")
        assert cluster.json("whoami")["name"] == "root"

        node_id = cluster.join_and_start()
        cluster.cli("vm", "create", "web", "--cpus", "1", "--memory", "64MiB", "--start")
        assert cluster.json("vm", "show", "web")["status"]["state"] == "RUNNING"

        assert_ports_are_closed(cluster, node_id)
        assert_others_see_what_they_may(cluster)
        records = cluster.json("audit", "list", "--who", "root")["records"]
        assert any(each["method"].endswith("/CreateVM") for each in records), records

        assert "new first key" in cluster.plane("secrets", "rotate-file")
        plane.kill()
        plane.wait()
        cluster.start_plane()
        assert cluster.json("vm", "show", "web")["status"]["state"] == "RUNNING"

        def stops() -> bool | None:
            return cluster.run("limiquantix", "vm", "stop", "web", "--force").returncode == 0 or None

        wait_until(stops, "the host taking commands of the new process", cluster.said)


def assert_ports_are_closed(cluster: Closed, node_id: str) -> None:
    """Try each port with what must not do."""
    authority = cluster.authority.read_bytes()
    options = [("grpc.ssl_target_name_override", CONTROL_PLANE_SERVER_NAME)]
    trusting = grpc.ssl_channel_credentials(authority)
    listing = vm_service_pb2.ListVMsRequest()
    with grpc.insecure_channel(f"127.0.0.1:{cluster.grpc}") as channel:
        assert code_of(lambda: VMServiceStub(channel).ListVMs(listing, timeout=CALL_S)) is grpc.StatusCode.UNAVAILABLE
    with grpc.secure_channel(f"127.0.0.1:{cluster.grpc}", trusting, options) as channel:
        code = code_of(lambda: VMServiceStub(channel).ListVMs(listing, timeout=CALL_S))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        beat = node_service_pb2.UpdateHeartbeatRequest(node_id=node_id)
        code = code_of(lambda: NodeServiceStub(channel).UpdateHeartbeat(beat, timeout=CALL_S))
        assert code is grpc.StatusCode.UNAUTHENTICATED
    with grpc.secure_channel(f"127.0.0.1:{cluster.hosts}", trusting, options) as channel:
        code = code_of(lambda: NodeServiceStub(channel).UpdateHeartbeat(beat, timeout=CALL_S))
        assert code is grpc.StatusCode.UNAVAILABLE, "without a certificate"
    endpoint = cluster.daemon_address()
    listed = node_daemon_pb2.VMIdRequest(vm_id=node_id)
    with grpc.insecure_channel(endpoint) as channel:
        code = code_of(lambda: NodeDaemonServiceStub(channel).GetVMStatus(listed, timeout=CALL_S))
        assert code is grpc.StatusCode.UNAVAILABLE
    with grpc.secure_channel(endpoint, trusting, options) as channel:
        code = code_of(lambda: NodeDaemonServiceStub(channel).GetVMStatus(listed, timeout=CALL_S))
        assert code is grpc.StatusCode.UNAVAILABLE


def assert_others_see_what_they_may(cluster: Closed) -> None:
    """Make a user without rights, then one who may look."""
    cluster.cli("user", "create", "alice", given="a-long-password-of-alice\n")
    cluster.cli("login", "alice", user="alice", given="a-long-password-of-alice\n")
    assert cluster.json("vm", "list", user="alice")["vms"] == []
    assert "there is no VM named 'web'" in cluster.cli("vm", "show", "web", user="alice", fails=True)
    cluster.cli("role", "bind", "viewer", "--user", "alice")
    assert [vm["name"] for vm in cluster.json("vm", "list", user="alice")["vms"]] == ["web"]
    assert "vm.power" in cluster.cli("vm", "stop", "web", "--force", user="alice", fails=True)
