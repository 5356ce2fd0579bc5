"""Three machines as docs/operations.md sets them up: their files come from deploy/ha-config.sh, and their hosts join.

Each machine is a network of its own with a control plane, a node daemon and a member of etcd, which speak TLS to each
other; the first has PostgreSQL too. Its files are in a directory that stands for the root of its file system, so paths
in the configuration are made to begin there. Hypervisors are simulated; all else is real.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceStub
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.rpc.credentials import MachineCertificate
from nodedaemon.identity.files import IdentityFile, NodeIdentity
from tests.support import node_daemon_process
from tests.support.entry import Entry, authority_of
from tests.support.etcd import require_etcd
from tests.support.namespaces import kill_all_in, run_tool
from tests.support.netns_door import doors_to
from tests.support.postgresql import PostgresqlServer, leave_out, new_server

SCRIPT: Final = Path(__file__).parents[2] / "deploy" / "ha-config.sh"
HTTP_PORT: Final = 8080
PLANE_PORT: Final = 8081
HOSTS_PORT: Final = 8082
NODE_PORT: Final = 9090
ETCD_PORT: Final = 2379
_NETWORK: Final = "10.96.0"
_OWN_PATH: Final = re.compile(r"(?<![\w/.])/(?=(etc|var|run)/)")
_NAMED: Final = 'hostname "$0"; exec "$@"'


@dataclass
class Machine:
    """One of them; `doors` are where its ports are reached from here."""

    name: str
    address: str
    namespace: str
    root: Path
    doors: Mapping[int, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def argument(self) -> str:
        """As the scripts take it."""
        return f"{self.name}={self.address}"

    def file(self, path: str) -> Path:
        """Say where a file is that the machine has at `path`."""
        return self.root / path.lstrip("/")

    def of_stores(self) -> MachineCertificate:
        """Return what its control plane shows to etcd and PostgreSQL, and whom it believes there."""
        directory = self.file("/etc/limiquantix/tls")
        names = ("controlplane.pem", "controlplane-key.pem", "ca.pem")
        return MachineCertificate(*((directory / name).read_bytes() for name in names))

    def identity(self) -> NodeIdentity:
        """Return what its node daemon was given when it joined."""
        identity = IdentityFile.under(self.data_dir).load()
        assert identity is not None
        return identity

    @property
    def data_dir(self) -> Path:
        """Where its node daemon keeps its data."""
        return self.file("/var/lib/limiquantix/node")

    def read(self, path: str) -> str:
        """Read a configuration file, with its paths as they are here."""
        return _OWN_PATH.sub(f"{self.root}/", self.file(path).read_text())

    def settings(self, path: str, changes: Mapping[str, Mapping[str, Any]]) -> Path:
        """Add settings, by section, to a YAML file of the machine; returns the file to give to the program."""
        settings = yaml.safe_load(self.read(path))
        for section, values in changes.items():
            settings[section] = settings.get(section, {}) | values
        made = self.file(path).with_suffix(".here.yaml")
        made.write_text(yaml.safe_dump(settings))
        return made

    def command(self, words: Sequence[str]) -> list[str]:
        """Make a command that runs in the machine's network, under its host name."""
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts"]
        return [*inside, "sh", "-c", _NAMED, self.name, *words]

    def start(self, log_name: str, words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a program, which ends with this process; from the main thread only."""
        log_path = self.file(f"/var/log/{log_name}.log")
        log_path.parent.mkdir(parents=True, exist_ok=True)
        command = ["setpriv", "--pdeathsig", "KILL", *self.command(words)]
        env = node_daemon_process.environment() | dict(environment or {})
        with log_path.open("ab") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env))

    def start_etcd(self) -> None:
        """Start its member, with the environment that systemd would give it."""
        lines = shlex.split(self.read("/etc/default/etcd"), comments=True)
        environment = dict(line.split("=", 1) for line in lines)
        self.start("etcd", [require_etcd(), "--unsafe-no-fsync", "--logger", "zap"], environment)

    def start_control_plane(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Start its control plane."""
        runtime = {"security": {"runtime_dir": str(self.file("/run/limiquantix/controlplane"))}}
        config = self.settings("/etc/limiquantix/controlplane.yaml", {**changes, **runtime})
        self.start("control-plane", [sys.executable, "-m", "controlplane", "--config", str(config)])

    def entry(self, database_url: str, token: str) -> Entry:
        """Say how its control plane, which must have been up once, is reached from here."""
        doors = self.doors
        authority = authority_of(database_url)
        return Entry(f"https://{doors[HTTP_PORT]}", doors[PLANE_PORT], doors[HOSTS_PORT], authority, token)

    def join(self, token: str, storage: Path) -> None:
        """Have its host join, as an operator does."""
        config = self._node_settings(storage)
        words = self.command(node_daemon_process.command("--config", str(config), "join", "-"))
        env = node_daemon_process.environment()
        subprocess.run(words, input=token, check=True, capture_output=True, text=True, timeout=60, env=env)

    def start_node(self, storage: Path) -> None:
        """Start its node daemon, on a simulated hypervisor."""
        self.start("node", node_daemon_process.command("--config", str(self._node_settings(storage))))

    def _node_settings(self, storage: Path) -> Path:
        boot_id = self.file("/var/lib/boot_id")
        boot_id.parent.mkdir(parents=True, exist_ok=True)
        boot_id.write_text(f"{self.name}-1\n")
        changes: dict[str, dict[str, Any]] = {
            "node": {"data_dir": str(self.data_dir), "boot_id_path": str(boot_id)},
            "hypervisor": {"backend": "mock", "storage_path": str(storage), "mock": {"boot_secs": 0.1}},
        }
        return self.settings("/etc/limiquantix/node.yaml", changes)

    def cli(self, entry: Entry, *words: str) -> str:
        """Run the command `limiquantix` on the machine, as the administrator; returns what it printed."""
        program = str(Path(sys.executable).with_name("limiquantix"))
        done = subprocess.run(
            self.command([program, *words]),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=entry.environment(self.root, f"https://{self.address}:{HTTP_PORT}"),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def die(self) -> None:
        """Fall silent and end everything at once, as losing the power does: nobody's connection is refused."""
        self.cable("down")
        with suppress(subprocess.CalledProcessError):
            kill_all_in(self.namespace)
        for process in self.processes:
            process.wait()
        self.processes.clear()

    def cable(self, state: Literal["up", "down"]) -> None:
        """Cut or mend its network cable."""
        run_tool("ip", "-n", self.namespace, "link", "set", "eth0", state)

    def said(self) -> str:
        """Show the end of what its programs logged."""
        logs = sorted(self.file("/var/log").glob("*.log"))
        return "\n".join(f"--- {self.name} {log.name}\n{log.read_text()[-1500:]}" for log in logs)


class PlaneClient:
    """A caller of one control plane."""

    def __init__(self, entry: Entry) -> None:
        self.channel = entry.channel()
        self.ha = HaServiceStub(self.channel)
        self.nodes = NodeServiceStub(self.channel)
        self.vms = VMServiceStub(self.channel)


def make_files(directory: Path, machines: Sequence[Machine]) -> None:
    """Run the script, as an operator does."""
    words = ["sh", str(SCRIPT), str(directory), *(machine.argument for machine in machines)]
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)


@contextmanager
def machines_on_a_bridge(directory: Path, count: int = 3) -> Iterator[list[Machine]]:
    """Make machines with files, on which nothing runs yet; skips the test where that cannot be."""
    require_etcd()
    if os.geteuid() != 0:
        leave_out("machines in networks of their own need root")
    # As of `libvirt_hosts`, which removes what tests that were killed left under such names.
    names = [f"lqt{os.getpid()}h{number}" for number in range(count + 1)]
    fabric = names[0]
    with ExitStack() as stack:
        for name in names:
            run_tool("ip", "netns", "add", name)
            stack.callback(run_tool, "ip", "netns", "delete", name)
        run_tool("ip", "-n", fabric, "link", "add", "fab0", "type", "bridge")
        run_tool("ip", "-n", fabric, "link", "set", "fab0", "up")
        machines = [
            Machine(f"node{number}", f"{_NETWORK}.{number}", names[number], directory / f"node{number}")
            for number in range(1, count + 1)
        ]
        for machine in machines:
            _plug_in(machine, fabric)
            stack.callback(machine.die)
            doors = stack.enter_context(doors_to(machine.namespace))
            machine.doors = {
                port: doors.open(f"{machine.address}:{port}")
                for port in (HTTP_PORT, PLANE_PORT, HOSTS_PORT, NODE_PORT, ETCD_PORT)
            }
        make_files(directory, machines)
        yield machines


def _plug_in(machine: Machine, fabric: str) -> None:
    cable = f"v-{machine.name}"
    ends = ("netns", fabric, "type", "veth", "peer", "eth0", "netns", machine.namespace)
    run_tool("ip", "link", "add", cable, *ends)
    run_tool("ip", "-n", fabric, "link", "set", cable, "master", "fab0", "up")
    run_tool("ip", "-n", machine.namespace, "link", "set", "lo", "up")
    machine.cable("up")
    run_tool("ip", "-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "eth0")


@contextmanager
def postgresql_on(machine: Machine) -> Iterator[PostgresqlServer]:
    """Run PostgreSQL on a machine, which lets control planes in by their certificates."""
    server = new_server(
        namespace=machine.namespace,
        host_rules="local all all trust\nhostssl limiquantix limiquantix samenet cert\n",
    )
    try:
        server.create()
        files = {}
        for setting, name in (("cert", "postgresql.pem"), ("key", "postgresql-key.pem"), ("ca", "ca.pem")):
            copy = server.directory / name
            shutil.copy(machine.file("/etc/limiquantix/tls") / name, copy)
            shutil.chown(copy, "postgres")
            files[f"ssl_{setting}_file"] = str(copy)
        server.start(ssl="on", listen_addresses=machine.address, **files)
        server.create_database()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        server.remove()
