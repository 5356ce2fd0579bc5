"""What people may do at each place, and which part of the tree they see."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.access.tree import AccessTree
from controlplane.domain.access import (
    ADMIN,
    EVERYTHING,
    OPERATOR,
    THE_CLUSTER,
    VIEWER,
    AccessFacts,
    Binding,
    FolderPlace,
    Permission,
    Place,
    Role,
    VisiblePlaces,
)
from controlplane.domain.principal import Principal, PrincipalKind, Scope
from tests.support.access_scene import api_key_of, bound, node, user

ALICE = user("alice", "ops")
PROJECTS = {"p": "p", "q": "q"}
FOLDERS = {"top": FolderPlace("p", ""), "below": FolderPlace("p", "top"), "beside": FolderPlace("p", "")}
CONSOLES = Role("r", "consoles", frozenset({"vm.console", "vm.teleport"}))


def tree(*bindings: Binding) -> AccessTree:
    return AccessTree(AccessFacts(1, PROJECTS, FOLDERS, {"r": CONSOLES}, bindings))


def test_nobody_may_do_anything_without_a_binding() -> None:
    assert tree(bound("user:bob", ADMIN)).permissions(ALICE, THE_CLUSTER) == frozenset()
    assert tree().visible(ALICE, Permission.VM_READ) == VisiblePlaces()


@pytest.mark.parametrize("who", ["user:alice", "group:ops"])
def test_role_at_the_cluster_is_had_everywhere(who: str) -> None:
    everywhere = tree(bound(who, ADMIN))

    for place in (THE_CLUSTER, Place("p"), Place("p", "below"), Place("q")):
        assert everywhere.permissions(ALICE, place) == EVERYTHING
    assert everywhere.visible(ALICE, Permission.VM_READ) is None


def test_role_at_a_folder_is_had_below_it_only() -> None:
    of_folder = tree(bound("user:alice", OPERATOR, Place("p", "top")))

    assert "vm.power" in of_folder.permissions(ALICE, Place("p", "below"))
    for place in (THE_CLUSTER, Place("p"), Place("p", "beside"), Place("q")):
        assert of_folder.permissions(ALICE, place) == frozenset()
    assert of_folder.visible(ALICE, Permission.VM_READ) == VisiblePlaces(folder_ids=frozenset({"top", "below"}))


def test_folder_that_is_said_to_be_of_another_project_gives_nothing() -> None:
    of_folder = tree(bound("user:alice", OPERATOR, Place("p", "top")))

    assert of_folder.permissions(ALICE, Place("q", "top")) == frozenset()


def test_what_is_granted_in_several_places_adds_up() -> None:
    both = tree(bound("user:alice", VIEWER), bound("group:ops", OPERATOR, Place("p")))

    assert "vm.delete" in both.permissions(ALICE, Place("p"))
    assert "vm.delete" not in both.permissions(ALICE, Place("q"))
    assert "vm.read" in both.permissions(ALICE, Place("q"))
    assert both.visible(ALICE, Permission.VM_DELETE) == VisiblePlaces(frozenset({"p"}))


def test_binding_to_a_role_that_is_gone_gives_nothing() -> None:
    assert tree(bound("user:alice", "gone")).permissions(ALICE, THE_CLUSTER) == frozenset()


def test_custom_role_may_hold_what_this_version_does_not_know() -> None:
    assert tree(bound("user:alice", "r")).permissions(ALICE, THE_CLUSTER) == {"vm.console", "vm.teleport"}


def test_api_key_has_what_its_owner_has() -> None:
    assert tree(bound("user:alice", VIEWER)).permissions(api_key_of("alice"), Place("p")) == tree(
        bound("user:alice", VIEWER)
    ).permissions(ALICE, Place("p"))


def test_scope_is_a_ceiling_and_gives_nothing() -> None:
    scope = Scope(frozenset({"p"}), frozenset({"vm.read", "user.delete"}))
    key, admin, viewer = api_key_of("alice", scope), bound("user:alice", ADMIN), bound("user:alice", VIEWER)

    assert tree(admin).permissions(key, Place("p")) == {"vm.read", "user.delete"}
    assert tree(viewer).permissions(key, Place("p", "below")) == {"vm.read"}
    assert tree(admin).permissions(key, Place("q")) == frozenset()
    assert tree(admin).permissions(key, THE_CLUSTER) == frozenset()
    assert tree(admin).visible(key, Permission.VM_READ) == VisiblePlaces(frozenset({"p"}))


def test_same_key_with_another_scope_is_not_mistaken_for_it() -> None:
    admin = tree(bound("user:alice", ADMIN))

    assert admin.permissions(api_key_of("alice"), Place("q")) == EVERYTHING
    assert admin.permissions(api_key_of("alice", Scope(frozenset({"p"}))), Place("q")) == frozenset()


@pytest.mark.parametrize("who", [node("n"), Principal(PrincipalKind.CONTROL_PLANE, "c", "c")])
def test_machines_have_no_roles(who: Principal) -> None:
    assert tree(bound("user:n", ADMIN)).permissions(who, THE_CLUSTER) == frozenset()


def test_viewer_sees_and_operator_gives_nothing_away() -> None:
    roles = tree(bound("user:alice", OPERATOR), bound("user:bob", VIEWER))
    operator, viewer = (roles.permissions(who, THE_CLUSTER) for who in (ALICE, user("bob")))

    assert viewer < operator < EVERYTHING
    assert all(each.endswith(".read") for each in viewer)
    assert not any(each.startswith(("user.", "role.", "audit.", "project.c", "project.d", "ha.o")) for each in operator)


def test_folder_that_is_said_to_be_of_another_project_is_not_remembered_for_the_right_one() -> None:
    of_folder = tree(bound("user:alice", OPERATOR, Place("p", "top")))

    assert of_folder.permissions(ALICE, Place("q", "top")) == frozenset()
    assert "vm.power" in of_folder.permissions(ALICE, Place("p", "top"))
    assert of_folder.permissions(ALICE, Place("q", "top")) == frozenset()


@st.composite
def cases(draw: st.DrawFn) -> tuple[AccessTree, Principal]:
    """A tree with bindings anywhere, and somebody who may have a scope."""
    projects = [f"p{number}" for number in range(draw(st.integers(1, 3)))]
    folders: dict[str, FolderPlace] = {}
    for number in range(draw(st.integers(0, 6))):
        project = draw(st.sampled_from(projects))
        above = ["", *(each for each, place in folders.items() if place.project_id == project)]
        folders[f"f{number}"] = FolderPlace(project, draw(st.sampled_from(above)))
    places = [THE_CLUSTER, *map(Place, projects), *(Place(each.project_id, key) for key, each in folders.items())]
    bindings = draw(
        st.lists(
            st.builds(
                bound, st.sampled_from(["user:alice", "group:ops", "user:bob"]), st.sampled_from([VIEWER, "r"]),
                st.sampled_from(places),
            ),
            max_size=4,
        )
    )  # fmt: skip
    scope = draw(
        st.none()
        | st.builds(
            Scope,
            st.frozensets(st.sampled_from(projects), max_size=2),
            st.sampled_from([frozenset(), frozenset({"vm.read"}), frozenset({"vm.console"})]),
        )
    )
    who = ALICE if scope is None else replace(api_key_of("alice", scope), groups=ALICE.groups)
    facts = AccessFacts(1, {each: each for each in projects}, folders, {"r": CONSOLES}, tuple(bindings))
    return AccessTree(facts), who


@given(cases(), st.sampled_from([Permission.VM_READ, Permission.VM_CONSOLE]))
def test_what_is_seen_is_where_the_permission_is(case: tuple[AccessTree, Principal], permission: Permission) -> None:
    which, who = case
    facts = which._facts
    visible = which.visible(who, permission)

    has = permission in which.permissions(who, THE_CLUSTER)
    assert (visible is None) == has
    if visible is not None:
        projects = {each for each in facts.projects if permission in which.permissions(who, Place(each))}
        folders = {
            key
            for key, folder in facts.folders.items()
            if folder.project_id not in projects and permission in which.permissions(who, Place(folder.project_id, key))
        }
        assert (set(visible.project_ids), set(visible.folder_ids)) == (projects, folders)


def test_what_many_see_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.access.tree.MAX_VISIBLE_IDS", 50)
    projects = {f"p{number}": "" for number in range(10)}
    bindings = tuple(bound("group:all", VIEWER, Place(each)) for each in projects)
    of_many = AccessTree(AccessFacts(1, projects, {}, {}, bindings))

    for number in range(100):
        seen = of_many.visible(user(f"u{number}", "all"), Permission.VM_READ)
        assert seen is not None
        assert len(seen.project_ids) == 10

    assert len(of_many._visible) <= 5


def test_what_somebody_sees_is_found_without_looking_at_every_folder() -> None:
    """With 20,000 folders: working it out from each of them takes a second for each caller."""
    folders = {f"f{number}": FolderPlace("p", "") for number in range(20_000)}
    few = AccessTree(AccessFacts(1, PROJECTS, folders, {}, (bound("user:alice", VIEWER, Place("p", "f7")),)))
    begun_s = time.perf_counter()
    for number in range(100):
        few.visible(user("alice", f"g{number}"), Permission.VM_READ)

    assert time.perf_counter() - begun_s < 20.0
