"""What a guest is told at its first boot: the caller's texts stay data, and ours are added to them as data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from lxml import etree
from pycdlib import PyCdlib

from hypervisor.types import DiskBus
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.first_boot import Faults, FirstBoot, MediumFormat, first_boot_of, hostname_of
from nodedaemon.first_boot_media import iso_image, medium_of
from nodedaemon.storage_paths import StoragePaths

VM_ID = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB2k alice@desk"
NS = "{urn:schemas-microsoft-com:unattend}"


def told(name: str = "web-1", **given: Any) -> FirstBoot:
    found = first_boot_of(VM_ID, name, pb.VMSpec(**given))
    assert found is not None
    return found


def meta_data(name: str = "web-1", **texts: Any) -> dict[str, Any]:
    document = yaml.safe_load(told(name, cloud_init=pb.CloudInitConfig(**texts)).files["meta-data"])
    assert isinstance(document, dict)
    return document


def faults_of(**given: Any) -> list[str]:
    with pytest.raises(Faults) as caught:
        first_boot_of(VM_ID, "web-1", pb.VMSpec(**given))
    return [violation.field for violation in caught.value.violations]


def test_first_boot_of_a_plain_vm_is_nothing() -> None:
    assert first_boot_of(VM_ID, "web-1", pb.VMSpec()) is None


def test_empty_cloud_init_tells_the_vms_id_and_name() -> None:
    found = told(cloud_init=pb.CloudInitConfig())
    assert found.format is MediumFormat.NO_CLOUD
    assert sorted(found.files) == ["meta-data", "user-data"]
    assert found.files["user-data"].startswith(b"#cloud-config\n")
    assert meta_data() == {"instance-id": VM_ID, "local-hostname": "web-1"}


def test_texts_of_the_caller_are_kept_byte_for_byte() -> None:
    user_data = "#cloud-config\nhostname: h\n--==BOUNDARY\nContent-Type: text/x-shellscript\n\nrm -rf /\n"
    found = told(
        cloud_init=pb.CloudInitConfig(
            user_data=user_data, vendor_data="#!/bin/sh\n", network_config="version: 2\n", hostname="h2"
        )
    )
    assert found.files["user-data"] == user_data.encode()
    assert found.files["vendor-data"] == b"#!/bin/sh\n"
    assert found.files["network-config"] == b"version: 2\n"


def test_hostname_and_keys_are_added_to_the_callers_meta_data() -> None:
    given = "instance-id: theirs\ncolour: blue\npublic-keys: [ssh-rsa AAAA bob]\n"
    found = meta_data(meta_data=given, hostname="db.example.org", ssh_authorized_keys=[KEY], user_data="#!/bin/sh\n")
    assert found == {
        "instance-id": VM_ID,
        "local-hostname": "db.example.org",
        "colour": "blue",
        "public-keys": ["ssh-rsa AAAA bob", KEY],
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", [KEY]),
        ("public-keys: ssh-rsa AAAA bob\n", ["ssh-rsa AAAA bob", KEY]),
        ("public-keys: {bob: [ssh-rsa AAAA]}\n", {"bob": ["ssh-rsa AAAA"], "limiquantix": [KEY]}),
    ],
)
def test_keys_are_added_to_every_form_of_keys(given: str, expected: Any) -> None:
    assert meta_data(meta_data=given, ssh_authorized_keys=[KEY])["public-keys"] == expected


def test_settings_with_injected_lines_stay_one_value() -> None:
    hostile = "x\npublic-keys: [evil]\nuser-data: |\n  #!/bin/sh"
    found = meta_data(hostname=hostile, ssh_authorized_keys=['ssh-rsa A "\\n- b\n- c'])
    assert found["local-hostname"] == hostile
    assert found["public-keys"] == ['ssh-rsa A "\\n- b\n- c']
    assert set(found) == {"instance-id", "local-hostname", "public-keys"}


@pytest.mark.parametrize(
    "text",
    ["[a]", "a: [", "just words", "!!python/object/apply:os.system [id]", "[" * 200_000, "{" * 200_000, "- " * 100_000],
)
def test_meta_data_that_is_no_map_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(Faults) as caught:
        first_boot_of(VM_ID, "w", pb.VMSpec(cloud_init=pb.CloudInitConfig(meta_data=f"{text}\n# s3cr3t")))
    assert [violation.field for violation in caught.value.violations] == ["spec.cloud_init.meta_data"]
    assert "s3cr3t" not in str(caught.value)
    assert "os.system" not in str(caught.value)


def test_network_config_that_is_no_map_is_refused() -> None:
    assert faults_of(cloud_init=pb.CloudInitConfig(network_config="eth0")) == ["spec.cloud_init.network_config"]


def test_contents_do_not_show_in_what_is_logged_of_them() -> None:
    assert "s3cr3t" not in repr(told(cloud_init=pb.CloudInitConfig(user_data="password: s3cr3t")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web-1", "web-1"),
        ("Web Server #2", "web-server-2"),
        ("Größe", "groe"),
        ("数据库", "vm-5f7c1a52"),
        ("-.-", "vm-5f7c1a52"),
        ("a" * 255, "a" * 63),
        ("../../etc", "etc"),
    ],
)
def test_hostname_is_made_of_a_name_as_far_as_it_goes(name: str, expected: str) -> None:
    assert hostname_of(name, VM_ID) == expected


def test_medium_is_in_a_drive_that_the_guest_has_a_driver_for(tmp_path: Path) -> None:
    paths = StoragePaths(tmp_path)
    cloud = told(cloud_init=pb.CloudInitConfig())
    windows = told(cloud_init=pb.CloudInitConfig(), guest_os="windows_server")
    answers = told(sysprep=pb.SysprepConfig())
    media = [medium_of(VM_ID, each, paths) for each in (cloud, windows, answers)]
    assert [each.bus for each in media if each is not None] == [DiskBus.SCSI, DiskBus.SATA, DiskBus.SATA]
    assert medium_of(VM_ID, None, paths) is None


def test_two_methods_at_once_are_refused() -> None:
    given = {"cloud_init": pb.CloudInitConfig(), "ignition": pb.IgnitionConfig(config="{}")}
    assert faults_of(**given) == ["spec.ignition"]


def test_digest_changes_with_any_contents() -> None:
    texts = ("a", "b", "")
    digests = {told(cloud_init=pb.CloudInitConfig(user_data=text, vendor_data="v")).digest for text in texts}
    assert len(digests) == 3


# -- Ignition


def test_ignition_is_kept_as_it_is() -> None:
    text = '{"ignition": {"version": "3.4.0"}, "passwd": {}}'
    found = told(ignition=pb.IgnitionConfig(config=text))
    assert found.format is MediumFormat.IGNITION
    assert list(found.files.values()) == [text.encode()]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"ignition": {}}', '{"ignition": []}', "[" * 200_000])
def test_ignition_that_is_none_is_refused(text: str) -> None:
    assert faults_of(ignition=pb.IgnitionConfig(config=text)) == ["spec.ignition.config"]


# -- Windows


def answers(**config: str) -> etree._Element:
    found = told("Win Server 2022 number one", sysprep=pb.SysprepConfig(**config))
    assert found.format is MediumFormat.UNATTEND
    assert sorted(found.files) == ["Unattend.xml", "autounattend.xml"]
    return etree.fromstring(found.files["Unattend.xml"])


def text_at(root: etree._Element, component: str, *path: str) -> str | None:
    settings = next(each for each in root.findall(f"{NS}settings") if each.get("pass") == "specialize")
    found = next(each for each in settings.findall(f"{NS}component") if each.get("name") == component)
    return found.findtext("/".join(NS + name for name in path))


def test_answer_file_is_made_of_the_settings_as_data() -> None:
    password = "p<&>\"']]><Evil/>"
    root = answers(product_key="AAAAA-BBBBB", domain="corp", domain_user="joiner", domain_password=password)
    join = "Microsoft-Windows-UnattendedJoin"
    assert text_at(root, "Microsoft-Windows-Shell-Setup", "ProductKey") == "AAAAA-BBBBB"
    assert text_at(root, "Microsoft-Windows-Shell-Setup", "ComputerName") == "win-server-2022"
    assert text_at(root, join, "Identification", "JoinDomain") == "corp"
    assert text_at(root, join, "Identification", "Credentials", "Username") == "joiner"
    assert text_at(root, join, "Identification", "Credentials", "Password") == password


def test_answer_file_of_the_caller_wins_over_the_settings() -> None:
    given = (
        '<unattend xmlns="urn:schemas-microsoft-com:unattend"><settings pass="specialize">'
        '<component name="Microsoft-Windows-Shell-Setup"><ProductKey>THEIRS</ProductKey></component></settings>'
        '<settings pass="oobeSystem"/></unattend>'
    )
    root = answers(unattend_xml=given, product_key="OURS")
    assert text_at(root, "Microsoft-Windows-Shell-Setup", "ProductKey") == "THEIRS"
    assert [each.get("pass") for each in root.findall(f"{NS}settings")] == ["specialize", "oobeSystem"]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"unattend_xml": "<unattend/>"}, "unattend_xml"),
        ({"unattend_xml": "<unattend"}, "unattend_xml"),
        (
            {
                "unattend_xml": '<!DOCTYPE u [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
                '<unattend xmlns="urn:schemas-microsoft-com:unattend">&e;</unattend>'
            },
            "unattend_xml",
        ),
        ({"domain_password": "s3cr3t"}, "domain"),
        ({"domain": "corp", "domain_user": "u", "domain_password": "s3cr3t\ufffe"}, "domain_password"),
    ],
)
def test_answers_that_cannot_be_are_refused_without_showing_them(config: dict[str, str], field: str) -> None:
    with pytest.raises(Faults) as caught:
        first_boot_of(VM_ID, "w", pb.VMSpec(sysprep=pb.SysprepConfig(**config)))
    assert [violation.field for violation in caught.value.violations] == [f"spec.sysprep.{field}"]
    assert "s3cr3t" not in str(caught.value)


# -- the image


def test_iso_image_has_the_files_under_their_names_in_both_extensions() -> None:
    files = {"user-data": b"u" * 5000, "meta-data": b"m", "network-config": b"", "vendor-data": b"v"}
    iso = PyCdlib()
    iso.open_fp(io.BytesIO(iso_image("cidata", files)))
    try:
        assert iso.pvd.volume_identifier.decode().strip() == "cidata"
        for name, contents in files.items():
            for path in ({"rr_path": f"/{name}"}, {"joliet_path": f"/{name}"}):
                found = io.BytesIO()
                iso.get_file_from_iso_fp(found, **path)
                assert found.getvalue() == contents
    finally:
        iso.close()
