"""Nobody gives, takes over or silences what may do more than they may: every way that there is to try, in one cluster.

Helen may manage users, roles and bindings, and little else; she tries to become more than that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.support.closed_cluster import ADMINISTRATOR, PASSWORD, ClosedCluster, closed_cluster
from tests.support.running_control_plane import JsonAnswer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

HELENS: Final = (
    *("user.read", "user.create", "user.update", "user.delete", "role.read", "role.create", "role.update"),
    *("role.delete", "role.bind", "vm.read", "vm.create", "vm.update", "folder.read", "folder.create"),
    *("folder.update", "folder.delete", "project.read"),
)
MORE: Final = [*HELENS, "vm.console"]


@dataclass
class Scene:
    """`ids` are those of things by name, as the attempts name them after "$"."""

    cluster: ClosedCluster
    helen: str
    ids: dict[str, str] = field(default_factory=dict)

    async def tried(self, path: str, body: Mapping[str, Any], token: str = "") -> JsonAnswer:
        named = {key: self.ids[value[1:]] if str(value).startswith("$") else value for key, value in body.items()}
        return await self.cluster.post(path, named, token or self.helen)

    async def done(self, path: str, body: Mapping[str, Any], token: str | None = None) -> Any:
        named = {key: self.ids[value[1:]] if str(value).startswith("$") else value for key, value in body.items()}
        return await self.cluster.done(path, named, token)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with closed_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        scene = Scene(cluster, "")
        await _people(scene)
        await _things(scene)
        yield scene


async def _people(scene: Scene) -> None:
    done, ids = scene.done, scene.ids
    ids["helpdesk"] = (await done("RoleService/CreateRole", {"name": "helpdesk", "permissions": HELENS}))["id"]
    ids["more"] = (await done("RoleService/CreateRole", {"name": "more", "permissions": MORE}))["id"]
    scene.helen = await scene.cluster.new_user("helen", "helpdesk")
    await done("RoleService/BindRole", {"roleId": "admin", "subject": "group:chiefs"})
    await scene.cluster.new_user("puppet")
    ids["helen"] = (await done("UserService/GetUser", {"id": "helen"}))["id"]
    ids["root"] = (await done("UserService/GetUser", {"id": ADMINISTRATOR}))["id"]
    await done("UserService/CreateUser", {"name": "chief", "password": PASSWORD, "groups": ["chiefs"]})
    await done("UserService/CreateUser", {"name": "old-chief", "password": PASSWORD, "groups": ["chiefs"]})
    await done("UserService/DisableUser", {"id": "old-chief"})
    ends_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    key = await done("ApiKeyService/CreateApiKey", {"name": "robot", "expiresAt": ends_at})
    ids["key"] = key["apiKey"]["id"]
    bindings = (await done("RoleService/ListRoleBindings", {}))["bindings"]
    ids["root's binding"] = next(each["id"] for each in bindings if each["subject"] == f"user:{ADMINISTRATOR}")


async def _things(scene: Scene) -> None:
    """A folder of hers, where she is admin, and one beside it."""
    done, ids = scene.done, scene.ids
    await scene.cluster.add_host("host-1")
    ids["project"] = (await done("ProjectService/CreateProject", {"name": "shop"}))["id"]
    for name in ("hers", "theirs", "below theirs", "plain"):
        parent = {"parentId": "$theirs"} if name.startswith("below") else {}
        made = await done("FolderService/CreateFolder", {"name": name, "projectId": "$project", **parent})
        ids[name] = made["id"]
    for folder, subject in (("$hers", "user:helen"), ("$theirs", "user:chief")):
        await done("RoleService/BindRole", {"roleId": "operator", "subject": subject, "folderId": folder})
    spec = {"cpu": {"cores": 1}, "memory": {"sizeMib": "128"}}
    for name, folder in (("vm", "$theirs"), ("plain vm", "$plain")):
        body = {"name": name.replace(" ", "-"), "projectId": "$project", "folderId": folder, "spec": spec}
        ids[name] = (await done("VMService/CreateVM", body))["id"]


ATTEMPTS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "becomes an admin by a password": ("UserService/ResetPassword", {"id": ADMINISTRATOR}),
    "becomes one of the chiefs by a password": ("UserService/ResetPassword", {"id": "chief", "newPassword": PASSWORD}),
    "changes an admin": ("UserService/UpdateUser", {"id": ADMINISTRATOR, "displayName": "nobody"}),
    "takes a chief out of the group": ("UserService/UpdateUser", {"id": "chief", "replaceGroups": True}),
    "joins the chiefs": ("UserService/UpdateUser", {"id": "helen", "groups": ["chiefs"], "replaceGroups": True}),
    "has a puppet join them": ("UserService/UpdateUser", {"id": "puppet", "groups": ["chiefs"], "replaceGroups": True}),
    "makes a chief": ("UserService/CreateUser", {"name": "new", "password": PASSWORD, "groups": ["chiefs"]}),
    "brings an old chief back": ("UserService/EnableUser", {"id": "old-chief"}),
    "disables an admin": ("UserService/DisableUser", {"id": ADMINISTRATOR}),
    "deletes a chief": ("UserService/DeleteUser", {"id": "chief"}),
    "ends an admin's sessions": ("UserService/RevokeSessions", {"id": ADMINISTRATOR}),
    "ends an admin's key": ("ApiKeyService/RevokeApiKey", {"id": "$key"}),
    "binds herself": ("RoleService/BindRole", {"roleId": "admin", "subject": "user:helen"}),
    "binds herself in a project": (
        "RoleService/BindRole",
        {"roleId": "operator", "subject": "user:helen", "projectId": "$project"},
    ),
    "binds herself in a folder": (
        "RoleService/BindRole",
        {"roleId": "$more", "subject": "user:helen", "folderId": "$theirs"},
    ),
    "binds a group": ("RoleService/BindRole", {"roleId": "admin", "subject": "group:helpers"}),
    "takes an admin's role": ("RoleService/UnbindRole", {"id": "$root's binding"}),
    "adds to her role": ("RoleService/UpdateRole", {"id": "$helpdesk", "permissions": MORE}),
    "makes a role with more": ("RoleService/CreateRole", {"name": "mine", "permissions": MORE}),
    "takes from a role with more": ("RoleService/UpdateRole", {"id": "$more", "permissions": ["vm.read"]}),
    "takes a VM to where she is operator": ("FolderService/MoveVM", {"vmId": "$plain vm", "folderId": "$hers"}),
    "takes a VM away from its operator": ("FolderService/MoveVM", {"vmId": "$vm"}),
    "takes a folder to where she is operator": ("FolderService/UpdateFolder", {"id": "$plain", "parentId": "$hers"}),
    "takes a folder away from its operator": (
        "FolderService/UpdateFolder",
        {"id": "$below theirs", "parentId": "$plain"},
    ),
    "has the VMs of a deleted folder come to her": (
        "FolderService/DeleteFolder",
        {"id": "$plain", "force": True, "moveVmsTo": "$hers"},
    ),
    "makes another's quota hers": ("ProjectService/UpdateProject", {"id": "$project", "quota": {}}),
    "reads the trail": ("AuditService/ListAuditRecords", {}),
    "has a host join": ("JoinService/CreateJoinToken", {}),
}


@pytest.mark.parametrize("what", ATTEMPTS)
async def test_who_manages_users_and_roles_does_not_become_more(scene: Scene, what: str) -> None:
    path, body = ATTEMPTS[what]
    answer = await scene.tried(path, body)
    assert (answer.status, answer.document["code"]) == (403, "permission_denied"), answer.document


async def test_nothing_came_of_all_attempts(scene: Scene) -> None:
    """The attempts are of use only if what they name is there and could be done by somebody."""
    assert await scene.cluster.login(ADMINISTRATOR)
    assert await scene.cluster.login("chief")
    assert (await scene.tried("VMService/GetConsole", {"vmId": "$plain vm"})).status == 403
    kept = await scene.done("RoleService/GetRole", {"id": "$helpdesk"})
    assert sorted(kept["permissions"]) == sorted(HELENS)


async def test_what_she_has_she_gives_and_takes(scene: Scene) -> None:
    await scene.done("UserService/CreateUser", {"name": "ned", "password": PASSWORD}, scene.helen)
    bound = await scene.done("RoleService/BindRole", {"roleId": "$helpdesk", "subject": "user:ned"}, scene.helen)
    await scene.done("UserService/ResetPassword", {"id": "ned"}, scene.helen)
    await scene.done("RoleService/UnbindRole", {"id": bound["id"]}, scene.helen)
    await scene.done("UserService/DeleteUser", {"id": "ned"}, scene.helen)
    await scene.done("FolderService/MoveVM", {"vmId": "$plain vm"}, scene.helen)
    await scene.done("FolderService/MoveVM", {"vmId": "$plain vm", "folderId": "$plain"}, scene.helen)


async def test_scope_of_a_key_holds_wherever_it_would_give_more(scene: Scene) -> None:
    key = await scene.cluster.new_key(permissions=["user.update", "role.bind", "role.create", "vm.read"])
    for path, body in (
        ("UserService/ResetPassword", {"id": ADMINISTRATOR}),
        ("UserService/UpdateUser", {"id": "puppet", "groups": ["chiefs"], "replaceGroups": True}),
        ("RoleService/BindRole", {"roleId": "viewer", "subject": "user:puppet"}),
        ("RoleService/CreateRole", {"name": "r", "permissions": ["vm.read", "vm.power"]}),
        ("ApiKeyService/RevokeApiKey", {"id": "$key"}),
        ("ApiKeyService/CreateApiKey", {"name": "k", "expiresAt": "2099-01-01T00:00:00Z"}),
        ("AuthService/ChangePassword", {"currentPassword": PASSWORD, "newPassword": f"{PASSWORD}!"}),
    ):
        answer = await scene.tried(path, body, key)
        assert (answer.status, answer.document["code"]) == (403, "permission_denied"), (path, answer.document)


async def test_key_outlives_no_right_of_its_owner(scene: Scene) -> None:
    await scene.cluster.new_user("kim", "admin")
    token = await scene.cluster.login("kim")
    ends_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = await scene.done("ApiKeyService/CreateApiKey", {"name": "k", "expiresAt": ends_at}, token)
    await scene.done("UserService/GetUser", {"id": "kim"}, made["secret"])
    bindings = (await scene.done("RoleService/ListRoleBindings", {}))["bindings"]
    kims = next(each["id"] for each in bindings if each["subject"] == "user:kim")
    await scene.done("RoleService/UnbindRole", {"id": kims})
    assert (await scene.tried("UserService/GetUser", {"id": "kim"}, made["secret"])).status == 403
