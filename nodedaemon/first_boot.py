"""Work out what a guest is told at its first boot: the files of its medium, from the texts and settings of a request.

Texts of a caller are data: they are taken as they are, or read by a parser, changed as a tree and written again. No
message names any of their contents, since they may hold secrets.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from limiquantix.errors import FieldViolation
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon import sysprep

MAX_HOSTNAME_LENGTH: Final = 63
_WINDOWS: Final = "windows"
"""How the names of its families begin."""
_EMPTY_USER_DATA: Final = b"#cloud-config\n{}\n"
"""cloud-init wants the file to be there. Source: cloudinit/sources/DataSourceNoCloud.py, `required`."""


class MediumFormat(enum.Enum):
    """What reads the medium, and so how it looks."""

    NO_CLOUD = "cidata"
    """An ISO image with this label. Source: docs.cloud-init.io, "NoCloud"."""
    UNATTEND = "UNATTEND"
    """An ISO image; Windows looks at all of them."""
    IGNITION = "ignition"
    """The bare file."""


@dataclass(frozen=True, slots=True)
class FirstBoot:
    """What a guest is told, by name of the file. May hold secrets, so it has no readable form."""

    format: MediumFormat
    files: Mapping[str, bytes]
    is_for_windows: bool = False

    @property
    def digest(self) -> str:
        """Changes with any of the contents."""
        digest = hashlib.sha256(self.format.value.encode())
        for name, contents in sorted(self.files.items()):
            digest.update(f"\0{name}\0{len(contents)}\0".encode() + contents)
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"FirstBoot({self.format.name}, {', '.join(sorted(self.files))})"


class Faults(Exception):
    """What is wrong with a request's texts, named by field path."""

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{violation.field}: {violation.description}" for violation in violations))
        self.violations = violations


def first_boot_of(vm_id: str, name: str, spec: pb.VMSpec) -> FirstBoot | None:
    """Return what the VM's guest is told; None if it is told nothing.

    Raises:
        Faults: a text is not what it must be.
    """
    given = [field for field in ("cloud_init", "ignition", "sysprep") if spec.HasField(field)]
    if len(given) > 1:
        raise Faults(FieldViolation(f"spec.{given[1]}", f"cannot be given together with {given[0]}"))
    if spec.HasField("cloud_init"):
        return _no_cloud(vm_id, name, spec.cloud_init, is_for_windows=spec.guest_os.startswith(_WINDOWS))
    if spec.HasField("ignition"):
        return _ignition(spec.ignition)
    if spec.HasField("sysprep"):
        return _sysprep(name, vm_id, spec.sysprep)
    return None


def hostname_of(name: str, vm_id: str) -> str:
    """Make a host name of a VM's name, as far as its characters allow."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:MAX_HOSTNAME_LENGTH].strip("-")
    return words.lower() or f"vm-{vm_id[:8]}"


def _no_cloud(vm_id: str, name: str, config: pb.CloudInitConfig, *, is_for_windows: bool) -> FirstBoot:
    meta_data = _read_yaml("spec.cloud_init.meta_data", config.meta_data)
    meta_data["instance-id"] = vm_id
    if config.hostname:
        meta_data["local-hostname"] = config.hostname
    elif not meta_data.keys() & {"local-hostname", "hostname"}:
        meta_data["local-hostname"] = hostname_of(name, vm_id)
    if config.ssh_authorized_keys:
        meta_data["public-keys"] = _joined_keys(meta_data.get("public-keys"), list(config.ssh_authorized_keys))
    files = {
        "meta-data": yaml.safe_dump(meta_data, allow_unicode=True, width=2**20).encode(),
        "user-data": config.user_data.encode() or _EMPTY_USER_DATA,
    }
    if config.network_config:
        _read_yaml("spec.cloud_init.network_config", config.network_config)
        files["network-config"] = config.network_config.encode()
    if config.vendor_data:
        files["vendor-data"] = config.vendor_data.encode()
    return FirstBoot(MediumFormat.NO_CLOUD, files, is_for_windows)


def _joined_keys(given: Any, keys: list[str]) -> Any:
    """Add keys to those of the meta-data, in any of the forms that cloud-init knows.

    Source: cloudinit/sources/__init__.py, `normalize_pubkey_data`.
    """
    match given:
        case None:
            return keys
        case str():
            return [*given.splitlines(), *keys]
        case list():
            return [*given, *keys]
        case dict():
            return {**given, "limiquantix": keys}
    field = "spec.cloud_init.meta_data"
    raise Faults(FieldViolation(field, "has public-keys that are neither a list, nor a map, nor a text"))


def _read_yaml(field: str, text: str) -> dict[Any, Any]:
    if not text.strip():
        return {}
    try:
        document = yaml.load(text, _BoundedLoader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise Faults(FieldViolation(field, f"is not sound YAML{where}")) from None
    except (yaml.YAMLError, ValueError, RecursionError, _TooDeep):
        raise Faults(FieldViolation(field, "is not sound YAML, or too deep")) from None
    if not isinstance(document, dict):
        raise Faults(FieldViolation(field, "must be a YAML map"))
    return document


class _TooDeep(Exception):
    """The document is nested deeper than anybody writes."""


class _BoundedLoader(yaml.SafeLoader):
    """A safe loader that gives up on deep nesting, which costs it time beyond all bounds."""

    MAX_DEPTH = 64

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > self.MAX_DEPTH:
            raise _TooDeep
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _ignition(config: pb.IgnitionConfig) -> FirstBoot:
    field = "spec.ignition.config"
    try:
        document = json.loads(config.config)
    except (ValueError, RecursionError):
        raise Faults(FieldViolation(field, "is not sound JSON")) from None
    section = document.get("ignition") if isinstance(document, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get("version"), str):
        raise Faults(FieldViolation(field, "must be an object with ignition.version"))
    return FirstBoot(MediumFormat.IGNITION, {"config.ign": config.config.encode()})


def _sysprep(name: str, vm_id: str, config: pb.SysprepConfig) -> FirstBoot:
    try:
        answers = sysprep.answer_file(
            config.unattend_xml,
            sysprep.Answers(
                computer_name=hostname_of(name, vm_id)[: sysprep.MAX_COMPUTER_NAME_LENGTH].strip("-"),
                product_key=config.product_key,
                domain=config.domain,
                domain_user=config.domain_user,
                domain_password=config.domain_password,
            ),
        )
    except sysprep.BadAnswerFile as error:
        raise Faults(FieldViolation(f"spec.sysprep.{error.field}", str(error))) from None
    # Set-up and the first boot of a generalised image look for different names.
    return FirstBoot(MediumFormat.UNATTEND, {"autounattend.xml": answers, "Unattend.xml": answers}, True)
