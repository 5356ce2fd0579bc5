"""`limiquantix project`, `folder` and `role`, against a control plane in a dictionary."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_http_api import Document, FakeApi, Run, uuid_of

SHOP: Document = {
    "id": uuid_of(1),
    "name": "shop",
    "quota": {"vmCount": "20", "memoryMib": "65536"},
    "usage": {"vmCount": "3", "vcpus": "6", "memoryMib": "4096"},
}
WEB: Document = {"id": uuid_of(2), "name": "web", "path": "web", "projectId": uuid_of(1), "type": "vm", "childCount": 1}
FRONT: Document = {"id": uuid_of(3), "name": "front", "path": "web/front", "projectId": uuid_of(1), "type": "vm"}
BINDING: Document = {"id": uuid_of(9), "subject": "user:alice", "roleId": "viewer", "roleName": "viewer"}


@pytest.fixture(autouse=True)
def tree(api: FakeApi) -> None:
    api.answers["ListProjects"] = lambda _: {"projects": [SHOP]}
    api.answers["ListFolders"] = lambda _: {"folders": [FRONT, WEB]}
    api.answers["GetProject"] = lambda _: SHOP
    api.answers["ListRoleBindings"] = lambda _: {"bindings": [BINDING]}
    for method in ("CreateProject", "UpdateProject"):
        api.answers[method] = lambda _: SHOP
    for method in ("CreateFolder", "UpdateFolder"):
        api.answers[method] = lambda _: FRONT
    for method in ("DeleteProject", "DeleteFolder", "BindRole", "UnbindRole", "CreateRole", "UpdateRole", "DeleteRole"):
        api.answers[method] = lambda _: {}


def asked(api: FakeApi, method: str) -> Document:
    (request,) = [request for name, request in api.requests if name == method]
    return request


def test_project_is_made_with_a_quota(run: Run, api: FakeApi) -> None:
    result = run("project", "create", "shop", "--vms", "20", "--memory", "64GiB", "--disk", "2TiB")

    assert result.exit_code == 0, result.output
    quota = {"vmCount": 20, "memoryMib": 65536, "diskGib": 2048}
    assert asked(api, "CreateProject") == {"name": "shop", "description": "", "quota": quota}


def test_projects_show_what_is_used_and_what_may_be(run: Run, api: FakeApi) -> None:
    listed, shown = run("project", "list").output, run("project", "show", "shop").output

    assert listed.splitlines()[1].split()[:5] == ["shop", "20", "any", "64", "GiB"]
    assert "3 of 20" in shown
    assert "6 of any" in shown
    assert json.loads(run("project", "list", "-o", "json").output)["totalCount"] == 1


def test_part_of_a_quota_is_changed_and_the_rest_stays(run: Run, api: FakeApi) -> None:
    assert run("project", "update", "shop", "--vms", "30").exit_code == 0

    request = asked(api, "UpdateProject")
    assert request == {"id": SHOP["id"], "quota": {"vmCount": 30, "memoryMib": "65536"}}
    assert run("project", "update", "shop").exit_code == 2


def test_project_is_deleted_after_a_question(run: Run, api: FakeApi) -> None:
    assert run("project", "delete", "shop", input="n\n").exit_code == 1
    assert run("project", "delete", "shop", "--yes").exit_code == 0
    assert asked(api, "DeleteProject") == {"id": SHOP["id"]}


def test_unknown_project_is_told(run: Run, api: FakeApi) -> None:
    result = run("project", "show", "stop")
    assert result.exit_code == 1
    assert "no project named 'stop'" in result.output


def test_folder_is_named_by_its_path(run: Run, api: FakeApi) -> None:
    assert run("folder", "create", "x", "--in", "web/front", "--project", "shop").exit_code == 0
    assert asked(api, "CreateFolder") == {
        "name": "x",
        "description": "",
        "projectId": SHOP["id"],
        "parentId": FRONT["id"],
    }
    assert run("folder", "delete", "web", "--force", "--move-vms-to", "web/front").exit_code == 0
    assert asked(api, "DeleteFolder") == {"id": WEB["id"], "force": True, "moveVmsTo": FRONT["id"]}
    assert run("folder", "update", "web/front", "--name", "y").exit_code == 0
    assert asked(api, "UpdateFolder") == {"id": FRONT["id"], "name": "y", "parentId": "", "description": ""}
    assert "no folder 'nowhere'" in run("folder", "delete", "nowhere").output


def test_folders_are_listed_by_path_and_shown_as_a_tree(run: Run, api: FakeApi) -> None:
    api.answers["GetFolderTree"] = lambda _: {
        "folder": {"projectId": SHOP["id"]},
        "children": [{"folder": WEB, "children": [{"folder": FRONT}]}],
    }

    assert [line.split()[0] for line in run("folder", "list").output.splitlines()] == ["PATH", "web", "web/front"]
    assert run("folder", "tree").output.splitlines() == ["/", "  web", "    front"]


def test_vm_is_moved(run: Run, api: FakeApi) -> None:
    api.answers["MoveVM"] = lambda _: {"name": "web-1"}
    assert "web-1 is in web" in run("folder", "move-vm", uuid_of(5), "--to", "web").output
    assert asked(api, "MoveVM") == {"vmId": uuid_of(5), "folderId": WEB["id"]}


def test_role_is_bound_and_unbound_at_a_place(run: Run, api: FakeApi) -> None:
    assert run("role", "bind", "viewer", "--user", "alice", "--project", "shop").exit_code == 0
    place = {"projectId": SHOP["id"], "folderId": ""}
    assert asked(api, "BindRole") == {"subject": "user:alice", "roleId": "viewer", **place}
    assert run("role", "unbind", "viewer", "--user", "alice", "--project", "shop").exit_code == 0
    assert asked(api, "ListRoleBindings") == place
    assert asked(api, "UnbindRole") == {"id": BINDING["id"]}
    assert "is not bound" in run("role", "unbind", "viewer", "--group", "alice").output


@pytest.mark.parametrize("who", [(), ("--user", "a", "--group", "b")])
def test_role_is_bound_to_one_subject(run: Run, api: FakeApi, who: tuple[str, ...]) -> None:
    assert run("role", "bind", "viewer", *who).exit_code == 2
    assert api.requests == []


def test_roles_are_listed_shown_and_made(run: Run, api: FakeApi) -> None:
    consoles = {"name": "consoles", "permissions": ["vm.console", "vm.read"], "description": "d"}
    api.answers["ListRoles"] = lambda _: {"roles": [consoles]}
    api.answers["GetRole"] = lambda _: consoles

    assert run("role", "list").output.splitlines()[1].split() == ["consoles", "2", "d"]
    assert run("role", "show", "consoles").output.split() == consoles["permissions"]
    assert run("role", "create", "consoles").exit_code == 2
    assert run("role", "create", "consoles", "--permission", "vm.read").exit_code == 0
    assert asked(api, "CreateRole") == {"name": "consoles", "permissions": ["vm.read"], "description": ""}
    assert run("role", "update", "consoles", "--description", "e").exit_code == 0
    assert asked(api, "UpdateRole") == {"id": "consoles", "permissions": [], "description": "e"}
    assert run("role", "delete", "consoles").exit_code == 0
    assert "alice" in run("role", "bindings").output
