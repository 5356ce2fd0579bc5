"""Builds the configuration of a VM from options and from a file, in the API's own JSON.

What an option says replaces what the file says of the same thing. Rules of the API are not repeated here: the server
checks, and names every fault at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import click

from controlplane.cli.sizes import parse_gib, parse_mib

Document = dict[str, Any]

MAX_FILE_BYTES = 1024 * 1024
"""A configuration is a few KiB; anything much larger is the wrong file."""
MAX_FILE_VALUES = 100_000
"""Aliases of YAML let a small file stand for an endless document."""

FIRMWARES = {"bios": "BIOS", "uefi": "UEFI", "uefi-secure-boot": "UEFI_SECURE_BOOT"}


class MemorySize(click.ParamType[int]):
    """Memory in MiB, written with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the size."""
        if isinstance(value, int):
            return value
        try:
            return parse_mib(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Label(click.ParamType[tuple[str, str]]):
    """A label, "key=value"."""

    name = "label"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split the label at its first equals sign."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not key=value", param, ctx)
        return key, text


class Disk(click.ParamType[Document]):
    """A disk: its size, then properties, separated by commas."""

    name = "disk"

    _ENUMS = ("bus", "format", "provisioning", "cache")
    _NAMES: Mapping[str, str] = {
        "id": "id",
        "backing": "backingFile",
        "source": "sourceFile",
        "volume": "volumeId",
        "pool": "storagePoolId",
    }
    _FLAGS: Mapping[str, str] = {"readonly": "readonly", "discard": "discardEnabled"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Document:
        """Read for example "20GiB,bus=virtio-scsi,format=raw"."""
        if isinstance(value, dict):
            return value
        disk: Document = {}
        for part in value.split(","):
            key, equals, text = part.partition("=")
            if key in self._FLAGS and not equals:
                disk[self._FLAGS[key]] = True
            elif not equals or key == "size":
                disk["sizeGib"] = self._size(text or part, param, ctx)
            elif key in self._ENUMS:
                disk[key] = enum_name(text)
            elif key == "source-format":
                disk["sourceFormat"] = f"SOURCE_FORMAT_{enum_name(text)}"
            elif key in self._NAMES:
                disk[self._NAMES[key]] = text
            else:
                known = ", ".join((*self._ENUMS, *self._NAMES, "source-format", *self._FLAGS))
                self.fail(f"{key!r} is no property of a disk; properties are size, {known}", param, ctx)
        return disk

    def _size(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_gib(text)
        except ValueError as error:
            self.fail(f"disk size: {error}", param, ctx)


class Nic(click.ParamType[Document]):
    """A network card: properties separated by commas, or "nat" for one that only reaches outside."""

    name = "nic"

    _NAMES: Mapping[str, str] = {
        "bridge": "bridge",
        "host-network": "hostNetwork",
        "network": "networkId",
        "mac": "macAddress",
        "model": "model",
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Document:
        """Read for example "bridge=virbr0,model=e1000"."""
        if isinstance(value, dict):
            return value
        nic: Document = {}
        for index, part in enumerate(value.split(",")):
            key, equals, text = part.partition("=")
            if part == "nat" and index == 0:
                continue
            if not equals or key not in self._NAMES:
                known = ", ".join(self._NAMES)
                self.fail(f"{part!r} is no property of a network card; write nat, or {known} with =", param, ctx)
            nic[self._NAMES[key]] = enum_name(text) if key == "model" else text
        return nic


def enum_name(text: str) -> str:
    """Write a value as the API names it: "virtio-scsi" is VIRTIO_SCSI."""
    return text.upper().replace("-", "_")


@dataclass(frozen=True, slots=True)
class VmOptions:
    """What the options of `vm create` say; None and empty leave it to the file and the server."""

    name: str | None = None
    project_id: str | None = None
    description: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    cpus: int | None = None
    memory_mib: int | None = None
    disks: tuple[Document, ...] = ()
    nics: tuple[Document, ...] = ()
    cdroms: tuple[str, ...] = ()
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    firmware: str | None = None


def create_request(options: VmOptions, file: Document) -> Document:
    """Build a CreateVMRequest.

    Args:
        file: a CreateVMRequest, or only its `spec`; camelCase or snake_case.

    Raises:
        UsageError: neither names the VM, or the file holds something else than objects where objects belong.
    """
    request = dict(file) if not file or "spec" in file else {"spec": file}
    _set(request, "name", options.name)
    _set(request, "projectId", options.project_id)
    _set(request, "description", options.description)
    if options.labels:
        request["labels"] = {**_object(request, "labels"), **dict(options.labels)}
    request["spec"] = _spec(options, _object(request, "spec"))
    if not request.get("name"):
        raise click.UsageError("the VM needs a name: give NAME, or a file that has one")
    return request


def _spec(options: VmOptions, spec: Document) -> Document:
    _set_inside(spec, ("cpu", "cores"), options.cpus)
    _set_inside(spec, ("memory", "sizeMib"), options.memory_mib)
    _set(spec, "disks", list(options.disks) or None)
    _set(spec, "nics", list(options.nics) or None)
    _set(spec, "cdroms", [{"isoPath": path, "connected": True} for path in options.cdroms] or None)
    _set_inside(spec, ("boot", "directBoot", "kernelPath"), options.kernel)
    _set_inside(spec, ("boot", "directBoot", "initrdPath"), options.initrd)
    _set_inside(spec, ("boot", "directBoot", "cmdline"), options.cmdline)
    _set(spec, "firmware", FIRMWARES[options.firmware] if options.firmware else None)
    return spec


def _set(document: Document, field: str, value: Any) -> None:
    """Set a field under its camelCase name, whichever name the document used; None sets nothing."""
    if value is not None:
        document.pop(_snake_case(field), None)
        document[field] = value


def _set_inside(document: Document, path: tuple[str, ...], value: Any) -> None:
    if value is None:
        return
    *parents, field = path
    for parent in parents:
        inner = _object(document, parent)
        _set(document, parent, inner)
        document = inner
    _set(document, field, value)


def _object(document: Document, field: str) -> Document:
    """Return a copy of an object inside a document, under either of its names; empty if it is not there."""
    inner = document.get(field, document.get(_snake_case(field)))
    if inner is None:
        return {}
    if not isinstance(inner, dict):
        raise click.UsageError(f"{field!r} in the file must hold fields, not {type(inner).__name__}")
    return dict(inner)


def _snake_case(field: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in field)


def read_document(stream: IO[bytes]) -> Document:
    """Read a YAML or JSON file, which is YAML too.

    Raises:
        UsageError: it is too large, is neither, or holds something JSON cannot express.
    """
    import yaml  # noqa: PLC0415 - start-up time

    name = getattr(stream, "name", "the file")
    data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise click.UsageError(f"{name} is larger than 1 MiB, which no configuration of a VM is")
    try:
        document = yaml.safe_load(data)
        _require_bounded(document, name)
        json.dumps(document, allow_nan=False)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise click.UsageError(f"{name} is neither YAML nor JSON: {error}") from error
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"{name} holds a value that the API has no form for: {error}; quote it") from error
    if not isinstance(document, dict):
        raise click.UsageError(f"{name} must hold fields such as spec and labels")
    return document


def _require_bounded(document: Any, name: str) -> None:
    waiting, seen = [document], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > MAX_FILE_VALUES:
            raise click.UsageError(
                f"{name} stands for more than {MAX_FILE_VALUES} values; does an alias repeat itself?"
            )
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
