"""Who gets into a host's libvirt from another machine: callers with certificates of all kinds."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from controlplane.authority.cluster import Cluster
from controlplane.authority.migration_authority import MigrationAuthority
from hypervisor.migration import PeerCertificate
from limiquantix.compute.v1.join_service_pb2 import IssueMigrationCertificateRequest
from limiquantix.rpc.credentials import MachineCertificate, MachineCredentials
from nodedaemon.control_plane import GrpcControlPlane
from nodedaemon.identity.files import IdentityFile, NodeIdentity
from nodedaemon.identity.renewal import GrpcRenewer
from nodedaemon.identity.requests import new_request
from tests.support.control_plane_world import register_request
from tests.support.entry import Entry
from tests.support.libvirt_hosts import MigrationHost


@dataclass(frozen=True)
class JoinedPeer:
    """A host that joined and registered, and has a certificate for moving VMs, but no libvirt of its own."""

    identity: NodeIdentity
    held: PeerCertificate

    @property
    def id(self) -> str:
        return self.identity.machine.id


@asynccontextmanager
async def joined_peer(entry: Entry, directory: Path, hostname: str, address: str) -> AsyncIterator[JoinedPeer]:
    """Have one join a control plane."""
    await entry.admit(directory, hostname)
    identity = await asyncio.to_thread(IdentityFile.under(directory).load)
    assert identity is not None
    credentials = MachineCredentials(identity.certificate)
    control, renewer = (
        GrpcControlPlane([entry.hosts_address], credentials),
        GrpcRenewer((entry.hosts_address,), credentials),
    )
    try:
        await control.register(register_request(hostname, migration_address=address))
        key_pem, request_pem = await asyncio.to_thread(new_request)
        issued = await renewer.issue(IssueMigrationCertificateRequest(certificate_request=request_pem.decode()))
    finally:
        await control.close()
        await renewer.close()
    held = PeerCertificate(
        issued.certificate.encode(), key_pem, issued.authority_certificate.encode(), issued.revocation_list.encode()
    )
    yield JoinedPeer(identity, held)


def peer_of(cluster: Cluster, address: str, issued_at: datetime | None = None, node_id: str = "") -> PeerCertificate:
    """Make what a host of a cluster shows at an address."""
    authority, at = MigrationAuthority(cluster), issued_at or datetime.now(UTC)
    key_pem, request_pem = new_request()
    certificate_pem = authority.certify(node_id or str(uuid.uuid4()), [address], request_pem, at)
    return PeerCertificate(certificate_pem, key_pem, authority.certificate_pem, authority.revocation_list([], at))


def own_files(host: MigrationHost) -> PeerCertificate:
    """Read what a host shows now."""
    pki = host.pki
    return PeerCertificate(
        (pki / "libvirt" / "clientcert.pem").read_bytes(),
        (pki / "libvirt" / "private" / "clientkey.pem").read_bytes(),
        (pki / "CA" / "cacert.pem").read_bytes(),
        (pki / "CA" / "cacrl.pem").read_bytes(),
    )


async def refusal(
    caller: MigrationHost,
    target: MigrationHost,
    shown: PeerCertificate | MachineCertificate | None,
    directory: Path,
    *,
    revoked: bytes = b"",
) -> str:
    """Call a host's libvirt from another host, believing whom the target is of; returns why it failed, "" if not.

    Args:
        revoked: list (PEM) of those whom the caller does not believe any more.
    """
    try:
        uri = _uri(target, shown, directory, revoked)
        await asyncio.to_thread(caller.run, "virsh", "--quiet", "--connect", uri, "list", "--all")
    except RuntimeError as error:
        return str(error)
    return ""


class StandingConnection:
    """Somebody's at a host's libvirt, who asks something now and then, and comes back when it is cut off."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._count = 0

    async def is_let_in(self) -> bool:
        """Ask for the host's name."""
        self._count += 1
        end = f"end-{self._count}"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"hostname\necho {end}\n".encode())
        said = (await self._process.stdout.readuntil(f"{end}virsh # ".encode())).decode()  # nor is it what was typed
        return "error:" not in said


@asynccontextmanager
async def standing_connection(
    caller: MigrationHost, target: MigrationHost, shown: PeerCertificate, directory: Path
) -> AsyncIterator[StandingConnection]:
    """Open one from another host's network."""
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", caller.namespace, "virsh", "--quiet", "--connect", _uri(target, shown, directory)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield StandingConnection(process)
    finally:
        process.kill()
        await process.wait()


def _uri(
    target: MigrationHost, shown: PeerCertificate | MachineCertificate | None, directory: Path, revoked: bytes = b""
) -> str:
    files = directory / uuid.uuid4().hex
    files.mkdir()
    (files / "cacert.pem").write_bytes(own_files(target).authority_pem)
    if revoked:
        (files / "cacrl.pem").write_bytes(revoked)
    if shown is not None:
        (files / "clientcert.pem").write_bytes(shown.certificate_pem)
        (files / "clientkey.pem").write_bytes(shown.key_pem)
    return f"{target.tls_uri}?pkipath={files}&no_sanity=1"  # the other side shall find fault with it
