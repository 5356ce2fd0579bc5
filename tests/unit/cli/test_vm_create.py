from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_http_api import NODE_ID, PROJECT_ID, Document, FakeApi, Run, node, uuid_of, vm


def _created(api: FakeApi, run: Run, *arguments: str, **options: Any) -> Document:
    api.answers["CreateVM"] = lambda _: vm("web")
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}
    result = run("vm", "create", *arguments, "-o", "json", **options)
    assert result.exit_code == 0, result.stderr
    return api.request("CreateVM")


def test_create_options_make_the_documented_request(api: FakeApi, run: Run) -> None:
    request = _created(
        api,
        run,
        *("web", "--cpus", "2", "--memory", "1.5GiB", "--label", "a=b", "--label", "c=", "--description", "d"),
        *("--disk", "20GiB", "--disk", "size=1TiB,bus=virtio-scsi,format=raw,cache=none,readonly"),
        *("--disk", "backing=/img/a.qcow2,pool=p", "--nic", "bridge=virbr0,model=e1000,mac=52:54:00:00:00:01"),
        *("--nic", "nat", "--nic", "nat,model=virtio-net", "--cdrom", "/iso/a.iso"),
        *("--kernel", "/k", "--initrd", "/i", "--cmdline", "console=ttyS0", "--firmware", "uefi-secure-boot"),
        *("--project", PROJECT_ID, "--node", "host-1", "--start"),
    )
    assert request == {
        "name": "web",
        "projectId": PROJECT_ID,
        "description": "d",
        "labels": {"a": "b", "c": ""},
        "nodeId": NODE_ID,
        "startOnCreate": True,
        "spec": {
            "cpu": {"cores": 2},
            "memory": {"sizeMib": 1536},
            "disks": [
                {"sizeGib": 20},
                {"sizeGib": 1024, "bus": "VIRTIO_SCSI", "format": "RAW", "cache": "NONE", "readonly": True},
                {"backingFile": "/img/a.qcow2", "storagePoolId": "p"},
            ],
            "nics": [
                {"bridge": "virbr0", "model": "E1000", "macAddress": "52:54:00:00:00:01"},
                {},
                {"model": "VIRTIO_NET"},
            ],
            "cdroms": [{"isoPath": "/iso/a.iso", "connected": True}],
            "boot": {"directBoot": {"kernelPath": "/k", "initrdPath": "/i", "cmdline": "console=ttyS0"}},
            "firmware": "UEFI_SECURE_BOOT",
        },
    }


@pytest.mark.parametrize(
    "text",
    [
        "name: web\nlabels: {a: '1', b: '2'}\nspec:\n  cpu: {cores: 1}\n"
        "  memory: {size_mib: 128, ballooning_enabled: true}",
        '{"name":"web","labels":{"a":"1","b":"2"},"spec":{"cpu":{"cores":1},'
        '"memory":{"sizeMib":128,"ballooning_enabled":true}}}',
    ],
)
def test_create_from_file_options_win_whatever_spelling_the_file_uses(
    api: FakeApi, run: Run, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    request = _created(api, run, "--from-file", str(path), "--memory", "1GiB", "--label", "b=3")
    assert request == {
        "name": "web",
        "labels": {"a": "1", "b": "3"},
        "spec": {"cpu": {"cores": 1}, "memory": {"sizeMib": 1024, "ballooning_enabled": True}},
    }


def test_create_from_standard_input_may_be_the_spec_alone(api: FakeApi, run: Run) -> None:
    request = _created(api, run, "web", "--from-file", "-", input="cpu: {cores: 1}\nmemory: {sizeMib: 128}\n")
    assert request == {"name": "web", "spec": {"cpu": {"cores": 1}, "memory": {"sizeMib": 128}}}


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 10)}]\n" for before, after in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a\n- b\n", "must hold fields"),
        ("a: [", "neither YAML nor JSON"),
        ("spec: {cpu: 3}", "'cpu' in the file must hold fields"),
        ("spec: []", "'spec' in the file must hold fields"),
        ("when: 2024-01-01", "quote it"),
        ("spec: {memory: {overcommit_ratio: .nan}}", "quote it"),
        ("a: &a [*a]", "more than 100000 values"),
        (ALIASES, "more than 100000 values"),
        ("a: !!python/object/apply:os.system [id]", "neither YAML nor JSON"),
        ("\x00", "neither YAML nor JSON"),
        ("[" * 5000, "neither YAML nor JSON"),
        ("x: " + "y" * 2**20, "larger than 1 MiB"),
    ],
)
def test_create_from_file_that_cannot_be_used_is_a_usage_error(
    api: FakeApi, run: Run, tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(content)
    result = run("vm", "create", "web", "--cpus", "1", "--from-file", str(path))
    assert result.exit_code == 2
    assert words in result.stderr
    assert api.requests == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "1GiB"], "needs a name"),
        (["web", "--memory", "1GB"], "write GiB"),
        (["web", "--memory", "1"], "write 1MiB or 1GiB"),
        (["web", "--disk", "512MiB"], "whole number of GiB"),
        (["web", "--disk", "20GiB,size=1GiB,colour=red"], "'colour' is no property of a disk"),
        (["web", "--nic", "virbr0"], "'virbr0' is no property of a network card"),
        (["web", "--label", "novalue"], "is not key=value"),
        (["web", "--label", "=v"], "is not key=value"),
        (["web", "--firmware", "coreboot"], "coreboot"),
        (["web", "--cpus", "0"], "0 is not in the range"),
        (["web", "--from-file", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_create_wrong_command_line_is_refused_before_anything_is_sent(
    api: FakeApi, run: Run, arguments: list[str], words: str
) -> None:
    result = run("vm", "create", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert api.requests == []


def test_update_sends_what_is_named_and_keeps_other_labels(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web", 5, labels={"keep": "1", "drop": "2", "set": "3"}))
    api.answers["UpdateVM"] = lambda _: vm("web", 5)
    arguments = ["--cpus", "4", "--memory", "2GiB", "--description", "", "--label", "set=4", "--remove-label", "drop"]
    assert run("vm", "update", "web", *arguments).exit_code == 0
    assert api.request("UpdateVM") == {
        "id": uuid_of(5),
        "spec": {"cpu": {"cores": 4}, "memory": {"sizeMib": 2048}},
        "description": "",
        "labels": {"keep": "1", "set": "4"},
        "updateMask": "spec.cpu.cores,spec.memory.sizeMib,description,labels",
    }


def test_update_of_nothing_is_a_usage_error(api: FakeApi, run: Run) -> None:
    result = run("vm", "update", "web")
    assert result.exit_code == 2
    assert "say what to change" in result.stderr
    assert api.requests == []
