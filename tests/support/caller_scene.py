"""A closed cluster with two projects, and everybody who may want something of one of them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Final

import grpc

from limiquantix.compute.v1.node_pb2 import CpuInfo
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatRequest
from limiquantix.errors import ApiError
from limiquantix.rpc.credentials import MachineCredentials
from nodedaemon.identity.requests import new_request
from tests.support.closed_cluster import ADMINISTRATOR, PASSWORD, ClosedCluster, JoinedHost, closed_cluster
from tests.support.control_plane_world import register_request
from tests.support.every_caller import COLUMNS, Door, Doors

HEARTBEAT_S: Final = 1.0
"""Silent hosts are given up after a few seconds, and no VM can be made then."""
_LOGOUT: Final = "AuthService/Logout"
_USERS: Final[Mapping[str, tuple[str, str]]] = {
    "unbound": ("", ""),
    "other viewer": ("viewer", "other"),
    "viewer": ("viewer", "project"),
    "operator": ("operator", "project"),
    "cluster viewer": ("viewer", ""),
    "cluster operator": ("operator", ""),
}
"""By column: the role, and the thing that it is bound at."""


@dataclass(frozen=True)
class Way:
    """A way of calling: whose column of the table it is, and how that one comes in."""

    column: str
    how: str
    door: Door
    name: str = ""
    """Of the user who calls."""

    @property
    def text(self) -> str:
        return f"{self.column} ({self.how})"


@dataclass
class CallerScene:
    """Things by name, as requests name them, and hosts."""

    cluster: ClosedCluster
    hosts: Mapping[str, JoinedHost]
    things: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    key: str = ""
    _numbers: Any = field(default_factory=lambda: count(1))

    @property
    def marks(self) -> frozenset[str]:
        """Ids and names that only who sees the project may learn of."""
        return frozenset(self.things[name] for name in ("vm", "project", "folder", "operation")) | {
            "web-of-alpha",
            "folder-of-alpha",
        }

    async def set_up(self) -> None:
        """Make all but what is used up."""
        done = self.cluster.done
        for name, of in (("project", "alpha"), ("other", "beta")):
            self.things[name] = (await done("ProjectService/CreateProject", {"name": of}))["id"]
        self.things["folder"] = await self._new_folder("folder-of-alpha")
        self.things["idle_folder"] = await self._new_folder()
        self.things["vm"], self.things["operation"] = await self._new_vm("web-of-alpha")
        await done("VMService/CreateVM", {"name": "web-of-beta", "project_id": self.things["other"], "spec": _SPEC})
        for column, (role, place) in _USERS.items():
            where = {"project_id": self.things[place]} if place else {}
            self.tokens[column] = await self.cluster.new_user(_user(column), role, **where)
        self.tokens["admin"] = self.cluster.token
        self.key = await self.cluster.new_key()
        role = await done("RoleService/CreateRole", {"name": "guest", "permissions": ["vm.read"]})
        await done("UserService/CreateUser", {"name": "victim", "password": PASSWORD})
        key = await done("ApiKeyService/CreateApiKey", {"name": "other", "expires_at": _tomorrow()})
        self.things |= {
            **{name.replace(" ", "_"): host.id for name, host in self.hosts.items()},
            **{"hostname": self.hosts["node"].hostname, "endpoint": self.hosts["node"].endpoint},
            **{"role": role["id"], "victim": "victim", "password": PASSWORD, "key": key["apiKey"]["id"]},
            **{"unknown": str(uuid.uuid4()), "tomorrow": _tomorrow(), "request": new_request()[1].decode()},
        }

    async def freshen(self, names: set[str], *, all_over: bool = False) -> None:
        """Make what is to be made anew for each call, and what was used up.

        Args:
            all_over: whether whatever begins with "new_" is used up.
        """
        for name in names:
            if name == "name":
                self.things[name] = f"n{next(self._numbers)}"
            elif name not in self.things or (all_over and name.startswith("new_")):
                self.things[name] = await self._made(name)

    async def _made(self, name: str) -> str:
        match name:
            case "new_vm" | "busy_vm":
                return (await self._new_vm())[0]
            case "new_folder":
                return await self._new_folder()
            case "new_binding":
                body = {"subject": "user:victim", "role_id": "viewer", "project_id": self.things["project"]}
                return str((await self.cluster.done("RoleService/BindRole", body))["id"])
        raise AssertionError(f"nobody knows how to make {name}")

    async def _new_vm(self, name: str = "") -> tuple[str, str]:
        body = {"name": name or f"vm-{next(self._numbers)}", "project_id": self.things["project"], "spec": _SPEC}
        answer = await self.cluster.post("VMService/CreateVM", {**body, "node_id": self.hosts["node"].id})
        assert answer.status == 200, answer.document
        return str(answer.document["id"]), answer.headers["limiquantix-operation-id"]

    async def _new_folder(self, name: str = "") -> str:
        body = {"name": name or f"folder-{next(self._numbers)}", "project_id": self.things["project"]}
        return str((await self.cluster.done("FolderService/CreateFolder", body))["id"])

    @asynccontextmanager
    async def ways(self) -> AsyncIterator[list[Way]]:
        """Open every way of calling, in the order of the columns."""
        doors, cluster = Doors(), self.cluster
        at, trusting = cluster.addresses, grpc.ssl_channel_credentials(cluster.authority_pem)
        shown = {name: MachineCredentials(host.identity.certificate).channel() for name, host in self.hosts.items()}
        async with doors.stack:
            ways = [
                Way("nobody", "gRPC", await doors.grpc(at.grpc, trusting)),
                Way("nobody", "gRPC, with a node's certificate", await doors.grpc(at.grpc, shown["node"])),
                Way("nobody", "JSON", await doors.json(at.http, cluster.trust)),
            ]
            for column, token in {**self.tokens, "key": self.key}.items():
                name = "" if column == "key" else _user(column)
                ways.append(Way(column, "gRPC", await doors.grpc(at.grpc, trusting, token), name))
                ways.append(Way(column, "JSON", await doors.json(at.http, cluster.trust, token), name))
            for column in self.hosts:
                alone = await doors.grpc(at.hosts, shown[column])
                too = await doors.grpc(at.hosts, shown[column], cluster.token)
                ways.append(Way(column, "hosts' port", alone))
                ways.append(Way(column, "hosts' port, with the administrator's token", too))
            assert {way.column for way in ways} == set(COLUMNS)
            yield sorted(ways, key=lambda way: COLUMNS.index(way.column))

    async def door_for(self, way: Way, name: str) -> Door:
        """Return the way's door, with a session of its own for the method that ends it."""
        if not way.name or name != _LOGOUT:
            return way.door
        return way.door.as_another(await self.cluster.login(way.name))


_CPUS: Final = CpuInfo(sockets=2, cores_per_socket=64, threads_per_core=2, total_threads=256)
_SPEC: Final = {"cpu": {"cores": 1}, "memory": {"sizeMib": 64}}


def _user(column: str) -> str:
    return ADMINISTRATOR if column == "admin" else column.replace(" ", "-")


def _tomorrow() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).isoformat()


async def _beat(host: JoinedHost) -> None:
    request = UpdateHeartbeatRequest(node_id=host.id, memory_total_mib=2**14)
    while True:
        with contextlib.suppress(ApiError):
            await host.control.heartbeat(request)
        await asyncio.sleep(HEARTBEAT_S)


@asynccontextmanager
async def caller_scene(directory: Path) -> AsyncIterator[CallerScene]:
    """Run the cluster, with everybody and everything in it."""
    async with closed_cluster(directory) as cluster:
        names = ("node", "another node", "revoked node")
        hosts = {name: await cluster.join(f"host-{number}") for number, name in enumerate(names, 1)}
        for host in hosts.values():
            await host.control.register(register_request(host.hostname, agent_endpoint=host.endpoint, cpu_info=_CPUS))
        beating = [asyncio.create_task(_beat(host)) for host in hosts.values()]
        scene = CallerScene(cluster, hosts)
        try:
            await scene.set_up()
            await asyncio.sleep(1.1)  # certificates count in whole seconds: this one is to be older than its end
            await cluster.done("JoinService/RevokeNodeCertificate", {"node_id": hosts["revoked node"].id})
            yield scene
        finally:
            for task in beating:
                task.cancel()
            await asyncio.wait(beating)
