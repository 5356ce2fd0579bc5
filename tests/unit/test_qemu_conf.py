"""The settings for QEMU are ones that libvirt knows, and none of them makes QEMU root."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SETTINGS = (Path(__file__).resolve().parents[2] / "deploy" / "qemu.conf").read_text()
INSTALLED = Path("/etc/libvirt/qemu.conf")
_SETTING = re.compile(r"^#?([a-z_0-9]+) = ", re.MULTILINE)


def test_settings_keep_qemu_from_its_host() -> None:
    lines = {re.sub(r"\s*#.*", "", line) for line in SETTINGS.splitlines()}

    assert {"seccomp_sandbox = 1", 'namespaces = [ "mount" ]', "dump_guest_core = 0", "dynamic_ownership = 1"} <= lines
    assert not any(line.startswith(("user", "group")) for line in lines)


@pytest.mark.skipif(not INSTALLED.is_file(), reason="libvirt is not installed")
def test_settings_are_ones_that_libvirt_knows() -> None:
    known = set(_SETTING.findall(INSTALLED.read_text()))

    assert set(re.findall(r"^([a-z_0-9]+) = ", SETTINGS, re.MULTILINE)) <= known
