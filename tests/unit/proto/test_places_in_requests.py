"""Fields of requests that name a place on a network, each with the reason why nobody can send us somewhere by it.

Whoever adds one writes down here what keeps a caller from having the control plane or a host fetch from loopback,
link-local or internal addresses for them (SSRF).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

import limiquantix
from limiquantix.rpc.pipeline import is_filled
from nodedaemon.servicer import NodeDaemonServicer

_PLACE = re.compile(
    r"(^|_)(ur[lin]s?|endpoints?|address(es)?|ips?|servers?|monitors?|portals?|proxy|proxies|webhooks?|callbacks?|"
    r"mirrors?|redirects?|feeds?|issuers?|hostnames?|fqdn)(_|$)"
)

_TLS_ASKS_WHO = "the host's own word, under its certificate; whoever answers there has to show that node's certificate"
_NEVER_ASKED = "stored, shown or compared; nothing connects to it"
_FOR_THE_GUEST = "handed to the guest, which is where it counts; nothing of ours connects to it"
_DEVICE = "a device's place on a bus, or a MAC address; none of a network"
_TOLD_BY_HOSTS = "told by the control plane, which has it of a host that joined; TLS asks who answers there"
_ABSENT = "of a method that this version does not have; the one that has it needs a guard against SSRF"

WHY: dict[str, str] = {
    "compute.v1.CloudInitConfig.hostname": _FOR_THE_GUEST,
    "compute.v1.ConfirmNodeDeadRequest.hostname": _NEVER_ASKED,
    "compute.v1.CreateJoinTokenRequest.hostname": _NEVER_ASKED,
    "compute.v1.DisplayConfig.listen_address": "refused unless it is loopback; nothing listens there in the end",
    "compute.v1.ExchangeTokenRequest.issuer": "the name of an issuer of the configuration, not its address",
    "compute.v1.GuestReport.hostname": _NEVER_ASKED,
    "compute.v1.HostDevice.address": _DEVICE,
    "compute.v1.HostInfo.hostname": _NEVER_ASKED,
    "compute.v1.HostInfo.management_ip": _NEVER_ASKED,
    "compute.v1.IpConfig.address": _NEVER_ASKED,
    "compute.v1.IpConfig.dns_servers": _NEVER_ASKED,
    "compute.v1.JoinNodeRequest.hostname": _NEVER_ASKED,
    "compute.v1.NetworkDevice.mac_address": _DEVICE,
    "compute.v1.NetworkDeviceConfig.ip_addresses": _NEVER_ASKED,
    "compute.v1.NetworkInterface.ip_configs": _NEVER_ASKED,
    "compute.v1.NetworkInterface.mac_address": _DEVICE,
    "compute.v1.PciDevice.host_address": _DEVICE,
    "compute.v1.RegisterNodeRequest.agent_endpoint": _TLS_ASKS_WHO,
    "compute.v1.RegisterNodeRequest.hostname": _NEVER_ASKED,
    "compute.v1.RegisterNodeRequest.management_ip": _TLS_ASKS_WHO,
    "compute.v1.RegisterNodeRequest.migration_address": _TLS_ASKS_WHO,
    "compute.v1.VMStatusReport.ip_addresses": _NEVER_ASKED,
    "node.v1.CephPoolConfig.monitors": _ABSENT,
    "node.v1.CloudInitConfig.hostname": _FOR_THE_GUEST,
    "node.v1.ConfigureNetworkPortRequest.ip_addresses": _ABSENT,
    "node.v1.ConfigureNetworkPortRequest.mac_address": _DEVICE,
    "node.v1.DownloadImageOnNodeRequest.url": _ABSENT,
    "node.v1.IscsiPoolConfig.portal": _ABSENT,
    "node.v1.MigrateVMRequest.target_node_uri": _TOLD_BY_HOSTS,
    "node.v1.MigrationToken.target_node_uri": _TOLD_BY_HOSTS,
    "node.v1.NfsPoolConfig.server": _ABSENT,
    "node.v1.NicSpec.mac_address": _DEVICE,
    "node.v1.PrepareMigrationRequest.source_node_uri": _TOLD_BY_HOSTS,
}


def _methods() -> Iterator[MethodDescriptor]:
    (root,) = limiquantix.__path__
    for path in sorted(Path(root).glob("*/v*/*_pb2.py")):
        module = importlib.import_module(f"limiquantix.{path.parts[-3]}.{path.parts[-2]}.{path.stem}")
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def _places(message: Descriptor, seen: set[str]) -> Iterator[str]:
    """Visit the fields of a message, however deep, that name places."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE) and _PLACE.search(field.name):
            yield f"{message.full_name.removeprefix('limiquantix.')}.{field.name}"
        if field.message_type is not None:
            yield from _places(field.message_type, seen)


def test_place_in_a_request_is_listed_with_the_reason_why_it_is_safe() -> None:
    found = {place for method in _methods() for place in _places(method.input_type, set())}
    assert found == set(WHY)


def test_place_of_an_absent_method_is_of_no_other() -> None:
    absent = {place for place, why in WHY.items() if why == _ABSENT}
    for method in _methods():
        if absent & set(_places(method.input_type, set())):
            assert not is_filled(getattr(NodeDaemonServicer, method.name)), f"{method.full_name} is there: guard it"
