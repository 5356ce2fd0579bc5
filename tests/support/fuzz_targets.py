"""Everything of ours that takes apart bytes which others wrote, as functions of bytes.

A target returns whatever is made of the bytes, or of the refusal that the reader documents. Anything else that it
raises is a finding. Seeds are sound inputs, from which fuzzers go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from pydantic import ValidationError

import nodedaemon.config
from controlplane.api.http.json_codec import BinaryCodec, DecodeNotes, StrictJsonCodec, decode_notes
from controlplane.cli.error_details import decode_details
from controlplane.config import ConfigFileUnusable, load_config
from controlplane.domain.quantities import parse_age_s, parse_bytes
from controlplane.services.page_tokens import decode_cursor
from controlplane.simulator.cluster_file import read_cluster
from controlplane.simulator.yaml_tree import FileUnusable
from hypervisor import guest_answers
from hypervisor.guest_answers import BadAnswer
from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.domain_metadata import read_mark
from limiquantix.compute.v1 import node_service_pb2, vm_service_pb2
from limiquantix.errors import ApiError
from limiquantix.join_token import PREFIX, JoinTokenText, JoinTokenUnreadable, decode
from limiquantix.rpc.canonical import canonicalise_ids
from limiquantix.rpc.identity import identity_of
from limiquantix.rpc.validation import require_bounded, validate
from nodedaemon.console_protocols import NotLetIn, SerialDoor, VncDoor
from nodedaemon.image_inspector import SourceFormat, inspect_open
from nodedaemon.image_tables import ImageRefused
from nodedaemon.qcow2_header import NotQcow2, read_header_of
from nodedaemon.spice_entries import NotSpice, _message
from tests.support.hostile_images import qcow2, vmdk

MAX_BYTES = 400_000


@dataclass(frozen=True, slots=True)
class Target:
    """One reader."""

    name: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


# -- requests


def _judged(message: Message) -> object:
    """Go on with a message as the pipeline does."""
    with contextlib.suppress(ApiError):
        require_bounded(message)
        canonicalise_ids(message)
        validate(message, {})
    return message


def _json(kind: type[Message]) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        token = decode_notes.set(DecodeNotes())
        try:
            message = StrictJsonCodec().decode(data, kind)
            json.loads(StrictJsonCodec().encode(message))
            return _judged(message)
        except ApiError as error:
            return error
        finally:
            decode_notes.reset(token)

    return run


def _binary(data: bytes) -> object:
    try:
        return _judged(BinaryCodec().decode(data, node_service_pb2.SyncFullStateRequest))
    except ApiError as error:
        return error


def _page_token(data: bytes) -> object:
    try:
        return decode_cursor(data.decode("utf-8", "replace"), vm_service_pb2.ListVMsRequest())
    except ApiError as error:
        return error


def _join_token(data: bytes) -> object:
    text = data.decode("utf-8", "replace")
    try:
        return decode(text if text.startswith(PREFIX) else PREFIX + text)
    except JoinTokenUnreadable as error:
        return error


def _machine_name(data: bytes) -> object:
    return identity_of(data.decode("utf-8", "replace"))


def _quantity(data: bytes) -> object:
    found = []
    for read in (parse_bytes, parse_age_s):
        with contextlib.suppress(ValueError):
            found.append(read(data.decode("utf-8", "replace")))
    return found


def _details(data: bytes) -> object:
    try:
        return decode_details(json.loads(data))
    except (ValueError, RecursionError):
        return None


# -- files


def _with_file(data: bytes, look: Callable[[int], object]) -> object:
    file = os.memfd_create("fuzzed")
    try:
        os.write(file, data[:MAX_BYTES])
        return look(file)
    finally:
        os.close(file)


def _image(stated: SourceFormat) -> Callable[[bytes], object]:
    path = Path(f"fuzzed.{stated.value}")

    def run(data: bytes) -> object:
        try:
            return _with_file(data, lambda file: inspect_open(path, file, stated))
        except ImageRefused as error:
            return error

    return run


def _header(data: bytes) -> object:
    try:
        return _with_file(data, read_header_of)
    except NotQcow2 as error:
        return error


def _cluster_file(data: bytes) -> object:
    try:
        return read_cluster(data)
    except FileUnusable as error:
        return error


def _config(data: bytes) -> object:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        try:
            return load_config(Path(file.name), {})
        except (ConfigFileUnusable, ValidationError) as error:
            return error


def _node_config(data: bytes) -> object:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        try:
            return nodedaemon.config.load_config(Path(file.name), {})
        except nodedaemon.config.ConfigError as error:
            return error


# -- what guests and viewers say

_ANSWERS: Sequence[Callable[[Any], object]] = (
    guest_answers.read_version,
    guest_answers.read_system,
    guest_answers.read_hostname,
    guest_answers.read_interfaces,
    guest_answers.read_file_systems,
    guest_answers.read_users,
    guest_answers.read_count,
    guest_answers.read_freeze_status,
    guest_answers.read_time_ns,
    guest_answers.read_pid,
    lambda value: guest_answers.read_process(value, 1_000),
    guest_answers.read_handle,
    lambda value: guest_answers.read_piece(value, 1_000),
    lambda value: guest_answers.read_written(value, 1_000),
    guest_answers.read_position,
)


def _guest_answer(data: bytes) -> object:
    try:
        value = guest_answers.parse(data.decode("utf-8", "replace"))
    except BadAnswer as error:
        return error
    found = []
    for read in _ANSWERS:
        with contextlib.suppress(BadAnswer):
            found.append(read(value))
    return found


def _definition(data: bytes) -> object:
    try:
        tree = domain_xml.parse(data.decode("utf-8", "replace"))
    except ValueError as error:  # lxml's are; libvirt itself writes the document, users of libvirt parts of it
        return error
    except SyntaxError as error:
        return error
    return read_mark(tree)


class _Deaf(asyncio.Transport):
    """Somebody who does not listen to what they are told."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


def _spoken(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]],
) -> Callable[[bytes], object]:
    async def conversation(data: bytes) -> object:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        writer = asyncio.StreamWriter(_Deaf(), asyncio.StreamReaderProtocol(reader), reader, loop)
        try:
            return await talk(reader, writer)
        except (NotLetIn, NotSpice, asyncio.IncompleteReadError) as error:
            return error

    loops: list[asyncio.AbstractEventLoop] = []

    def run(data: bytes) -> object:
        if not loops:
            loops.append(asyncio.new_event_loop())
        return loops[0].run_until_complete(conversation(data))

    return run


def _targets() -> Sequence[Target]:
    create = b'{"name":"web-1","spec":{"cpu":{"cores":2},"memory":{"sizeMib":"512"},"disks":[{"sizeGib":1}]}}'
    token = JoinTokenText("0b0f5d3e", "s" * 32, b"\x30\x82", ("10.0.0.1:8082",)).encode().encode()
    node = b"limiquantix://c1/node/0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11"
    interfaces = b'{"return":[{"name":"eth0","ip-addresses":[{"ip-address":"10.0.0.2","prefix":24}]}]}'
    process = b'{"return":{"exited":true,"exitcode":0,"out-data":"aGVsbG8=","err-data":"","signal":9}}'
    full = node_service_pb2.SyncFullStateRequest(node_id="0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11", state_hash="x")
    return (
        Target("json create", _json(vm_service_pb2.CreateVMRequest), (create, b"{}", b'{"spec":null}')),
        Target(
            "json list",
            _json(vm_service_pb2.ListVMsRequest),
            (b'{"pageSize":10,"pageToken":"abc","labels":{"a":"b"}}',),
        ),
        Target("json update", _json(vm_service_pb2.UpdateVMRequest), (b'{"id":"x","updateMask":"spec.cpu,name"}',)),
        Target("binary report", _binary, (full.SerializeToString(),)),
        Target("page token", _page_token, (b"AQECAwQFBgcIAAAAAAAAAAECAwQFBgcICQoLDA0ODxA",)),
        Target("join token", _join_token, (token,)),
        Target("machine name", _machine_name, (node, b"limiquantix://c1/controlplane/cp-1")),
        Target("quantity", _quantity, (b"20GiB", b"1.5TiB", b"7d", b"90s")),
        Target("error details", _details, (b'[{"type":"google.rpc.ErrorInfo","value":"CgFh"}]',)),
        Target("qcow2 image", _image(SourceFormat.QCOW2), (qcow2(), qcow2(version=2))),
        Target("vmdk image", _image(SourceFormat.VMDK), (vmdk(),)),
        Target("raw image", _image(SourceFormat.RAW), (b"\0" * 1024,)),
        Target("qcow2 header", _header, (qcow2(backing=b"base.qcow2")[:2_000],)),
        Target("cluster file", _cluster_file, (b"nodes:\n- name: a\n  cpus: 8\n  memory: 16GiB\nvms: []\n",)),
        Target("configuration", _config, (b"http:\n  listen_address: 127.0.0.1:8080\nha: {}\n",)),
        Target(
            "guest answer", _guest_answer, (interfaces, process, b'{"return":{"version":"7.2.0"}}', b'{"return":5}')
        ),
        Target("definition", _definition, (b"<domain type='kvm'><name>a</name><uuid>x</uuid><metadata/></domain>",)),
        Target(
            "vnc viewer",
            _spoken(lambda reader, writer: VncDoor(reader, writer).ask("secret")),
            (b"RFB 003.008\n\2" + b"x" * 16,),
        ),
        Target(
            "vnc display",
            _spoken(lambda reader, writer: VncDoor(reader, writer).welcome(reader, writer)),
            (b"RFB 003.008\n\1\1\0\0\0\0",),
        ),
        Target(
            "serial viewer", _spoken(lambda reader, writer: SerialDoor(reader, writer).ask("secret")), (b"secret\n",)
        ),
        Target(
            "spice viewer",
            _spoken(lambda reader, writer: _message(reader)),
            (b"REDQ\2\0\0\0\2\0\0\0\x12\0\0\0" + b"\0" * 18,),
        ),
    )


TARGETS = _targets()
