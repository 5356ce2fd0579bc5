"""`vm clone`, `vm template` and the options of the first boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_http_api import FakeApi, Run, node, vm


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "key.pub").write_text("# mine\nssh-ed25519 AAAA me\n\nssh-rsa BBBB you\n")
    (tmp_path / "user").write_text("#cloud-config\n{}\n")
    (tmp_path / "config.ign").write_text("{}")
    return tmp_path


def test_clone_makes_the_documented_request(api: FakeApi, run: Run, files: Path) -> None:
    api.have_vms(vm("web"))
    api.answers["CloneVM"] = lambda _: vm("web-2")
    result = run(
        *("vm", "clone", "web", "web-2", "--linked", "--start", "--hostname", "h", "--ssh-key", str(files / "key.pub")),
        *("--user-data", str(files / "user"), "-o", "json"),
    )
    assert result.exit_code == 0, result.stderr
    assert api.request("CloneVM") == {
        "sourceVmId": vm("web")["id"],
        "name": "web-2",
        "projectId": "",
        "cloneType": "LINKED",
        "startOnCreate": True,
        "provisioning": {
            "cloudInit": {
                "userData": "#cloud-config\n{}\n",
                "hostname": "h",
                "sshAuthorizedKeys": ["ssh-ed25519 AAAA me", "ssh-rsa BBBB you"],
            }
        },
    }


def test_template_is_made_and_released(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web"))
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}
    api.answers["ConvertToTemplate"] = lambda _: vm("web")
    api.answers["UpdateVM"] = lambda _: vm("web")
    assert run("vm", "template", "create", "web").exit_code == 0
    assert api.request("ConvertToTemplate") == {"vmId": vm("web")["id"]}
    assert run("vm", "template", "release", "web").exit_code == 0
    assert api.request("UpdateVM") == {"id": vm("web")["id"], "updateMask": "spec.template.isTemplate"}


@pytest.mark.parametrize("output", ["table", "json"])
def test_template_list_shows_templates_only(api: FakeApi, run: Run, output: str) -> None:
    golden = vm("golden")
    golden["spec"] = {**golden.get("spec", {}), "template": {"isTemplate": True}}
    api.have_vms(vm("web"), golden)
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}
    result = run("vm", "template", "list", "-o", output)
    assert result.exit_code == 0, result.stderr
    assert "golden" in result.stdout
    assert "web" not in result.stdout


def test_create_from_template_names_it_by_id(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("golden"))
    api.answers["CreateVM"] = lambda _: vm("web")
    result = run("vm", "create", "web", "--template", "golden", "--linked", "--hostname", "h", "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert api.request("CreateVM") == {
        "name": "web",
        "templateId": vm("golden")["id"],
        "spec": {"provisioning": {"cloudInit": {"hostname": "h"}}, "template": {"cloneType": "LINKED"}},
    }


def test_update_of_the_first_boot_names_each_setting(api: FakeApi, run: Run, files: Path) -> None:
    api.have_vms(vm("web"))
    api.answers["UpdateVM"] = lambda _: vm("web")
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}
    result = run("vm", "update", "web", "--hostname", "h", "--user-data", str(files / "user"))
    assert result.exit_code == 0, result.stderr
    assert sorted(api.request("UpdateVM")["updateMask"].split(",")) == [
        "spec.provisioning.cloudInit.hostname",
        "spec.provisioning.cloudInit.userData",
    ]


def test_two_methods_of_first_boot_at_once_are_refused(api: FakeApi, run: Run, files: Path) -> None:
    result = run("vm", "create", "web", "--hostname", "h", "--ignition", str(files / "config.ign"))
    assert result.exit_code == 2
    assert "one only" in result.stderr


@pytest.mark.parametrize(("contents", "words"), [(b"x" * 262_145, "larger than"), (b"\xff\xfe", "no UTF-8")])
def test_file_that_cannot_be_sent_is_refused(run: Run, tmp_path: Path, contents: bytes, words: str) -> None:
    path = tmp_path / "user"
    path.write_bytes(contents)
    result = run("vm", "create", "web", "--user-data", str(path))
    assert result.exit_code == 2
    assert words in result.stderr
